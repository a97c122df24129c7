"""The figures of a film in rows of ten seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfgen.metrics.change import flicker_of, seam_mask, seam_ratio
from cfgen.metrics.drift import STRIDE
from cfgen.metrics.events import Span
from cfgen.metrics.film import FilmScore
from cfgen.metrics.levels import Reals

ROW_S = 10
"""Seconds of a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A part of a film; a figure that it has no frames for is None.

    Attributes:
        from_s: Where it begins, in seconds.
        to_s: Where it ends.
        brightness: As in `FrameLevels`, mean over every second frame.
        contrast: Likewise.
        saturation: Likewise.
        detail: Likewise.
        motion: Mean change between frames, in levels of 255.
        flicker: VBench's temporal flickering; a still part has 1.
        seam_ratio: As in `Seams`, of the seams within; None also where chunks are not known.
        cuts: Frames within that begin a new scene.
        still_s: Seconds within that stand still.
        black_s: Seconds within that are black.
    """

    from_s: float
    to_s: float
    brightness: float | None
    contrast: float | None
    saturation: float | None
    detail: float | None
    motion: float | None
    flicker: float | None
    seam_ratio: float | None
    cuts: int
    still_s: float
    black_s: float


def rows_of(score: FilmScore, *, seconds: int = ROW_S) -> tuple[Row, ...]:
    """The rows of a film; the last may be shorter.

    Args:
        score: The film.
        seconds: Of each row.

    Returns:
        No row for a film without frames.
    """
    frames = len(score.levels.change)
    if not frames:
        return ()
    size = seconds * score.fps
    bounds = [math.ceil(size * number) for number in range(math.ceil(frames / size))]
    return tuple(
        _row(score, slice(first, stop))
        for first, stop in zip(bounds, [*bounds[1:], frames], strict=True)
    )


def _row(score: FilmScore, span: slice) -> Row:
    levels, fps = score.levels, score.fps
    moved = _mean(levels.change[span])
    ratio = None
    if score.grid is not None:
        at_seam = seam_mask(len(levels.change), score.grid)
        ratio = seam_ratio(levels.change, at_seam, score.grid, span=span)
    return Row(
        from_s=float(span.start / fps),
        to_s=float(span.stop / fps),
        brightness=_level(levels.brightness, span),
        contrast=_level(levels.contrast, span),
        saturation=_level(levels.saturation, span),
        detail=_level(levels.detail, span),
        motion=moved,
        flicker=None if moved is None else flicker_of(moved),
        seam_ratio=ratio,
        cuts=sum(span.start <= frame < span.stop for frame in score.cuts),
        still_s=float(_within(score.freezes, span) / fps),
        black_s=float(_within(score.black, span) / fps),
    )


def _level(values: Reals, span: slice) -> float | None:
    """Mean over the frames of a span that levels are averaged over."""
    return _mean(values[span.start + span.start % STRIDE : span.stop : STRIDE])


def _within(spans: Sequence[Span], row: slice) -> int:
    """Frames that spans and a row share."""
    return sum(max(0, min(span.stop, row.stop) - max(span.first, row.start)) for span in spans)


def _mean(values: Reals) -> float | None:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else None
