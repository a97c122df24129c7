"""The film world that the embedded model is trained on: films of shots, flat and bright.

A film is a pure function of its `Film` description and the frame number. It is a sequence of shots;
a shot shows a place with a camera and one to three subjects. Landmarks never stand in a caption
(`captions.py`), so a model can only keep them by remembering them: a place that comes back shows
the landmarks that it showed before.

Units: one world unit is one pixel at 96 pixels of height; a view is 160x96 units at every size.
Frames: a chunk is three latent frames, and the first latent frame of a film is one frame, any other
four; so chunk 0 is frames 0..8 and chunk k frames 12k-3 .. 12k+8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from cfgen.train.film_world import backgrounds, grounds
from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.drawing import Canvas, Image, Rgb
from cfgen.train.film_world.landmarks import REACH, Kind, standing
from cfgen.train.film_world.subjects import EXTENT, draw_subject
from cfgen.train.film_world.views import Views

FPS = 16
FRAMES_PER_CHUNK = 12
FIRST_CHUNK_LACKS = 3
VIEW = (160, 96)
WIDTH, HEIGHT = 320, 192

SKIES = tuple(backgrounds.SKIES)
GROUNDS = tuple(grounds.GROUNDS)
MOTIONS = ("drifts", "bobs", "circles", "hovers")
CAMERAS = ("still", "left", "right")
SPEEDS = ("slow", "fast")
UNITS_PER_FRAME = {"slow": 1, "fast": 2}

COLOUR_RGB: dict[str, Rgb] = {
    "red": (222, 44, 48),
    "orange": (250, 134, 20),
    "yellow": (255, 216, 30),
    "green": (30, 164, 76),
    "blue": (34, 92, 222),
    "purple": (138, 56, 190),
    "pink": (255, 104, 186),
    "white": (250, 250, 252),
}
COLOURS = tuple(COLOUR_RGB)

FADE_FRAMES = 2 * FPS
"""How long the sky of a shot takes to become the next one's."""
FLIGHT_FRAMES = FPS
"""How long a subject takes to leave the picture or to come into it."""

_FLIGHT = 104.0
"""Units that a leaving subject rises."""
_SIZES = {1: 1.0, 2: 0.84, 3: 0.68}


@dataclass(frozen=True, slots=True)
class Place:
    """A panorama: its ground, and a seed for hills, clouds and landmarks."""

    ground: str
    seed: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What moves in view: `shape`, `colour` and `motion` are words of the lists above."""

    shape: str
    colour: str
    motion: str


@dataclass(frozen=True, slots=True)
class Shot:
    """A part of a film that one caption describes.

    Attributes:
        place: index into the film's places.
        sky: one of SKIES.
        camera: one of CAMERAS; `speed` one of SPEEDS.
        speed: how fast a camera moves.
        subjects: one to three.
        chunks: how long it lasts.
        cut: whether it begins with a hard cut. Otherwise the place of the shot before goes on, and
            what differs changes on the way: the camera at once, the sky within two seconds;
            subjects fly out and in within one.
    """

    place: int
    sky: str
    camera: str
    speed: str
    subjects: tuple[Subject, ...]
    chunks: int
    cut: bool


@dataclass(frozen=True, slots=True)
class Film:
    """Everything that a film is made from; `seed` gives phases and paths of subjects."""

    places: tuple[Place, ...]
    shots: tuple[Shot, ...]
    seed: int

    @property
    def chunks(self) -> int:
        """Length in chunks."""
        return sum(shot.chunks for shot in self.shots)

    @property
    def frames(self) -> int:
        """Length in frames."""
        return FRAMES_PER_CHUNK * self.chunks - FIRST_CHUNK_LACKS


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in view units, clipped to the view; `whole` has the edges of all of it."""

    x0: float
    y0: float
    x1: float
    y1: float
    whole: tuple[float, float, float, float]

    @property
    def share(self) -> float:
        """How much of the whole is inside the view."""
        left, top, right, bottom = self.whole
        return (self.x1 - self.x0) * (self.y1 - self.y0) / ((right - left) * (bottom - top))


@dataclass(frozen=True, slots=True)
class LandmarkBox(Box):
    """Where a landmark is; `cell` tells it from others of its place."""

    kind: str
    cell: int
    place: int


@dataclass(frozen=True, slots=True)
class SubjectBox(Box):
    """Where a subject is."""

    subject: Subject


def shot_starts_in_frames(film: Film) -> list[int]:
    """The first frame of each shot."""
    starts, chunk = [], 0
    for shot in film.shots:
        starts.append(max(0, FRAMES_PER_CHUNK * chunk - FIRST_CHUNK_LACKS))
        chunk += shot.chunks
    return starts


def shot_of(film: Film, frames: int) -> NDArray[np.int64]:
    """The shot of each frame 0..frames-1: [frames]."""
    found = np.searchsorted(shot_starts_in_frames(film), np.arange(frames), side="right") - 1
    return np.asarray(found, np.int64)


def camera_path(film: Film, frames: int) -> NDArray[np.float64]:
    """Left edge of the view in units of its place's panorama, for frames 0..frames-1: [frames].

    A cut to a place that was shown before goes on where the camera left it.
    """
    path = np.zeros(max(frames, film.frames))
    starts = [*shot_starts_in_frames(film), max(frames, film.frames)]
    left: dict[int, float] = {}
    for shot, begin, end in zip(film.shots, starts, starts[1:], strict=False):
        at = left.get(shot.place, 0.0)
        step = velocity(shot)
        path[begin:end] = at + step * np.arange(end - begin)
        left[shot.place] = at + step * (end - begin)
    return path[:frames]


def velocity(shot: Shot) -> int:
    """Units a frame that the camera moves to the right."""
    direction = {"still": 0, "left": -1, "right": 1}[shot.camera]
    return direction * UNITS_PER_FRAME[shot.speed]


def subject_centres(
    film: Film, frames: NDArray[np.int64]
) -> list[list[tuple[Subject, float, float, float]]]:
    """For each frame, what is in the air: subject, centre (x, y) in view units, size."""
    shots = shot_of(film, int(frames.max()) + 1)
    starts = shot_starts_in_frames(film)
    found = []
    for frame in frames.tolist():
        number = int(shots[frame])
        shot, since = film.shots[number], frame - starts[number]
        before = film.shots[number - 1] if number and not shot.cut else None
        here = []
        for i, subject in enumerate(shot.subjects):
            x, y = _position(film, shot, i, frame)
            if before is not None and since < FLIGHT_FRAMES and subject not in before.subjects:
                x = _flying_in(x, since, from_left=2 * i < len(shot.subjects))
            here.append((subject, x, y, _SIZES[len(shot.subjects)]))
        if before is not None and since < FLIGHT_FRAMES:
            for i, subject in enumerate(before.subjects):
                if subject not in shot.subjects:
                    x, y = _position(film, before, i, frame)
                    y -= _FLIGHT * (since / FLIGHT_FRAMES) ** 2
                    here.append((subject, x, y, _SIZES[len(before.subjects)]))
        found.append(here)
    return found


def _flying_in(x: float, since: int, *, from_left: bool) -> float:
    """Where a subject is that comes in from the side and is at `x` a second later."""
    start = -30.0 if from_left else VIEW[0] + 30.0
    return x + (start - x) * float((1 - since / FLIGHT_FRAMES) ** 1.5)


def _position(film: Film, shot: Shot, index: int, frame: int) -> tuple[float, float]:
    """Centre of a subject, a function of the film's time alone."""
    subject, count = shot.subjects[index], len(shot.subjects)
    phase, pace, dx0, dy0 = _habits(film.seed, subject)
    turn = 2 * np.pi * (frame / (FPS * (3.5 + pace)) + phase)
    reach = {1: 26.0, 2: 13.0, 3: 7.0}[count]
    spread = {1: 14.0, 2: 4.0, 3: 2.0}[count]
    x = VIEW[0] * (2 * index + 1) / (2 * count) + spread * dx0
    y = 37.0 + 4 * dy0
    if subject.motion == "drifts":
        return x + reach * float(np.sin(turn)), y + 1.5 * float(np.sin(2 * turn))
    if subject.motion == "bobs":
        return x, y + 13 * float(np.sin(turn))
    if subject.motion == "circles":
        radius = min(13.0, reach)
        return x + radius * float(np.cos(turn)), y + 13 * float(np.sin(turn))
    return x, y


@lru_cache(4096)
def _habits(seed: int, subject: Subject) -> tuple[float, float, float, float]:
    rng = rng_for(seed, "subject", subject.shape, subject.colour)
    phase, pace = rng.uniform(), rng.uniform()
    return phase, pace, rng.uniform(-1, 1), rng.uniform(-1, 1)


def render(
    film: Film, start: int, stop: int, *, width: int = WIDTH, height: int = HEIGHT
) -> NDArray[np.uint8]:
    """Frames start..stop-1 of the film: [stop - start, height, width, 3] uint8, RGB.

    The result does not depend on how a film is cut into calls.

    Raises:
        ValueError: there is no frame in start..stop-1, or `start` is negative.
    """
    if not 0 <= start < stop:
        raise ValueError(f"frames {start}..{stop - 1} of a film are none that can be drawn")
    scale = height / VIEW[1]
    shots, path = shot_of(film, stop), camera_path(film, stop)
    starts = shot_starts_in_frames(film)
    air = subject_centres(film, np.arange(start, stop))
    out = np.empty((stop - start, height, width, 3), np.uint8)
    for number in range(int(shots[start]), int(shots[stop - 1]) + 1):
        shot = film.shots[number]
        frames = np.flatnonzero(shots[start:stop] == number) + start
        place = film.places[shot.place]
        seen = partial(Views, place.ground, place.seed, width=width, height=height, scale=scale)
        views, old = seen(sky=shot.sky, path=path[frames]), None
        before = film.shots[number - 1] if number and not shot.cut else None
        fades = int(np.sum(frames - starts[number] < FADE_FRAMES))
        if before is not None and before.sky != shot.sky and fades:
            old = seen(sky=before.sky, path=path[frames[:fades]])
        for i, frame in enumerate(frames.tolist()):
            image = views.image(i)
            if old is not None and i < fades:
                fade = np.float32((frame - starts[number] + 1) / (FADE_FRAMES + 1))
                image = old.image(i) * (1 - fade) + image * fade
            canvas = _over(image, scale)
            for subject, x, y, size in air[frame - start]:
                colour = COLOUR_RGB[subject.colour]
                draw_subject(canvas, subject.shape, colour, at=(x, y), size=size)
            image += np.float32(0.5)
            out[frame - start] = np.clip(image, 0, 255, out=image).transpose(1, 2, 0)
    return out


def _over(image: Image, scale: float) -> Canvas:
    """An opaque canvas on an image of planes [3, H, W]."""
    height, width = image.shape[1:]
    x = (np.arange(width, dtype=np.float32) + 0.5)[None] / np.float32(scale)
    y = (np.arange(height, dtype=np.float32) + 0.5)[:, None] / np.float32(scale)
    x, y = np.broadcast_arrays(x, y)
    return Canvas(image, np.ones(image.shape[1:], np.float32), x, y, scale)


def landmarks(
    place: Place, left: float, right: float
) -> list[tuple[int, Kind, tuple[float, float]]]:
    """Landmarks of a place whose foot is between two positions: cell, kind, foot in units."""
    return standing(place.seed, left, right)


def landmark_boxes(film: Film, frame: int) -> list[LandmarkBox]:
    """Landmarks that a frame shows."""
    shot = film.shots[int(shot_of(film, frame + 1)[frame])]
    place, left = film.places[shot.place], float(camera_path(film, frame + 1)[frame])
    found = []
    for cell, kind, (x, y) in landmarks(place, left - REACH, left + VIEW[0] + REACH):
        half, tall = kind.half_width, kind.height
        box = _clipped(x - left - half, y - tall, x - left + half, y)
        if box is not None:
            found.append(LandmarkBox(*box, kind=kind.name, cell=cell, place=shot.place))
    return found


def subject_boxes(film: Film, frame: int) -> list[SubjectBox]:
    """Subjects that a frame shows."""
    found = []
    for subject, x, y, size in subject_centres(film, np.array([frame]))[0]:
        left, top, right, bottom = (edge * size for edge in EXTENT[subject.shape])
        box = _clipped(x + left, y + top, x + right, y + bottom)
        if box is not None:
            found.append(SubjectBox(*box, subject=subject))
    return found


def _clipped(
    x0: float, y0: float, x1: float, y1: float
) -> tuple[float, float, float, float, tuple[float, float, float, float]] | None:
    """What of a box is inside the view, and all of it; None if there is nothing inside."""
    inner = max(0.0, x0), max(0.0, y0), min(float(VIEW[0]), x1), min(float(VIEW[1]), y1)
    width, height = inner[2] - inner[0], inner[3] - inner[1]
    if width <= 0 or height <= 0:
        return None
    return (*inner, (x0, y0, x1, y1))
