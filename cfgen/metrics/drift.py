"""How a figure of a film goes from its beginning to its end, second by second.

Ratios as in analysis/metrics/compute.py of Commit Forcing, for films of 48 seconds; the last fifth
against the same early seconds, for films of any length; the difference of Helios.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cfgen.metrics.levels import FilmLevels, Frame, Reals, frame_levels

STRIDE = 2
"""Levels are averaged over every second frame; change over all."""

EARLY = (4, 8)
LATE = (38, 48)
"""Seconds that are compared, half open."""

LAST_SHARE = Fraction(1, 5)
END_SHARE = Fraction(3, 20)
"""Shares of a film that stand for its end; Helios compares 15 percent at either end."""

STEADY = (0.8, 1.25)
"""Ratios of saturation, contrast and detail within which a film holds."""

LEAST_MOTION = 0.85
"""Ratio of motion below which a film has come to rest."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How one figure goes over a film.

    Attributes:
        seconds: Mean of each second, float64; NaN for a second of which no frame counts.
        ratio: Mean of the last fifth over the mean of `EARLY`; None for a film that is too short
            for its last fifth to begin after `EARLY`, or whose early mean is 0.
        late_ratio: Mean of the seconds of `LATE` over those of `EARLY`; None if `LATE` is not
            whole, or the early mean is 0.
        ends: Absolute difference of the means of the first and the last 15 percent; None without
            frames there.
    """

    seconds: Reals
    ratio: float | None
    late_ratio: float | None
    ends: float | None


def per_second(values: Reals, fps: Fraction, *, stride: int = 1) -> Reals:
    """Mean of each second of a film; frame n belongs to second floor(n / fps).

    Args:
        values: float64 [frames]; NaN does not count.
        fps: Frames per second.
        stride: Every how manyth frame counts.

    Returns:
        float64 [seconds], the last of which may have fewer frames; NaN where none counts.
    """
    numbers = np.arange(0, len(values), stride)
    picked = values[::stride]
    second = numbers * fps.denominator // fps.numerator
    counted = ~np.isnan(picked)
    bins = math.ceil(len(values) / fps)
    total = np.bincount(second[counted], weights=picked[counted], minlength=bins)
    each = np.bincount(second[counted], minlength=bins)
    means = np.full(bins, np.nan)
    np.divide(total, each, out=means, where=each > 0)
    return means


def drift(values: Reals, fps: Fraction, *, stride: int = STRIDE) -> Drift:
    """Follow a figure of each frame, float64 [frames], over a film.

    Args:
        values: The figure of each frame; NaN does not count.
        fps: Frames per second.
        stride: Every how manyth frame counts.
    """
    seconds = per_second(values, fps, stride=stride)
    kept = values[::stride]
    early = _mean(seconds[slice(*EARLY)])
    last = math.ceil(len(values) * (1 - LAST_SHARE))
    late = _mean(values[last + -last % stride :: stride])
    part = int(len(kept) * END_SHARE)
    first_mean, end_mean = _mean(kept[:part]), _mean(kept[len(kept) - part :])
    return Drift(
        seconds=seconds,
        ratio=_over(late, early) if last >= EARLY[1] * fps else None,
        late_ratio=(
            _over(_mean(seconds[slice(*LATE)]), early) if len(values) >= LATE[1] * fps else None
        ),
        ends=None if first_mean is None or end_mean is None else abs(first_mean - end_mean),
    )


@dataclass(frozen=True, slots=True)
class FilmDrift:
    """The drift of each figure of a film; `motion` is that of the change between frames."""

    saturation: Drift
    contrast: Drift
    detail: Drift
    brightness: Drift
    motion: Drift

    def alarms(self) -> tuple[str, ...]:
        """What does not hold, a sentence each: the last fifth against the seconds of `EARLY`."""
        said = []
        for name in ("saturation", "contrast", "detail"):
            ratio = getattr(self, name).ratio
            if ratio is not None and not STEADY[0] <= ratio <= STEADY[1]:
                said.append(f"{name} drifts to {ratio:.2f} of its early value")
        ratio = self.motion.ratio
        if ratio is not None and ratio < LEAST_MOTION:
            said.append(f"motion falls to {ratio:.2f} of its early value")
        elif _mean(self.motion.seconds) == 0:
            said.append("nothing moves")
        return tuple(said)


def film_drift(levels: FilmLevels, fps: Fraction) -> FilmDrift:
    """Follow every figure of a film."""
    return FilmDrift(
        saturation=drift(levels.saturation, fps),
        contrast=drift(levels.contrast, fps),
        detail=drift(levels.detail, fps),
        brightness=drift(levels.brightness, fps),
        motion=drift(levels.change, fps, stride=1),
    )


FIGURES = ("saturation", "contrast", "detail")
"""What the ends of a film are compared by; see `FrameLevels`."""


def fifths(frames: int) -> tuple[range, range]:
    """The frames of the first and of the last fifth of a film that are measured.

    Raises:
        ValueError: the film has fewer than 5 frames.
    """
    size = int(frames * LAST_SHARE)
    if not size:
        raise ValueError(f"a film of {frames} frames has no fifths")
    return range(0, size, STRIDE), range(frames - size, frames, STRIDE)


def drift_of_ends(first: Iterable[Frame], last: Iterable[Frame]) -> dict[str, float]:
    """How far the end of a film is from its beginning, in percent of the beginning.

    Args:
        first: Frames of its beginning, uint8 [height, width, 3] each; see `fifths`.
        last: Frames of its end.

    Returns:
        100 (last / first - 1) of the mean of each of FIGURES; a figure whose beginning is 0 is
        left out.
    """
    ends = [[frame_levels(frame) for frame in frames] for frames in (first, last)]
    found = {}
    for name in FIGURES:
        begin, end = (np.mean([getattr(each, name) for each in levels]) for levels in ends)
        if begin:
            found[name] = float(100 * (end / begin - 1))
    return found


def _mean(values: Reals) -> float | None:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else None


def _over(late: float | None, early: float | None) -> float | None:
    return late / early if late is not None and early else None
