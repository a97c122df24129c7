"""Draws films of the film world: their structure first, then what is to be seen."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.subjects import SHAPES
from cfgen.train.film_world.world import (
    COLOURS,
    GROUNDS,
    MOTIONS,
    SKIES,
    SPEEDS,
    Film,
    Place,
    Shot,
    Subject,
)

CHANGES = ("cut", "pan", "back", "subject", "sky")


@dataclass(frozen=True, slots=True)
class Structure:
    """What all films of a family share.

    Attributes:
        shots: of each shot its place, its chunks and how it begins: `cut` to the place; `pan`, the
            camera of the same place begins to move; `back`, it moves the other way as fast;
            `subject`, a subject leaves and another comes; `sky`, it changes.
    """

    shots: tuple[tuple[int, int, str], ...]

    def __post_init__(self) -> None:
        place = None
        for at, chunks, change in self.shots:
            if change not in CHANGES or chunks < 1:
                raise ValueError(f"a shot must be one of {CHANGES} and last a chunk or more")
            if change != "cut" and at != place:
                raise ValueError(f"{change!r} goes on in the place of the shot before")
            place = at


def sample_structure(seed: int, chunks: int) -> Structure:
    """Draw a structure of so many chunks; most show a place again that was shown before.

    The time away is drawn evenly on a logarithmic scale, up to what the length allows.
    """
    rng = rng_for(seed, "structure", chunks)
    if chunks == 1 or rng.uniform() < 0.08:
        return Structure(((0, chunks, "cut"),))
    pace = 1 if chunks < 8 or rng.uniform() < 0.15 else 2
    shots = [(0, _even(rng, pace, max(pace, chunks // 4)), "cut")]
    while left := chunks - sum(length for _, length, _ in shots):
        here, places = shots[-1][0], 1 + max(place for place, _, _ in shots)
        chances = {
            "away": 0.5 if left >= 2 * pace else 0.0,
            "move": 0.15 if places < _MOST_PLACES and left >= pace else 0.0,
            "out": 0.3 if left >= 2 * pace else 0.0,
            "subject": 0.13 if left >= _LEAST["subject"] else 0.0,
            "sky": 0.07 if left >= _LEAST["sky"] else 0.0,
        }
        names, weights = list(chances), np.array(list(chances.values()))
        if not weights.any():
            shots[-1] = (here, shots[-1][1] + left, shots[-1][2])
            break
        change = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        if change == "away":
            shots += _away(rng, pace, here, places, left)
        elif change == "out":
            out = _even(rng, 2 * pace, min(_LONGEST_AWAY, left)) // 2
            shots += [(here, out, "pan"), (here, out, "back")]
        elif change == "move":
            shots.append((places, _even(rng, pace, max(pace, left // 3)), "cut"))
        else:
            least = _LEAST[change]
            shots.append((here, _even(rng, least, max(least, left // 3)), change))
    return Structure(tuple(shots))


_LEAST = {"subject": 2, "sky": 3}
"""Chunks that a change takes to be done: a second and two seconds."""
_LONGEST_AWAY = 40
"""In chunks: 30 seconds."""
_MOST_PLACES = 3


def _away(
    rng: np.random.Generator, pace: int, here: int, places: int, left: int
) -> list[tuple[int, int, str]]:
    """Up to three shots elsewhere, then the place of before: together at most `left` chunks."""
    longest = min(_LONGEST_AWAY, left - pace)
    away = _even(rng, min(pace + 1, longest), longest)
    parts = min(away // pace, int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])))
    lengths = [pace] * parts
    for part in rng.integers(parts, size=away - pace * parts).tolist():
        lengths[part] += 1
    shots: list[tuple[int, int, str]] = []
    for length in lengths:
        last = shots[-1][0] if shots else here
        others = [p for p in range(min(_MOST_PLACES, places + 1)) if p not in (here, last)]
        place = others[int(rng.integers(len(others)))]
        places = max(places, place + 1)
        shots.append((place, length, "cut"))
    back = _even(rng, pace, max(pace, (left - away) // 2))
    return [*shots, (here, back, "cut")]


def _even(rng: np.random.Generator, least: int, most: int) -> int:
    """A number from least to most, evenly on a logarithmic scale."""
    drawn = np.exp(rng.uniform(np.log(least), np.log(most + 1)))
    return int(np.clip(drawn, least, most))


def sample_film(
    seed: int, *, structure: Structure | None = None, chunks: int = 10, held_out: bool = False
) -> Film:
    """Draw a film; one in ten combinations of sky, ground, colour, shape is kept out of training.

    Args:
        seed: any integer; the same seed and structure give the same film.
        structure: its shots; drawn too if None.
        chunks: its length if no structure is given.
        held_out: every shot shows a combination that training never sees.
    """
    rng = rng_for(seed, "film", int(held_out))
    structure = structure or sample_structure(int(rng.integers(2**31)), chunks)
    while True:
        film = _fill(structure, rng, held_out)
        if film is not None:
            return film


def _fill(structure: Structure, rng: np.random.Generator, held_out: bool) -> Film | None:
    """One try; None where a change of sky finds no sky that is allowed."""
    grounds = [GROUNDS[i] for i in rng.permutation(len(GROUNDS))]
    count = 1 + max(place for place, _, _ in structure.shots)
    places = tuple(Place(grounds[i], int(rng.integers(2**31))) for i in range(count))
    skies = [_choose(rng, SKIES) for _ in range(count)]
    cast: dict[int, tuple[Subject, ...]] = {}
    shots: list[Shot] = []
    for number, (place, chunks, change) in enumerate(structure.shots):
        ground = places[place].ground
        if change == "sky":
            others = [s for s in SKIES if s != skies[place]]
            allowed = [s for s in others if _fits(s, ground, cast[place], held_out)]
            if not allowed:
                return None
            skies[place] = _choose(rng, allowed)
        kept = () if change != "subject" else cast[place][1:]
        if place not in cast or change == "subject" or (change == "cut" and rng.uniform() < 0.4):
            size = len(cast[place]) if change == "subject" else _cast_size(rng)
            avoid = cast.get(place, ()) if change == "subject" else ()
            cast[place] = _draw_cast(rng, skies[place], ground, size, kept, avoid, held_out)
        camera, speed = _camera(rng, change, shots[-1] if shots else None, structure, number)
        cut = change == "cut"
        shots.append(Shot(place, skies[place], camera, speed, cast[place], chunks, cut))
    return Film(places, tuple(shots), int(rng.integers(2**31)))


def _camera(
    rng: np.random.Generator, change: str, before: Shot | None, structure: Structure, number: int
) -> tuple[str, str]:
    if before is None or change == "cut":
        begins = structure.shots[number + 1 : number + 2]
        still = rng.uniform() < 0.5 or (begins and begins[0][2] == "pan")
        return "still" if still else _choose(rng, ("left", "right")), _choose(rng, SPEEDS)
    if change == "pan":
        return _choose(rng, ("left", "right")), _choose(rng, SPEEDS)
    if change == "back":
        opposite = {"left": "right", "right": "left", "still": _choose(rng, ("left", "right"))}
        return opposite[before.camera], before.speed
    return before.camera, before.speed


def _cast_size(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))


def _draw_cast(
    rng: np.random.Generator,
    sky: str,
    ground: str,
    size: int,
    kept: tuple[Subject, ...],
    avoid: tuple[Subject, ...],
    held_out: bool,
) -> tuple[Subject, ...]:
    """Subjects of different shapes and colours; those that are kept stand where they stood."""
    while True:
        shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
        colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))]
        used = kept + avoid
        shapes = [s for s in shapes if s not in {each.shape for each in used}]
        colours = [c for c in colours if c not in {each.colour for each in used}]
        new = size - len(kept)
        drawn = tuple(
            Subject(shape, colour, _choose(rng, MOTIONS))
            for shape, colour in zip(shapes[:new], colours[:new], strict=True)
        )
        if _fits(sky, ground, drawn + kept, held_out):
            return drawn + kept


def _fits(sky: str, ground: str, subjects: tuple[Subject, ...], held_out: bool) -> bool:
    return any(_is_kept_out(sky, ground, s) for s in subjects) == held_out


def is_held_out(film: Film) -> bool:
    """Whether any subject of the film forms a combination that training never sees."""
    return any(
        _is_kept_out(shot.sky, film.places[shot.place].ground, subject)
        for shot in film.shots
        for subject in shot.subjects
    )


def _is_kept_out(sky: str, ground: str, s: Subject) -> bool:
    return zlib.crc32(f"{sky} {ground} {s.colour} {s.shape}".encode()) % 10 == 0


def _choose(rng: np.random.Generator, words: tuple[str, ...] | list[str]) -> str:
    return words[int(rng.integers(len(words)))]
