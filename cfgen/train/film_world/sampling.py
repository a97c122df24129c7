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
    """Draw a structure of so many chunks; most show a place again that was shown before."""
    rng = rng_for(seed, "structure", chunks)
    if chunks == 1 or rng.uniform() < 0.08:
        return Structure(((0, chunks, "cut"),))
    longest = max(2, min(10, chunks // 3))
    shots = [(0, _length(rng, longest, chunks), "cut")]
    places, moving = 1, False
    while left := chunks - sum(length for _, length, _ in shots):
        here = shots[-1][0]
        chances = {
            "new": 0.35 if places < 3 else 0.0,
            "return": 0.5 if places > 1 else 0.0,
            "pan": 0.0 if moving else 0.2,
            "back": 0.6 if moving else 0.0,
            "subject": 0.1,
            "sky": 0.05,
        }
        names, weights = list(chances), np.array(list(chances.values()))
        change = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        length = shots[-1][1] if change == "back" else _length(rng, longest, left)
        length = min(length, left)
        if change == "new":
            shots.append((places, length, "cut"))
            places += 1
        elif change == "return":
            others = [place for place in range(places) if place != here]
            shots.append((others[int(rng.integers(len(others)))], length, "cut"))
        else:
            shots.append((here, length, change))
        moving = change == "pan" or (moving and change in ("subject", "sky", "back"))
    return Structure(tuple(shots))


def _length(rng: np.random.Generator, longest: int, left: int) -> int:
    return min(left, int(rng.integers(1, longest + 1)))


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
