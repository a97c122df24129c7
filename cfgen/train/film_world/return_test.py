"""The return test: does a film that comes back to a place show what it showed before?

A case is a film that leaves a place A and comes back: by a cut to another place B and back, or by a
pan out and back. It may begin elsewhere, at a place C, so that the first frames that a memory keeps
do not show A. The pictures of the return are compared with the truth, and with worlds of the same
captions whose places have other seeds, so that chance is known.

Axis letters: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cfgen.train.film_world.detect_landmarks import hidden_pixels, name_landmarks, pixels_of
from cfgen.train.film_world.detect_scene import to_view
from cfgen.train.film_world.sampling import Structure, sample_film
from cfgen.train.film_world.world import (
    FIRST_CHUNK_LACKS,
    FPS,
    FRAMES_PER_CHUNK,
    HEIGHT,
    WIDTH,
    Film,
    LandmarkBox,
    landmark_boxes,
    render,
    shot_of,
)

Frames = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Image = NDArray[np.float32]

AWAY_S = (2.0, 4.0, 8.0, 16.0, 24.0)
"""How long a film stays away, in seconds."""
WAYS: tuple[Literal["cut", "pan"], ...] = ("cut", "pan")
GENERATED = 3
"""Chunks of the return that are generated."""
VISIT = 2
"""Chunks of the first visit, and of the place that a film begins with."""
WORLDS = 19
"""Worlds that the truth is told from."""
FIRST_SEED = 8_100_000
ENOUGH = 0.75
"""Share of films with hits above control up to which context counts as effective."""
_SLIDE = range(-4, 5)
"""Units that a picture may lie to the side; a model's pan is not exact."""
_SEEN = 0.25


@dataclass(frozen=True, slots=True)
class Case:
    """A film and the part of it that is generated.

    Attributes:
        film: its description.
        way: one of WAYS.
        away_s: nominal seconds away.
        first: the first chunk that is generated when the past is given; all after it are too.
        left: the chunk after which the place was left.
    """

    film: Film
    way: str
    away_s: float
    first: int
    left: int

    @property
    def structure(self) -> tuple[tuple[int, int], ...]:
        """Place and chunks of each shot; cases of one structure can share a batch."""
        return tuple((shot.place, shot.chunks) for shot in self.film.shots)

    @property
    def frames(self) -> range:
        """Frames of the chunks that are generated."""
        return range(first_frame(self.first), self.film.frames)


def first_frame(chunk: int) -> int:
    """The first pixel frame of a chunk."""
    return max(0, FRAMES_PER_CHUNK * chunk - FIRST_CHUNK_LACKS)


def make_case(way: str, away_s: float, index: int, *, elsewhere: bool = True) -> Case:
    """A case of a fixed list of held-out films.

    Args:
        way: `cut` (away at another place) or `pan` (half of the time out, half of it back).
        away_s: seconds away, rounded to whole chunks.
        index: number of the film.
        elsewhere: whether the film begins at another place.

    Raises:
        ValueError: an unknown way.
    """
    if way not in WAYS:
        raise ValueError(f"the way must be one of {WAYS}, got {way!r}")
    chunks = away_s * FPS / FRAMES_PER_CHUNK
    start = ((0, VISIT, "cut"),) if elsewhere else ()
    a = len(start)
    if way == "cut":
        away = max(1, round(chunks))
        rest = ((a, VISIT, "cut"), (a + 1, away, "cut"), (a, GENERATED, "cut"))
        generated = GENERATED
    else:
        away = max(1, round(chunks / 2))
        rest = ((a, VISIT, "cut"), (a, away, "pan"), (a, away, "back"))
        generated = min(GENERATED, away)
    film = sample_film(FIRST_SEED + index, structure=Structure(start + rest), held_out=True)
    shots = [replace(shot, camera="still") for shot in film.shots]
    if way == "pan":
        out, back = ("right", "left") if index % 2 else ("left", "right")
        shots[-2] = replace(shots[-2], camera=out, speed="fast")
        shots[-1] = replace(shots[-1], camera=back, speed="fast")
    film = replace(film, shots=tuple(shots))
    left = len(start) * VISIT + VISIT - 1
    return Case(film, way, away_s, film.chunks - generated, left)


def other_world(film: Film, number: int) -> Film:
    """The same captions in other places: hills, clouds and landmarks differ; 0 is the film."""
    if number == 0:
        return film
    places = tuple(
        replace(place, seed=(place.seed + 7919 * number) % 2**31) for place in film.places
    )
    return replace(film, places=places)


def kept_chunks(case: Case, room: int) -> frozenset[int]:
    """Chunks that a memory with `room` for so many should keep: those that show what comes back.

    Those of the first visit, and for a pan as many of the way out as there is room for, spread
    evenly from the place where it began.
    """
    visit = list(range(case.left - VISIT + 1, case.left + 1))
    if case.way == "cut":
        return frozenset(visit[:room])
    out = case.film.shots[-2].chunks
    generated = case.film.chunks - case.first
    way = [case.left + 1 + i for i in range(min(out, generated + 1))]
    return frozenset((visit[-1:] + way)[:room])


@dataclass(frozen=True, slots=True)
class ReturnScore:
    """How much of the truth the pictures of a return show.

    Attributes:
        named: landmarks whose kind is right, of `landmarks`.
        landmarks: landmarks that could be looked for.
        control_named: the same for the landmarks of another world, of `control_landmarks`.
        control_landmarks: landmarks of that world.
        psnr: of the boxes of landmarks against the truth, dB.
        control_psnr: of the same pixels against the other world, dB.
        wins: share of the other worlds that the truth beats.
        is_first: whether it beats them all; by chance in 5 % of cases.
    """

    named: int
    landmarks: int
    control_named: int
    control_landmarks: int
    psnr: float
    control_psnr: float
    wins: float
    is_first: bool

    @property
    def hit_rate(self) -> float:
        """Share of landmarks by name; NaN if there was none."""
        return self.named / self.landmarks if self.landmarks else float("nan")

    @property
    def control_rate(self) -> float:
        """The same for the other world."""
        found = self.control_landmarks
        return self.control_named / found if found else float("nan")

    @property
    def is_above_control(self) -> bool:
        """Whether more is right by name than in the other world; else, that it beats all worlds."""
        if self.landmarks and self.control_landmarks and self.hit_rate != self.control_rate:
            return self.hit_rate > self.control_rate
        return self.is_first


def score_return(case: Case, frames: Frames) -> ReturnScore:
    """Score the frames of the generated chunks of a case.

    Args:
        case: the case.
        frames: [len(case.frames), H, W, 3] uint8 RGB at the world's size; the last frame of the
            first chunk that shows the place whole, and the last frame of all, are looked at.

    Raises:
        ValueError: another number or size of frames.
    """
    if frames.shape != (len(case.frames), HEIGHT, WIDTH, 3):
        raise ValueError(f"expected {len(case.frames)} frames of 320x192, got {frames.shape}")
    at = case.film.frames - 1
    frame = frames[-1]
    truth, control = _world(case, 0), _world(case, 1)
    named = _named(case, truth, frame, at)
    other = _named(case, control, frame, at)
    errors = _errors(case, frame)
    pair = _errors(case, frame, worlds=2)
    beaten = errors[1:] > errors[0]
    return ReturnScore(
        named=sum(named),
        landmarks=len(named),
        control_named=sum(other),
        control_landmarks=len(other),
        psnr=_psnr(pair[0]),
        control_psnr=_psnr(pair[1]),
        wins=float(beaten.mean()),
        is_first=bool(beaten.all()),
    )


@dataclass(frozen=True)
class _World:
    """What a world shows at the last frame of a case."""

    view: Image
    boxes: list[LandmarkBox]


@lru_cache(4096)
def _world(case: Case, number: int) -> _World:
    """A world of a case, its picture without subjects at 96 rows."""
    film = other_world(case.film, number)
    at = film.frames - 1
    bare = replace(film, shots=tuple(replace(shot, subjects=()) for shot in film.shots))
    return _World(to_view(render(bare, at, at + 1))[0], _returning(case, film))


def _returning(case: Case, film: Film) -> list[LandmarkBox]:
    """Landmarks of a film's last frame that the last given frame did not show."""
    before = case.frames.start - 1
    shots = shot_of(film, film.frames)
    known = {
        (box.place, box.cell)
        for box in landmark_boxes(film, before)
        if box.share > _SEEN and film.shots[int(shots[before])].place == box.place
    }
    return [
        box for box in landmark_boxes(film, film.frames - 1) if (box.place, box.cell) not in known
    ]


def _named(case: Case, world: _World, frame: Frames, at: int) -> list[bool]:
    hidden = hidden_pixels(case.film, at)
    sky = case.film.shots[-1].sky
    return [each.is_right for each in name_landmarks(frame, world.boxes, sky, hidden)]


def _errors(case: Case, frame: Frames, worlds: int = WORLDS + 1) -> NDArray[np.float64]:
    """Mean squared error of a picture against each world, in the boxes of all of them: [worlds].

    All worlds are compared in the same pixels, so that none is favoured, each at the displacement
    that suits it best.
    """
    view = to_view(frame[None])[0]
    shown = [_world(case, number) for number in range(worlds)]
    region = np.zeros((HEIGHT, WIDTH), bool)
    for world in shown:
        for box in world.boxes:
            region[pixels_of(box, margin=1.0)] = True
    region &= ~hidden_pixels(case.film, case.film.frames - 1, margin=3.0)
    small = region[::2, ::2]
    if not small.any():
        return np.zeros(worlds)
    return np.array([_least_error(view, world.view, small) for world in shown])


def _least_error(view: Image, wanted: Image, region: Mask) -> float:
    width, best = view.shape[1], np.inf
    for way in _SLIDE:
        here = slice(max(0, way), width + min(0, way))
        there = slice(max(0, -way), width - max(0, way))
        seen = region[:, here]
        if seen.any():
            squares = np.square(view[:, here] - wanted[:, there])[seen]
            best = min(best, float(squares.mean()))
    return best


def _psnr(error: float) -> float:
    return float(10 * np.log10(255**2 / max(error, 0.1)))


def own_return(before: Frames, after: Frames, other: Frames) -> tuple[float, float]:
    """For a film that was generated whole: PSNR of its return against its own departure.

    Args:
        before: the picture [H, W, 3] at which the film left the place.
        after: the picture at which it is back.
        other: the picture at which another film of the same prompts, from other noise, left.

    Returns:
        PSNR of `after` against `before` and against `other` in the rows of landmarks, dB.
    """
    views = to_view(np.stack([before, after, other]))
    region = np.zeros(views.shape[1:3], bool)
    region[46:76] = True
    own, foreign = (_least_error(views[1], views[i], region) for i in (0, 2))
    return _psnr(own), _psnr(foreign)


def figures_of(scores: Sequence[ReturnScore]) -> dict[str, float]:
    """Means over films: hit rates, PSNR, wins, and the share of films above their control."""
    landmarks = max(1, sum(each.landmarks for each in scores))
    others = max(1, sum(each.control_landmarks for each in scores))
    return {
        "films": len(scores),
        "landmarks": sum(each.landmarks for each in scores),
        "hit_rate": sum(each.named for each in scores) / landmarks,
        "control_rate": sum(each.control_named for each in scores) / others,
        "psnr": float(np.mean([each.psnr for each in scores])),
        "control_psnr": float(np.mean([each.control_psnr for each in scores])),
        "win_rate": float(np.mean([each.wins for each in scores])),
        "first_places": float(np.mean([each.is_first for each in scores])),
        "above_control": float(np.mean([each.is_above_control for each in scores])),
    }


def effective_context(above_control: dict[float, float]) -> float:
    """The longest time away, s, up to which enough films show more of the truth than of control.

    Args:
        above_control: share of films above their control, by time away.
    """
    longest = 0.0
    for away, share in sorted(above_control.items()):
        if share < ENOUGH:
            break
        longest = float(away)
    return longest
