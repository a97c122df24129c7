"""How sure a mean is: intervals of 95 percent, for rates and for measures of films."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from cfgen.metrics.paired import LEVEL

RESAMPLES = 2000
_TAIL = (1 - LEVEL) / 2


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and how far off it may be.

    Attributes:
        mean: Of all values.
        low: Lower end of the interval of 95 percent; None where it is not known.
        high: Upper end of it; None where it is not known.
        count: How many values there are.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


def wilson(right: int, count: int) -> Interval:
    """The score interval of a rate.

    Values count as independent; shots of one film are alike, so theirs is a little too narrow.
    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927).

    Args:
        right: How many values are right.
        count: Of how many.

    Raises:
        ValueError: `count` is below 1, or `right` is not in 0..count.
    """
    if not 0 <= right <= count or count < 1:
        raise ValueError(f"{right} of {count} is not a rate")
    z = NormalDist().inv_cdf(1 - _TAIL)
    rate, spread = right / count, z * z / count
    middle = (rate + spread / 2) / (1 + spread)
    half = z * sqrt(rate * (1 - rate) / count + spread / (4 * count)) / (1 + spread)
    low = 0.0 if right == 0 else middle - half
    high = 1.0 if right == count else middle + half
    return Interval(rate, low, high, count)


def bootstrap_mean(films: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """The mean of the values of several films; films are drawn with replacement, whole.

    Args:
        films: The values of each film, which are alike; a film may have none.
        seed: Of the draws.

    Raises:
        ValueError: No film has a value.
    """
    sums = np.array([sum(values) for values in films], dtype=np.float64)
    counts = np.array([len(values) for values in films], dtype=np.float64)
    return bootstrap_ratio(sums, counts, seed=seed)


def bootstrap_ratio(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], *, seed: int = 0
) -> Interval:
    """A mean whose values are already summed film by film.

    Args:
        sums: Sum of the values of each film, [films].
        counts: How many values each film has, [films].
        seed: Of the draws.

    Raises:
        ValueError: There is no value.
    """
    if not counts.sum():
        raise ValueError("there is no value to take the mean of")
    has = counts > 0
    mean, count = float(sums.sum() / counts.sum()), int(counts.sum())
    if has.sum() < 2:
        return Interval(mean, None, None, count)
    chosen = resampled(int(has.sum()), seed=seed)
    means = sums[has][chosen].sum(1) / counts[has][chosen].sum(1)
    low, high = quantiles(means)
    return Interval(mean, low, high, count)


def resampled(films: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Numbers of films drawn with replacement: int64 [RESAMPLES, films]."""
    return np.random.default_rng(seed).integers(0, films, (RESAMPLES, films))


def quantiles(draws: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the interval of a figure of every draw, [RESAMPLES]."""
    low, high = np.quantile(draws, [_TAIL, 1 - _TAIL]).tolist()
    return low, high
