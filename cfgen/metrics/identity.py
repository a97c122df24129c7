"""Whether a film still shows what it began with, beyond what any film of its prompt shows.

Source: the identity of Commit Forcing. The cosine of a later window to the film's own opening
counts only as far as it exceeds that to the openings of films of other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cfgen.metrics.levels import Reals

WINDOWS = {"early": (4.0, 8.0), "middle": (20.0, 26.0), "late": (38.0, 47.5)}
"""Seconds of the windows that are compared with the opening."""

OPENING_S = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
FRAMES = 6
"""Frames of a window, evenly spread from its first second to its last."""

BEFORE_END_S = 0.4
"""Seconds before the end of a film at which a window ends at the latest."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean directions of a film, each of length 1, float64 [width].

    Attributes:
        opening: Of the frames at `OPENING_S`.
        windows: Of the windows that the film reaches, by name.
    """

    opening: Reals
    windows: Mapping[str, Reals]


def moments_of(unit: Reals, fps: Fraction) -> Moments | None:
    """The directions of a film; None if it ends before its opening does, or they cancel out.

    Args:
        unit: float64 [frames, width], of length 1.
        fps: Frames per second.
    """
    last_s = float(len(unit) / fps) - BEFORE_END_S
    if last_s < OPENING_S[-1]:
        return None
    opening = _direction(unit, OPENING_S, fps)
    windows = {}
    for name, (begins_s, ends_s) in WINDOWS.items():
        if begins_s < last_s:
            times = np.linspace(begins_s, min(ends_s, last_s), FRAMES).tolist()
            if (mean := _direction(unit, times, fps)) is not None:
                windows[name] = mean
    return None if opening is None else Moments(opening, windows)


def identity(own: Moments, others: Sequence[Moments]) -> dict[str, float]:
    """The identity of each window of a film against films of its prompt of other seeds.

    Args:
        own: The film.
        others: The others, one at least.

    Returns:
        By window, and `retention`, late over early, where both are there and early is not 0.
    """
    found = {
        name: float(mean @ own.opening - np.mean([mean @ other.opening for other in others]))
        for name, mean in own.windows.items()
    }
    if "late" in found and found["early"]:
        found["retention"] = found["late"] / found["early"]
    return found


def _direction(unit: Reals, times: Sequence[float], fps: Fraction) -> Reals | None:
    """Mean of the frames that are shown at times, brought to length 1; None if it is 0."""
    mean = unit[[int(second * fps) for second in times]].mean(axis=0)
    length = float(np.sqrt(mean @ mean))
    return mean / length if length else None
