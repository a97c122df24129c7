"""Detectors for the film world: what a clip shows, read from its frames by palette and geometry.

They are written against `world.py` and know nothing of any model, so that they can tell how well a
model's films follow their prompts. What fits nothing the world can show reads as None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from cfgen.train.probes_camera import camera_class, step_ways
from cfgen.train.probes_subjects import (
    FOUND_OVERLAP,
    SHAPE_OVERLAP,
    Sighting,
    find_subjects,
    shape_overlaps,
)
from cfgen.train.world import GROUND_RGB, SHAPES, SKY_RGB, VIEW_HEIGHT, Film

Image = NDArray[np.float32]

KEYS = ("sky", "ground", "colour", "shape", "camera")
#: Frames between two that are looked at: a quarter of a second of film.
STEP = 4

_SKY_ROWS = 42  # above the highest hill
_SKY_HORIZON = 60.0  # where the sky's gradient ends
_SKY_RADIUS = 36.0  # RGB distance; skies are at least 73 apart in every row
_SKY_SHARE = 0.4  # of the rows above the hills; clouds, sun and subjects hide the rest
_GROUND_ROWS = 80  # below every landmark and subject
_GROUND_RADIUS = 30.0
_GROUND_SHARE = 0.5


class Second(TypedDict):
    """What most of the sampled frames in one second of a clip show."""

    sky: str | None
    ground: str | None
    subjects: list[tuple[str, str | None]]


class Details(TypedDict):
    """What a reading was made from, in plain values that JSON can hold."""

    seconds: list[Second]
    path: list[float | None]


@dataclass(frozen=True)
class Reading:
    """What a clip shows, in the words of `world.py`; None where nothing fits.

    Attributes:
        sky: word of `SKIES`, in most of the sampled frames.
        ground: word of `GROUNDS`, in most of the sampled frames.
        subjects: (colour, shape) of each subject in most of the seconds, left to right.
        camera: word of `CAMERAS`.
        details: `seconds`, what each shows, and `path`, how far right of its start the camera is at
            each sampled frame, in pixels at a height of 96.
    """

    sky: str | None
    ground: str | None
    subjects: tuple[tuple[str, str | None], ...]
    camera: str | None
    details: Details


_Coloured = TypeVar("_Coloured", Sighting, "_Track")


@dataclass(frozen=True)
class _Sample:
    sky: str | None
    ground: str | None
    sightings: list[Sighting]


@dataclass(frozen=True)
class _Track:
    """A subject over a second of samples; `x` is its place across."""

    colour: str
    shape: str | None
    x: float


def measure(frames: NDArray[np.uint8], fps: float) -> Reading:
    """Read a clip.

    Args:
        frames: [T, H, W, 3] uint8 RGB, H at least 96; larger frames are averaged down to 96 rows.
        fps: playback rate, which says what a second of the clip is.

    Raises:
        ValueError: `frames` are of another form, or fps is not above 0.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}")
    if not len(frames) or frames.shape[1] < VIEW_HEIGHT or fps <= 0:
        raise ValueError(
            f"need at least one frame, {VIEW_HEIGHT} rows and a rate above 0, "
            f"got {frames.shape} at {fps} frames/s"
        )
    seen = _to_view(frames[::STEP])
    samples = [_sample(frame) for frame in seen]
    ways = step_ways(seen, [sample.sightings for sample in samples])
    groups = _by_second(samples, fps)
    tracks = [_tracks(group) for group in groups]
    return Reading(
        sky=_majority([sample.sky for sample in samples]),
        ground=_majority([sample.ground for sample in samples]),
        subjects=tuple((each.colour, each.shape) for each in _lasting(tracks)),
        camera=camera_class(ways, STEP * (len(seen) - 1)),
        details=Details(
            seconds=[_second(*each) for each in zip(groups, tracks, strict=True)],
            path=_path(ways),
        ),
    )


def score(film: Film, reading: Reading) -> dict[str, bool]:
    """Which of `KEYS` a reading has right.

    `colour`: every subject's colour and none besides. `shape`: every subject's shape, and where
    the colours are right, each on its own colour. `camera`: a pan or rest exactly; for a sweep its
    first direction and that it turned.
    """
    wanted = sorted((subject.colour, subject.shape) for subject in film.subjects)
    found = sorted((colour, shape or "") for colour, shape in reading.subjects)
    colour = [c for c, _ in wanted] == [c for c, _ in found]
    shape = Counter(s for _, s in wanted) == Counter(s for _, s in found)
    return {
        "sky": reading.sky == film.sky,
        "ground": reading.ground == film.ground,
        "colour": colour,
        "shape": wanted == found if colour else shape,
        "camera": reading.camera == film.camera,
    }


def seconds_right(film: Film, reading: Reading) -> list[bool]:
    """For each second of the clip, whether sky, ground and every colour are right in it."""
    colours = sorted(subject.colour for subject in film.subjects)
    return [
        second["sky"] == film.sky
        and second["ground"] == film.ground
        and sorted(colour for colour, _ in second["subjects"]) == colours
        for second in reading.details["seconds"]
    ]


def consistency(film: Film, reading: Reading) -> float:
    """Share of the clip's seconds in which sky, ground and every colour are right, 0..1."""
    return float(np.mean(seconds_right(film, reading)))


def _to_view(frames: NDArray[np.uint8]) -> Image:
    """Average frames [n, H, W, 3] down to 96 rows, and to as many columns in proportion."""
    height, width = frames.shape[1:3]
    if height == VIEW_HEIGHT:
        return frames.astype(np.float32)
    rows = _averaging(height, VIEW_HEIGHT)
    columns = _averaging(width, round(width * VIEW_HEIGHT / height))
    return np.stack(
        [np.einsum("yh,hwc,xw->yxc", rows, each, columns, optimize=True) for each in frames]
    )


def _averaging(old: int, new: int) -> Image:
    """Weights [new, old] that average `old` cells into `new` ones by their common length."""
    edges = np.arange(new + 1) * (old / new)
    cells = np.arange(old)
    common = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.asarray(np.clip(common, 0, None) * (new / old), np.float32)


def _sample(frame: Image) -> _Sample:
    sky = sky_of(frame)
    return _Sample(sky, ground_of(frame, sky), find_subjects(frame))


def sky_of(frame: Image) -> str | None:
    """Word of `SKIES` whose gradient most of the sky of a frame [96, W, 3] shows, else None."""
    blend = np.clip((np.arange(_SKY_ROWS) + 0.5) / _SKY_HORIZON, 0, 1)[:, None]
    distances = {}
    for sky, (top, bottom, _) in SKY_RGB.items():
        rows = np.asarray(top) * (1 - blend) + np.asarray(bottom) * blend
        distances[sky] = np.linalg.norm(frame[:_SKY_ROWS] - rows[:, None], axis=-1)
    return _most_seen(distances, _SKY_RADIUS, _SKY_SHARE)


def ground_of(frame: Image, sky: str | None) -> str | None:
    """Word of `GROUNDS` that the foreground of a frame [96, W, 3] shows, else None.

    Args:
        frame: RGB levels 0..255.
        sky: tells the light on the ground; None tries the light of every sky.
    """
    pixels = frame[_GROUND_ROWS:]
    distances = {}
    for ground, (near, deep) in GROUND_RGB.items():
        lights = [np.asarray(SKY_RGB[each][2]) for each in ([sky] if sky else SKY_RGB)]
        shades = [(np.asarray(near) * light, np.asarray(deep) * light) for light in lights]
        distances[ground] = np.min([_to_shades(pixels, *each) for each in shades], axis=0)
    return _most_seen(distances, _GROUND_RADIUS, _GROUND_SHARE)


def _to_shades(
    pixels: Image, near: NDArray[np.float64], deep: NDArray[np.float64]
) -> NDArray[np.float64]:
    """RGB distance of pixels [..., 3] to the line of shades between two colours."""
    along = deep - near
    share = np.clip((pixels - near) @ along / (along @ along), 0, 1)
    return np.asarray(np.linalg.norm(pixels - near - share[..., None] * along, axis=-1))


def _most_seen(
    distances: dict[str, NDArray[np.float64]], radius: float, share: float
) -> str | None:
    """The word that most pixels are nearest to within `radius`, if they are `share` of all."""
    stack = np.stack(list(distances.values()))
    nearest = np.where(stack.min(0) < radius, stack.argmin(0), len(stack))
    shares = np.bincount(nearest.ravel(), minlength=len(stack) + 1)[:-1] / nearest.size
    best = int(shares.argmax())
    return list(distances)[best] if shares[best] >= share else None


def _majority(words: Sequence[str | None]) -> str | None:
    """The word that more than half of a non-empty list has, else None."""
    word, count = Counter(words).most_common(1)[0]
    return word if 2 * count > len(words) else None


def _by_second(samples: Sequence[_Sample], fps: float) -> list[list[_Sample]]:
    groups: dict[int, list[_Sample]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(int(i * STEP / fps), []).append(sample)
    return list(groups.values())


def _second(samples: Sequence[_Sample], tracks: Sequence[_Track]) -> Second:
    return Second(
        sky=_majority([sample.sky for sample in samples]),
        ground=_majority([sample.ground for sample in samples]),
        subjects=[(track.colour, track.shape) for track in tracks],
    )


def _tracks(samples: Sequence[_Sample]) -> list[_Track]:
    """Subjects that most of the samples show, left to right."""
    tracks = []
    for colour, sightings in _ranked([sample.sightings for sample in samples]):
        overlaps = shape_overlaps([each.window for each in sightings])
        best = int(overlaps.argmax())
        if 2 * len(sightings) > len(samples) and overlaps[best] >= FOUND_OVERLAP:
            shape = SHAPES[best] if overlaps[best] >= SHAPE_OVERLAP else None
            tracks.append(_Track(colour, shape, float(np.median([each.x for each in sightings]))))
    return sorted(tracks, key=lambda track: track.x)


def _lasting(seconds: Sequence[Sequence[_Track]]) -> list[_Track]:
    """Subjects that most of the seconds show, left to right."""
    lasting = []
    for colour, tracks in _ranked(seconds):
        if 2 * len(tracks) > len(seconds):
            shape = _majority([track.shape for track in tracks])
            lasting.append(_Track(colour, shape, float(np.median([track.x for track in tracks]))))
    return sorted(lasting, key=lambda track: track.x)


def _ranked(groups: Sequence[Sequence[_Coloured]]) -> Iterator[tuple[str, list[_Coloured]]]:
    """Members of one colour over all groups; should a group have two of it, these stay apart."""
    ranked: dict[tuple[str, int], list[_Coloured]] = {}
    for group in groups:
        ranks: Counter[str] = Counter()
        for member in group:
            ranked.setdefault((member.colour, ranks[member.colour]), []).append(member)
            ranks[member.colour] += 1
    yield from ((colour, members) for (colour, _), members in ranked.items())


def _path(ways: NDArray[np.float64]) -> list[float | None]:
    """Where the camera was at each sample; None after a step that could not be read."""
    path = np.concatenate([[0.0], np.nancumsum(ways)])
    known = np.concatenate([[True], np.isfinite(ways)])
    return [round(float(place), 2) if k else None for place, k in zip(path, known, strict=True)]
