"""How alike the frames of a film are, by the embeddings of any network.

A still film has every consistency: each figure is to be read beside the motion.

Formulas: VBench (subject and background consistency; 2 second clips of VBench-Long), Context
Forcing (arXiv 2602.06028, table 1), the lag curve of VBench issue 206.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from cfgen.errors import InputRefused
from cfgen.metrics.levels import Reals

CLIP_S = 2
"""Seconds of a clip of VBench-Long."""

MARK_S = 10
HALF_WINDOW_S = Fraction(1, 2)
"""Context Forcing looks at each tenth second, and half a second before and after it."""

LAGS = (2, 5, 10, 20, 50)
"""Frames between the two that the lag curve compares."""


def normalised(embeddings: npt.NDArray[np.floating]) -> Reals:
    """Embeddings, [frames, width], brought to length 1 in float64.

    Raises:
        InputRefused: One of them is 0 or not finite.
    """
    wide = np.asarray(embeddings, dtype=np.float64)
    length = np.sqrt(np.square(wide).sum(axis=-1, keepdims=True))
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if bad.size:
        raise InputRefused(f"the embedding of frame {bad[0]} is 0 or not finite")
    unit: Reals = wide / length
    return unit


def frame_consistency(unit: Reals) -> float | None:
    """VBench's consistency of one clip: each frame against the one before it and the first.

    Negative cosines count as 0.

    Args:
        unit: float64 [frames, width], of length 1.

    Returns:
        The mean over all frames but the first; None for fewer than two frames.
    """
    if len(unit) < 2:
        return None
    to_before = np.maximum((unit[1:] * unit[:-1]).sum(axis=-1), 0)
    to_first = np.maximum(unit[1:] @ unit[0], 0)
    return float(((to_before + to_first) / 2).mean())


def clip_bounds(frames: int, fps: Fraction) -> tuple[tuple[int, int], ...]:
    """The clips of VBench-Long, half open: 2 seconds each; the last reaches back to be whole.

    A film shorter than a clip is one clip.
    """
    size = max(round(CLIP_S * fps), 1)
    if frames <= size:
        return ((0, frames),) if frames else ()
    starts = [*range(0, frames - size, size), frames - size]
    return tuple((start, start + size) for start in starts)


def in_clip_consistency(unit: Reals, fps: Fraction) -> float | None:
    """Mean of `frame_consistency` over the clips of a film; None if no clip has two frames."""
    each = [frame_consistency(unit[first:stop]) for first, stop in clip_bounds(len(unit), fps)]
    found = [value for value in each if value is not None]
    return sum(found) / len(found) if found else None


def clip_to_clip_consistency(unit: Reals, fps: Fraction) -> float | None:
    """`frame_consistency` of the first frames of all clips; None for fewer than two clips."""
    return frame_consistency(unit[[first for first, _ in clip_bounds(len(unit), fps)]])


def cosine_at_marks(unit: Reals, first: Reals, fps: Fraction) -> dict[int, float]:
    """Context Forcing's columns: mean cosine to the first frame (or a text) at 10, 20 ... seconds.

    Args:
        unit: float64 [frames, width], of length 1.
        first: float64 [width], of length 1: of the first frame of the scene, or of its text.
        fps: Frames per second.

    Returns:
        By second, the mean over the frames within half a second of it; a mark whose window the
        film does not fill is left out.
    """
    return means_at_marks(unit @ first, fps)


def means_at_marks(cosines: Reals, fps: Fraction) -> dict[int, float]:
    """The means of `cosine_at_marks` of the cosine of each frame, float64 [frames]."""
    found = {}
    last_s = Fraction(len(cosines)) / fps
    for mark in range(MARK_S, int(last_s) + 1, MARK_S):
        low, high = (mark - HALF_WINDOW_S) * fps, (mark + HALF_WINDOW_S) * fps
        if len(cosines) - 1 < math.floor(high):
            continue
        found[mark] = float(cosines[math.ceil(low) : math.floor(high) + 1].mean())
    return found


def cosine_to_scene(unit: Reals, cuts: Sequence[int]) -> Reals:
    """Cosine of each frame to the first of its scene, float64 [frames].

    Args:
        unit: float64 [frames, width], of length 1.
        cuts: Frames that begin a scene, in order.
    """
    firsts = np.zeros(len(unit), dtype=np.int64)
    firsts[list(cuts)] = list(cuts)
    cosines: Reals = (unit * unit[np.maximum.accumulate(firsts)]).sum(axis=-1)
    return cosines


def lag_curve(unit: Reals, lags: Sequence[int] = LAGS) -> dict[int, float]:
    """Mean cosine of frames that stand `lag` apart: flicker shows at short lags, drift at long.

    Args:
        unit: float64 [frames, width], of length 1.
        lags: Distances in frames; those the film is too short for are left out.
    """
    return {
        lag: float((unit[:-lag] * unit[lag:]).sum(axis=-1).mean())
        for lag in lags
        if 0 < lag < len(unit)
    }
