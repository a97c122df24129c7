"""What the scores of the return test say: means over films, effective contexts, how sure they are.

Axis letters: R draws of films, N films, T times away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfgen.metrics.intervals import bootstrap_ratio, quantiles, resampled
from cfgen.plain_text import aligned
from cfgen.train.film_world.return_test import (
    ENOUGH,
    ReturnScore,
    effective_context,
)
from cfgen.train.film_world.return_test import figures_of as means_of

Line = dict[str, Any]
Scores = Mapping[float, Mapping[int, ReturnScore]]
"""Scores by time away and number of the film."""

_NAMES = [field.name for field in fields(ReturnScore)]


def rows_of(lines: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Figures for each way, policy and time away, and effective contexts.

    Args:
        lines: scores, as `return_probe.scores` writes them.

    Returns:
        By way and policy, the times in rising order: those, the figures of
        `return_test.figures_of`, `hit_low` and `hit_high` (interval of 95 percent of the hit rate),
        `effective_context_s` and its interval `effective_context_low_s` to
        `effective_context_high_s`, the same in each row of a policy. An interval of fewer than two
        films is None.
    """
    groups: dict[tuple[str, str], dict[float, dict[int, ReturnScore]]] = {}
    for line in lines:
        score = ReturnScore(**{name: line[name] for name in _NAMES})
        by_time = groups.setdefault((line["way"], line["policy"]), {})
        by_time.setdefault(line["away_s"], {})[line["film"]] = score
    found = []
    for (way, policy), by_time in groups.items():
        shared = {"way": way, "policy": policy} | context_of(by_time)
        for away, films in sorted(by_time.items()):
            scores = list(films.values())
            row = {"away_s": away} | means_of(scores) | _hit_interval(scores)
            found.append(shared | row)
    return found


def context_of(by_time: Scores) -> Line:
    """The effective context, s, with the interval that drawing films with replacement gives.

    A film is drawn with its scores of all times away.
    """
    above = {
        away: float(np.mean([each.is_above_control for each in films.values()]))
        for away, films in by_time.items()
    }
    found: Line = {"effective_context_s": effective_context(above)}
    low, high = _context_interval(by_time)
    return found | {"effective_context_low_s": low, "effective_context_high_s": high}


def _context_interval(by_time: Scores) -> tuple[float | None, float | None]:
    numbers = sorted({number for films in by_time.values() for number in films})
    if len(numbers) < 2:
        return None, None
    times = sorted(by_time)
    above, has = np.zeros((2, len(numbers), len(times)))
    for column, away in enumerate(times):
        for row, number in enumerate(numbers):
            if number in by_time[away]:
                has[row, column] = 1
                above[row, column] = by_time[away][number].is_above_control
    chosen = resampled(len(numbers))
    enough = above[chosen].sum(1) >= ENOUGH * np.maximum(has[chosen].sum(1), 1)
    reached: NDArray[np.int64] = np.cumprod(enough, axis=1).sum(1)  # [R] times before a failure
    return quantiles(np.array([0.0, *times])[reached])


def _hit_interval(scores: Sequence[ReturnScore]) -> Line:
    named = np.array([each.named for each in scores], np.float64)
    landmarks = np.array([each.landmarks for each in scores], np.float64)
    if not landmarks.sum():
        return {"hit_low": None, "hit_high": None}
    interval = bootstrap_ratio(named, landmarks)
    return {"hit_low": interval.low, "hit_high": interval.high}


HEADS = (
    *("way", "policy", "away", "films", "hits", "control", "PSNR", "control", "wins", "first"),
    *("above control", "effective context"),
)


def cells_of(row: Line) -> tuple[str, ...]:
    """A row in words, under HEADS."""
    return (
        *(row["way"], row["policy"], f"{row['away_s']:g} s", str(row["films"])),
        *(f"{row['hit_rate']:.0%}", f"{row['control_rate']:.0%}"),
        *(f"{row['psnr']:.1f}", f"{row['control_psnr']:.1f}", f"{row['win_rate']:.2f}"),
        *(f"{row['first_places']:.0%}", f"{row['above_control']:.0%}"),
        context_text(row),
    )


def context_text(row: Line) -> str:
    """An effective context in words, with its interval."""
    told, low = f"{row['effective_context_s']:g} s", row["effective_context_low_s"]
    return told if low is None else f"{told} ({low:g} to {row['effective_context_high_s']:g})"


def table_of(rows: Sequence[Line]) -> str:
    """Rows as a table of text, one line each."""
    return "\n".join(aligned([HEADS, *map(cells_of, rows)]))
