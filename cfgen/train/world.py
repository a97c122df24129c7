"""The film world of today's `mini`: procedural, deterministic, flat and bright.

`film_world` is the one that its successor is trained on.

A film is a pure function of its `Film` description and the frame number. The world is a panorama
wider than the view: a fixed sky, a far layer of clouds and hills that moves at half the camera's
speed, a near layer of ground and landmarks, and one or two subjects that stay in view. Landmarks
never stand in a caption (`captions.py`), so a model can only keep them by remembering them.

Units: one world unit is one pixel at 96 pixels of height; `render` scales everything by
height / 96.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfgen.train.drawing import Canvas, Image, draw_landmark, draw_subject

FPS = 16
PAN_SPEED = 2  # units a frame: one latent cell of the 8x autoencoder a latent frame
VIEW_HEIGHT = 96

SKIES = ("dawn", "day", "sunset", "night", "overcast")
GROUNDS = ("grass", "snow", "sand", "lavender")
COLOURS = ("red", "orange", "yellow", "green", "blue", "pink")
SHAPES = ("balloon", "kite", "star", "cube", "heart")
MOTIONS = ("drifts", "bobs", "circles", "hovers")
CAMERAS = ("still", "right", "left", "right-left", "left-right")

COLOUR_RGB = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (255, 214, 10),
    "green": (20, 160, 70),
    "blue": (29, 78, 216),
    "pink": (255, 92, 190),
}
#: top and bottom of the sky, and the light (colour factors) that falls on the land
SKY_RGB = {
    "dawn": ((176, 190, 232), (255, 214, 202), (0.98, 0.90, 0.92)),
    "day": ((84, 166, 240), (196, 230, 252), (1.0, 1.0, 1.0)),
    "sunset": ((98, 50, 118), (250, 146, 72), (0.92, 0.74, 0.66)),
    "night": ((12, 16, 44), (38, 50, 96), (0.40, 0.44, 0.62)),
    "overcast": ((130, 138, 148), (188, 194, 200), (0.80, 0.82, 0.84)),
}
GROUND_RGB = {
    "grass": ((104, 178, 88), (74, 150, 66)),
    "snow": ((226, 236, 246), (250, 252, 255)),
    "sand": ((236, 204, 140), (222, 182, 108)),
    "lavender": ((170, 140, 208), (142, 106, 190)),
}
_SUN_RGB = {
    "dawn": (255, 244, 220),
    "day": (255, 244, 190),
    "sunset": (255, 222, 130),
    "night": (244, 240, 214),
}
_CLOUD_RGB = {"night": (52, 62, 106), "overcast": (156, 163, 172), "sunset": (236, 150, 130)}
_HORIZON = 60.0
_CELL = 52.0
_CLOUD_CELL = 80


@dataclass(frozen=True)
class Subject:
    """What moves in view: `shape`, `colour` and `motion` are words of the lists above."""

    shape: str
    colour: str
    motion: str


@dataclass(frozen=True)
class Film:
    """Everything that a film is made from.

    `seed` places landmarks, hills, clouds, phases and turning points.
    """

    sky: str
    ground: str
    subjects: tuple[Subject, ...]
    camera: str
    seed: int


def rng_for(*key: int | str) -> np.random.Generator:
    """A generator that depends on `key` alone, the same on every platform."""
    digest = zlib.crc32(repr(key).encode())
    return np.random.Generator(np.random.Philox(key=[digest, len(key)]))


def camera_path(film: Film, frames: int) -> NDArray[np.int64]:
    """Left edge of the view in units for frames 0..frames-1: [frames] int64.

    A sweep moves for 2 to 3.5 seconds, rests half a second, and goes back as far as it came.
    """
    if film.camera == "still":
        return np.zeros(frames, np.int64)
    if film.camera in ("right", "left"):
        sign = 1 if film.camera == "right" else -1
        return sign * PAN_SPEED * np.arange(frames)
    leg = int(rng_for(film.seed, "leg").integers(2 * FPS, 7 * FPS // 2 + 1))
    rest = FPS // 2
    sign = 1 if film.camera == "right-left" else -1
    phase = np.arange(frames) % (2 * (leg + rest))
    there = np.minimum(phase, leg)
    back = np.clip(phase - leg - rest, 0, leg)
    return np.asarray(sign * PAN_SPEED * (there - back), np.int64)


def subject_centres(film: Film, frame: NDArray[np.int64], width: float) -> NDArray[np.float64]:
    """Centres of the subjects in view units, [subjects, frames, 2] as (x, y)."""
    centres = np.zeros((len(film.subjects), len(frame), 2))
    for i, subject in enumerate(film.subjects):
        rng = rng_for(film.seed, "subject", i)
        if len(film.subjects) == 1:
            x, reach = width / 2 + rng.uniform(-16, 16), 24.0
        else:
            x, reach = width * (0.27 + 0.46 * i) + rng.uniform(-4, 4), 13.0
        y = rng.uniform(34, 40)
        turn = 2 * np.pi * (frame / (FPS * rng.uniform(3.5, 4.5)) + rng.uniform())
        dx, dy = np.zeros(len(frame)), np.zeros(len(frame))
        if subject.motion == "drifts":
            dx, dy = reach * np.sin(turn), 1.5 * np.sin(2 * turn)
        elif subject.motion == "bobs":
            dy = 13.0 * np.sin(turn)
        elif subject.motion == "circles":
            dx, dy = 13.0 * np.cos(turn), 13.0 * np.sin(turn)
        centres[i, :, 0], centres[i, :, 1] = x + dx, y + dy
    return centres


def render(
    film: Film, start: int, stop: int, *, width: int = 160, height: int = 96
) -> NDArray[np.uint8]:
    """Frames start..stop-1 of the film: [stop - start, height, width, 3] uint8, RGB.

    The result does not depend on how a film is cut into calls.
    """
    scale = height / VIEW_HEIGHT
    view = width / scale
    frame = np.arange(start, stop)
    path = camera_path(film, stop)[start:stop]
    near = np.round(path * scale).astype(int)
    far = np.round(path * scale / 2).astype(int)
    sky = _sky(film, width, height, scale)
    behind = _far_strip(film, _strip(int(far.min()), int(far.max()) + width, height, scale))
    before = _near_strip(film, _strip(int(near.min()), int(near.max()) + width, height, scale))
    centres = subject_centres(film, frame, view)
    out = np.empty((len(frame), height, width, 3), np.uint8)
    for i in range(len(frame)):
        image = sky
        for layer, left in ((behind, far[i] - far.min()), (before, near[i] - near.min())):
            seen = slice(int(left), int(left) + width)
            image = image * (1 - layer.alpha[:, seen, None]) + layer.rgb[:, seen]
        for subject, (cx, cy) in zip(film.subjects, centres[:, i], strict=True):
            rgb = COLOUR_RGB[subject.colour]
            draw_subject(image, subject.shape, rgb, at=(float(cx), float(cy)), scale=scale)
        out[i] = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return out


def _strip(x0: int, x1: int, height: int, scale: float) -> Canvas:
    """An empty layer for strip pixels x0..x1-1."""
    across = (np.arange(x0, x1, dtype=np.float32) + 0.5) / np.float32(scale)
    down = (np.arange(height, dtype=np.float32) + 0.5) / np.float32(scale)
    y, x = np.meshgrid(down, across, indexing="ij")
    return Canvas(np.zeros((*x.shape, 3), np.float32), np.zeros(x.shape, np.float32), x, y, scale)


def _sky(film: Film, width: int, height: int, scale: float) -> Image:
    """The fixed background, opaque: [height, width, 3]."""
    top, bottom, _ = (np.asarray(rgb, np.float32) for rgb in SKY_RGB[film.sky])
    canvas = _strip(0, width, height, scale)
    blend = np.clip(canvas.y[:, :1] / _HORIZON, 0, 1)[..., None]
    canvas.rgb[...] = top * (1 - blend) + bottom * blend
    canvas.alpha[...] = 1
    rng = rng_for(film.seed, "sky")
    x, y = rng.uniform(0.14, 0.86) * width / scale, rng.uniform(12, 20)
    if film.sky == "night":
        stars = zip(rng.uniform(0, width / scale, 14), rng.uniform(3, 46, 14), strict=True)
        for star_x, star_y in stars:
            canvas.paint((220, 226, 250), canvas.disc(star_x, star_y, 0.8))
        canvas.paint(_SUN_RGB["night"], canvas.disc(x, y, 6.5))
    elif film.sky != "overcast":
        low = 0 if film.sky == "day" else 24
        canvas.paint(_SUN_RGB[film.sky], canvas.disc(x, y + low, 8))
    return canvas.rgb


def _waves(
    x: Image, rng: np.random.Generator, heights: tuple[float, ...], lengths: tuple[float, ...]
) -> Image:
    total = np.zeros_like(x)
    for height, length in zip(heights, lengths, strict=True):
        turns = x / (length * rng.uniform(0.85, 1.15)) + rng.uniform()
        total += height * np.sin(2 * np.pi * turns)
    return total


def _far_strip(film: Film, canvas: Canvas) -> Canvas:
    """Clouds and far hills, painted on an empty strip."""
    _, bottom, light = (np.asarray(rgb, np.float32) for rgb in SKY_RGB[film.sky])
    first, last = int(canvas.x[0, 0] // _CLOUD_CELL) - 1, int(canvas.x[0, -1] // _CLOUD_CELL) + 1
    for cell in range(first, last + 1):
        rng = rng_for(film.seed, "cloud", cell)
        cx, cy = cell * _CLOUD_CELL + rng.uniform(15, 65), rng.uniform(8, 30)
        size = rng.uniform(6, 9)
        for dx, dy, r in ((-1.1, 0.25, 0.62), (0, -0.1, 0.95), (1.15, 0.3, 0.6)):
            wide = np.hypot((canvas.x - cx - dx * size) * 0.8, canvas.y - cy - dy * size)
            canvas.paint(_CLOUD_RGB.get(film.sky, (250, 250, 252)), wide - r * size)
    line = 52 + _waves(canvas.x[0], rng_for(film.seed, "far"), (5.0, 2.5), (120.0, 47.0))
    ground = np.asarray(GROUND_RGB[film.ground][0], np.float32) * light
    canvas.paint(0.6 * ground + 0.4 * bottom, line[None] - canvas.y)
    return canvas


def _near_strip(film: Film, canvas: Canvas) -> Canvas:
    """Ground and landmarks, painted on an empty strip."""
    light = np.asarray(SKY_RGB[film.sky][2], np.float32)
    first, last = int(canvas.x[0, 0] // _CELL) - 1, int(canvas.x[0, -1] // _CELL) + 1
    for cell in range(first, last + 1):
        rng = rng_for(film.seed, "landmark", cell)
        if rng.uniform() < 0.85:
            x = cell * _CELL + rng.uniform(12, _CELL - 12)
            draw_landmark(canvas, x, _ground_line(film, np.float32(x)) + 1.5, rng, light)
    near, deep = (np.asarray(rgb, np.float32) * light for rgb in GROUND_RGB[film.ground])
    canvas.paint(near, _ground_line(film, canvas.x[0])[None] - canvas.y)
    rng = rng_for(film.seed, "bands")
    for k in range(2):
        band = 80 + 11 * k + _waves(canvas.x[0], rng, (2.2,), (90.0,))
        canvas.paint(near + (deep - near) * (0.5 + 0.5 * k), band[None] - canvas.y)
    return canvas


def _ground_line(film: Film, x: Image | np.float32) -> Image:
    """Height of the ground's edge at positions in units."""
    rng = rng_for(film.seed, "near")
    return 70 + _waves(np.asarray(x, np.float32), rng, (3.0, 1.5), (150.0, 61.0))


def sample_film(seed: int, *, held_out: bool = False) -> Film:
    """Draw a film; one in ten combinations of sky, ground, colour, shape is kept out of training.

    Args:
        seed: any integer; the same seed gives the same film.
        held_out: draw only from the combinations that training never sees.
    """
    rng = rng_for(seed, "film")
    while True:
        count = 2 if rng.uniform() < 0.2 else 1
        shapes = rng.permutation(len(SHAPES))[:count]
        colours = rng.permutation(len(COLOURS))[:count]
        subjects = tuple(
            Subject(SHAPES[s], COLOURS[c], MOTIONS[int(rng.integers(len(MOTIONS)))])
            for s, c in zip(shapes, colours, strict=True)
        )
        film = Film(
            sky=SKIES[int(rng.integers(len(SKIES)))],
            ground=GROUNDS[int(rng.integers(len(GROUNDS)))],
            subjects=subjects,
            camera=CAMERAS[int(rng.integers(len(CAMERAS)))],
            seed=int(rng.integers(2**31)),
        )
        if is_held_out(film) == held_out:
            return film


def is_held_out(film: Film) -> bool:
    """Whether any subject of the film forms a combination that training never sees."""
    return any(
        zlib.crc32(f"{film.sky} {film.ground} {s.colour} {s.shape}".encode()) % 10 == 0
        for s in film.subjects
    )
