"""Folders of films, each made with one setting, compared over the prompts and seeds they share."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cfgen.errors import InputRefused
from cfgen.files.reading import read_text
from cfgen.metrics.paired import Paired, paired_bootstrap
from cfgen.scoring.api import ScoredFilm
from cfgen.video.output import is_film

Key = tuple[str, int]
"""A prompt and a seed."""

LOWER = "less is better"
HIGHER = "more is better"
BESIDE = ""

DIRECTIONS = {
    "motion": BESIDE,
    "flicker": BESIDE,
    "seam ratio": LOWER,
    "saturation drift": LOWER,
    "contrast drift": LOWER,
    "detail drift": LOWER,
    "motion ratio": HIGHER,
    "in clip": HIGHER,
    "clip to clip": HIGHER,
    "to first frame": HIGHER,
    "late identity": HIGHER,
    "retention": HIGHER,
}
"""Which way each figure is better; motion has none, and tells whether the others come from rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A figure of one setting against the first.

    Attributes:
        figure: Its name, of `DIRECTIONS`.
        base: Mean over prompts of the first setting, of the films that both have.
        other: The same of the other setting.
        paired: Their difference, and how sure it is.
    """

    figure: str
    base: float
    other: float
    paired: Paired


def films_in(folder: Path) -> list[Path]:
    """The films under a folder that have a sidecar with prompt and seed, in order of their names.

    Raises:
        InputRefused: It is no folder, or has none.
    """
    if not folder.is_dir():
        raise InputRefused(f"{folder} is no folder of films", "--paired compares folders")
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.endswith(".cfgen"))
        held = {
            name
            for name in (*names, *folders)
            if f"{name}.json" in names and is_film(Path(place, name))
        }
        folders[:] = [name for name in folders if name not in held]
        found += [Path(place, name) for name in sorted(held) if _told(Path(place, f"{name}.json"))]
    if not found:
        raise InputRefused(f"{folder} holds no film of cfgen with its .json beside it")
    return found


def by_key(films: Iterable[ScoredFilm]) -> dict[Key, ScoredFilm]:
    """Films by prompt and seed.

    Raises:
        InputRefused: Two have the same, or one has none.
    """
    found: dict[Key, ScoredFilm] = {}
    for film in films:
        source = film.source
        if source.prompt is None or source.seed is None:
            raise InputRefused(
                f"{source.path} does not tell its prompt and seed, or changed since it was made"
            )
        other = found.setdefault((source.prompt, source.seed), film)
        if other is not film:
            raise InputRefused(
                f"{source.path} and {other.source.path} have the same prompt and seed",
                "keep the films of each setting in a folder of its own",
            )
    return found


def figures_of(film: ScoredFilm) -> dict[str, float]:
    """The figures of a film that can be told, by name of `DIRECTIONS`."""
    score, embedding = film.score, film.embedding
    told: dict[str, float | None] = {
        "motion": score.motion,
        "flicker": score.flicker,
        "seam ratio": None if score.seams is None else score.seams.ratio,
        "motion ratio": score.drift.motion.ratio,
    }
    for name in ("saturation", "contrast", "detail"):
        told[f"{name} drift"] = _away(getattr(score.drift, name).ratio)
    if embedding is not None:
        marks = embedding.to_first_by_mark
        told |= {
            "in clip": embedding.in_clip,
            "clip to clip": embedding.clip_to_clip,
            "to first frame": marks[max(marks)] if marks else None,
            "late identity": embedding.identity.get("late"),
            "retention": embedding.identity.get("retention"),
        }
    found = ((name, told.get(name)) for name in DIRECTIONS)
    return {name: value for name, value in found if value is not None}


def compare_settings(
    base: Mapping[Key, ScoredFilm], other: Mapping[Key, ScoredFilm]
) -> tuple[Compared, ...]:
    """Compare all figures that both settings have of two prompts or more.

    Raises:
        InputRefused: They share fewer than two prompts.
    """
    ones, twos = ({key: figures_of(film) for key, film in each.items()} for each in (base, other))
    shared = sorted(set(ones) & set(twos))
    if len({prompt for prompt, _ in shared}) < 2:
        paired_bootstrap(dict.fromkeys(ones, 0.0), dict.fromkeys(twos, 0.0))  # which refuses
    found = []
    for name in DIRECTIONS:
        keys = [key for key in shared if name in ones[key] and name in twos[key]]
        if len({prompt for prompt, _ in keys}) >= 2:
            one, two = ({key: each[key][name] for key in keys} for each in (ones, twos))
            mean = _mean_over_prompts(one)
            paired = paired_bootstrap(one, two)
            found.append(
                Compared(figure=name, base=mean, other=mean + paired.difference, paired=paired)
            )
    return tuple(found)


def _mean_over_prompts(values: Mapping[Key, float]) -> float:
    prompts = sorted({prompt for prompt, _ in values})
    means = (_mean([v for key, v in values.items() if key[0] == prompt]) for prompt in prompts)
    return _mean(list(means))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _away(ratio: float | None) -> float | None:
    """How far a ratio is from 1, as the absolute value of its logarithm."""
    return abs(math.log(ratio)) if ratio else None


def told_pairs(films: Iterable[Path]) -> Iterator[tuple[Path, Key]]:
    """Films with their prompt and seed; those that tell none are left out."""
    for film in films:
        if told := _told(film.with_name(f"{film.name}.json")):
            yield film, told


def _told(sidecar: Path) -> Key | None:
    """The prompt and seed that a sidecar tells, or None."""
    try:
        metadata = json.loads(read_text(sidecar))["metadata"]
        prompt, seed = metadata["prompt"], metadata["seed"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(prompt, str) or not isinstance(seed, str) or not seed.isdecimal():
        return None
    return prompt, int(seed)
