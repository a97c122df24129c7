"""The film world that the embedded model is trained on: procedural, deterministic, flat and bright.

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

Image = NDArray[np.float32 | np.float64]
Number = float | Image

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
LANDMARKS = ("tree", "pine", "house", "tower", "rock")
_HORIZON = 60.0
_CELL = 52.0


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
    far_rgb, far_alpha = _far_strip(film, int(far.min()), int(far.max()) + width, height, scale)
    near_rgb, near_alpha = _near_strip(
        film, int(near.min()), int(near.max()) + width, height, scale
    )
    centres = subject_centres(film, frame, view)
    out = np.empty((len(frame), height, width, 3), np.uint8)
    for i in range(len(frame)):
        f0, n0 = int(far[i] - far.min()), int(near[i] - near.min())
        image = _over(sky, far_rgb[:, f0 : f0 + width], far_alpha[:, f0 : f0 + width])
        image = _over(image, near_rgb[:, n0 : n0 + width], near_alpha[:, n0 : n0 + width])
        for subject, (cx, cy) in zip(film.subjects, centres[:, i], strict=True):
            _draw_subject(image, subject, float(cx), float(cy), scale)
        out[i] = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return out


def _over(below: Image, rgb: Image, alpha: Image) -> Image:
    """A premultiplied layer over an opaque image."""
    return below * (1 - alpha[..., None]) + rgb


def _paint(rgb: Image, alpha: Image, colour: Image, coverage: Image) -> None:
    """Paint `colour` with `coverage` over a premultiplied layer, in place."""
    rgb += (colour - rgb) * coverage[..., None]
    alpha += (1 - alpha) * coverage


def _cover(distance: Image, scale: float) -> Image:
    """Anti-aliased coverage of a signed distance in units (negative inside)."""
    return np.asarray(np.clip(0.5 - distance * scale, 0, 1), np.float32)


def _colour(rgb: tuple[float, ...]) -> Image:
    return np.asarray(rgb, np.float32)


def _sky(film: Film, width: int, height: int, scale: float) -> Image:
    top, bottom, _ = SKY_RGB[film.sky]
    y = (np.arange(height, dtype=np.float32) + 0.5) / scale
    x = (np.arange(width, dtype=np.float32) + 0.5) / scale
    blend = np.clip(y / _HORIZON, 0, 1)[:, None, None]
    image = np.broadcast_to(
        _colour(top) * (1 - blend) + _colour(bottom) * blend, (height, width, 3)
    ).copy()
    yy, xx = np.meshgrid(y, x, indexing="ij")
    alpha = np.ones((height, width), np.float32)
    rng = rng_for(film.seed, "sky")
    sun_x, sun_y = rng.uniform(0.14, 0.86) * width / scale, rng.uniform(12, 20)
    if film.sky == "night":
        for sx, sy in zip(rng.uniform(0, width / scale, 14), rng.uniform(3, 46, 14), strict=True):
            _paint(
                image,
                alpha,
                _colour((220, 226, 250)),
                _cover(np.hypot(xx - sx, yy - sy) - 0.8, scale),
            )
        _paint(
            image,
            alpha,
            _colour((244, 240, 214)),
            _cover(np.hypot(xx - sun_x, yy - sun_y) - 6.5, scale),
        )
    elif film.sky != "overcast":
        sun_y = sun_y if film.sky == "day" else sun_y + 24
        colour = {"day": (255, 244, 190), "sunset": (255, 222, 130), "dawn": (255, 244, 220)}[
            film.sky
        ]
        _paint(image, alpha, _colour(colour), _cover(np.hypot(xx - sun_x, yy - sun_y) - 8, scale))
    return image


def _waves(
    x: Image, rng: np.random.Generator, heights: tuple[float, ...], lengths: tuple[float, ...]
) -> Image:
    total = np.zeros_like(x)
    for height, length in zip(heights, lengths, strict=True):
        total += height * np.sin(
            2 * np.pi * (x / (length * rng.uniform(0.85, 1.15)) + rng.uniform())
        )
    return total


def _strip_grid(x0: int, x1: int, height: int, scale: float) -> tuple[Image, Image]:
    x = (np.arange(x0, x1, dtype=np.float32) + 0.5) / np.float32(scale)
    y = (np.arange(height, dtype=np.float32) + 0.5) / np.float32(scale)
    yy, xx = np.meshgrid(y, x, indexing="ij")
    return xx, yy


def _far_strip(film: Film, x0: int, x1: int, height: int, scale: float) -> tuple[Image, Image]:
    """Clouds and far hills for strip pixels x0..x1-1: colours [H, n, 3] and coverage [H, n]."""
    xx, yy = _strip_grid(x0, x1, height, scale)
    rgb, alpha = np.zeros((*xx.shape, 3), np.float32), np.zeros(xx.shape, np.float32)
    top, bottom, light = SKY_RGB[film.sky]
    cloud = {"night": (52, 62, 106), "overcast": (156, 163, 172), "sunset": (236, 150, 130)}.get(
        film.sky, (250, 250, 252)
    )
    for cell in range(int(x0 / scale // 80) - 1, int(x1 / scale // 80) + 2):
        rng = rng_for(film.seed, "cloud", cell)
        cx, cy, size = cell * 80 + rng.uniform(15, 65), rng.uniform(8, 30), rng.uniform(6, 9)
        for dx, dy, r in ((-1.1, 0.25, 0.62), (0, -0.1, 0.95), (1.15, 0.3, 0.6)):
            distance = np.hypot((xx - cx - dx * size) * 0.8, yy - cy - dy * size) - r * size
            _paint(rgb, alpha, _colour(cloud), _cover(distance, scale))
    rng = rng_for(film.seed, "far")
    line = 52 + _waves(xx[0], rng, (5.0, 2.5), (120.0, 47.0))
    base = _colour(GROUND_RGB[film.ground][0]) * _colour(light)
    haze = 0.6 * base + 0.4 * _colour(bottom)
    _paint(rgb, alpha, haze, _cover(line[None] - yy, scale))
    return rgb, alpha


def _near_strip(film: Film, x0: int, x1: int, height: int, scale: float) -> tuple[Image, Image]:
    """Ground and landmarks for strip pixels x0..x1-1: colours [H, n, 3] and coverage [H, n]."""
    xx, yy = _strip_grid(x0, x1, height, scale)
    rgb, alpha = np.zeros((*xx.shape, 3), np.float32), np.zeros(xx.shape, np.float32)
    light = _colour(SKY_RGB[film.sky][2])
    first, last = int(x0 / scale // _CELL) - 1, int(x1 / scale // _CELL) + 1
    for cell in range(first, last + 1):
        rng = rng_for(film.seed, "landmark", cell)
        if rng.uniform() < 0.85:
            x = cell * _CELL + rng.uniform(12, _CELL - 12)
            _landmark(
                rgb, alpha, xx, yy, x, _ground_line(film, np.float32(x)) + 1.5, rng, light, scale
            )
    line = _ground_line(film, xx[0])[None]
    near, deep = (_colour(c) * light for c in GROUND_RGB[film.ground])
    _paint(rgb, alpha, near, _cover(line - yy, scale))
    rng = rng_for(film.seed, "bands")
    for k in range(2):
        band = 80 + 11 * k + _waves(xx[0], rng, (2.2,), (90.0,))
        _paint(rgb, alpha, near + (deep - near) * (0.5 + 0.5 * k), _cover(band[None] - yy, scale))
    return rgb, alpha


def _ground_line(film: Film, x: Image | np.float32) -> Image:
    return 70 + _waves(
        np.asarray(x, np.float32), rng_for(film.seed, "near"), (3.0, 1.5), (150.0, 61.0)
    )


def _box(xx: Image, yy: Image, cx: float, cy: Number, half_w: float, half_h: float) -> Image:
    return np.asarray(np.maximum(np.abs(xx - cx) - half_w, np.abs(yy - cy) - half_h))


def _triangle(xx: Image, yy: Image, cx: float, base: Number, half_w: float, tall: float) -> Image:
    slope = np.hypot(half_w, tall)
    edges = (np.abs(xx - cx) * tall - (yy - base + tall) * half_w) / slope
    return np.asarray(np.maximum(edges, yy - base))


def _landmark(
    rgb: Image,
    alpha: Image,
    xx: Image,
    yy: Image,
    x: float,
    base: Number,
    rng: np.random.Generator,
    light: Image,
    scale: float,
) -> None:
    """Draw one landmark of random kind, size and colour that stands at (x, base)."""
    kind = LANDMARKS[int(rng.integers(len(LANDMARKS)))]
    size = rng.uniform(0.85, 1.2)
    tint = int(rng.integers(3))

    def paint(colour: tuple[int, int, int], distance: Image) -> None:
        _paint(rgb, alpha, _colour(colour) * light, _cover(distance, scale))

    if kind == "tree":
        paint((110, 76, 52), _box(xx, yy, x, base - 5 * size, 1.5 * size, 6 * size))
        leaf = ((52, 122, 60), (196, 110, 44), (150, 170, 60))[tint]
        paint(leaf, np.hypot(xx - x, yy - (base - 14 * size)) - 7.5 * size)
    elif kind == "pine":
        paint((92, 66, 48), _box(xx, yy, x, base - 2 * size, 1.3 * size, 3 * size))
        leaf = ((30, 92, 74), (40, 110, 60), (60, 96, 100))[tint]
        for k in range(3):
            paint(
                leaf,
                _triangle(xx, yy, x, base - (3 + 5.5 * k) * size, (7.5 - 1.6 * k) * size, 9 * size),
            )
    elif kind == "house":
        wall = ((238, 222, 196), (204, 120, 96), (190, 204, 214))[tint]
        paint(wall, _box(xx, yy, x, base - 4.5 * size, 7.5 * size, 5 * size))
        paint((132, 60, 52), _triangle(xx, yy, x, base - 9 * size, 9.5 * size, 7 * size))
        paint(
            (250, 222, 120), _box(xx, yy, x + 2.5 * size, base - 5 * size, 1.7 * size, 1.7 * size)
        )
    elif kind == "tower":
        wall = ((208, 200, 190), (170, 150, 140), (236, 236, 232))[tint]
        paint(wall, _box(xx, yy, x, base - 10 * size, 3.6 * size, 11 * size))
        paint((88, 92, 128), _triangle(xx, yy, x, base - 20 * size, 5.2 * size, 7 * size))
        paint((70, 66, 74), _box(xx, yy, x, base - 14 * size, 1.1 * size, 1.8 * size))
    else:
        stone = ((128, 128, 134), (150, 132, 118), (104, 112, 122))[tint]
        paint(stone, np.maximum(np.hypot((xx - x) * 0.75, yy - base) - 6.5 * size, yy - base))


def _subject_distance(shape: str, xx: Image, yy: Image) -> Image:
    """Signed distance in units to the outline of a subject's body centred at the origin."""
    if shape == "balloon":
        body = np.hypot(xx, yy + 3) - 12
        cone = np.maximum(np.abs(xx) * 0.86 + (yy - 16) * 0.5, 5 - yy)
        return np.asarray(np.minimum(body, cone))
    if shape == "kite":
        tall = np.where(yy < -3, 13.0, 19.0)
        half = np.abs(xx) / 12.5 + np.abs(yy + 3) / tall - 1
        return np.asarray(half * 8.5)
    if shape == "cube":
        return _box(xx, yy, 0, 0, 12.5, 12.5)
    if shape == "star":
        angle = np.arctan2(xx, -yy)
        folded = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        radius = np.hypot(xx, yy)
        px, py = radius * np.sin(folded), radius * np.cos(folded)
        outer, inner = 16.0, 7.6
        tip, notch = (0.0, outer), (inner * np.sin(np.pi / 5), inner * np.cos(np.pi / 5))
        ex, ey = notch[0] - tip[0], notch[1] - tip[1]
        return np.asarray(((px - tip[0]) * -ey + (py - tip[1]) * ex) / np.hypot(ex, ey))
    lobe = np.hypot(np.abs(xx) - 6.4, yy + 5) - 7.6
    point = np.abs(xx) * 0.76 + (yy - 14.5) * 0.65
    return np.asarray(np.minimum(lobe, np.maximum(point, -5 - yy)))


def _draw_subject(image: Image, subject: Subject, cx: float, cy: float, scale: float) -> None:
    """Draw a subject over `image` [H, W, 3] in place, centred at (cx, cy) in units."""
    height, width = image.shape[:2]
    x0, x1 = max(0, int((cx - 22) * scale)), min(width, int((cx + 22) * scale) + 1)
    y0, y1 = max(0, int((cy - 22) * scale)), min(height, int((cy + 30) * scale) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    xx = (np.arange(x0, x1, dtype=np.float32) + 0.5)[None] / scale - cx
    yy = (np.arange(y0, y1, dtype=np.float32) + 0.5)[:, None] / scale - cy
    xx, yy = np.broadcast_arrays(xx, yy)
    patch = image[y0:y1, x0:x1]
    unused = np.ones(patch.shape[:2], np.float32)
    colour = _colour(COLOUR_RGB[subject.colour])

    def paint(rgb: Image, distance: Image) -> None:
        _paint(patch, unused, rgb, _cover(distance, scale))

    if subject.shape == "balloon":
        paint(_colour((96, 62, 40)), _box(xx, yy, 0, 18.5, 3.6, 3.0))
    if subject.shape == "kite":
        paint(colour * 0.6, _box(xx, yy, 0, 19.5, 0.9, 4.5))
        paint(colour * 0.6, _box(xx, yy, 0, 22.5, 2.8, 1.1))
    body = _subject_distance(subject.shape, xx, yy)
    paint(colour * 0.55, body)
    paint(colour, body + 1.6)
    shine = np.maximum(np.hypot(xx + 4.5, yy + 6) - 3.2, body + 3)
    paint(colour + (255 - colour) * 0.45, shine)


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
