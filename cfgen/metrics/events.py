"""Cuts, freezes and black in a film, by the rules of ffmpeg's scdet, freezedetect, blackdetect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from cfgen.metrics.levels import PEAK, Reals

CUT_SCORE = 10.0
"""Score from which a change is a cut, in percent: scdet's default."""

STILL = 0.001 * PEAK
"""Change of a frame that stands still, at most, in levels of 255: freezedetect's -60 dB."""

BLACK_SHARE = 0.98
"""Share of dark pixels from which a picture is black: blackdetect's default."""

SHORTEST_S = Fraction(1, 2)
"""Seconds that a freeze or black lasts at least; ffmpeg waits for 2, a stalled chunk is shorter."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a film, in frames, half open.

    Attributes:
        first: First frame.
        stop: The frame after the last.
    """

    first: int
    stop: int


def cut_scores(change: Reals) -> Reals:
    """How much each frame looks like the first of a new scene: scdet's score.

    It is the lesser of a frame's change and of how far that is from the change of the frame
    before, so that steady motion, however fast, is no cut. The first change of a film is compared
    with the one after it. Of two cuts in adjacent frames, the second is hidden by the first.

    Args:
        change: float64 [frames], as in `FilmLevels`.

    Returns:
        float64 [frames], percent of the highest level, 0 for the first frame.
    """
    scores = np.zeros(len(change))
    if len(change) < 2:
        return scores
    percent = change[1:] * (100 / PEAK)
    before = np.concatenate([percent[1:2] if len(percent) > 1 else [0.0], percent[:-1]])
    scores[1:] = np.minimum(percent, np.abs(percent - before))
    return scores


def cuts(change: Reals, *, least: float = CUT_SCORE) -> tuple[int, ...]:
    """The frames that begin a new scene.

    Args:
        change: float64 [frames], as in `FilmLevels`.
        least: Score from which a change is a cut, in percent.
    """
    return tuple(np.flatnonzero(cut_scores(change) >= least).tolist())


def freezes(
    change: Reals, fps: Fraction, *, still: float = STILL, shortest_s: Fraction = SHORTEST_S
) -> tuple[Span, ...]:
    """The parts of a film in which each frame is the one before.

    Adjacent frames are compared, where freezedetect compares with the first of the freeze: a very
    slow change is a freeze here.

    Args:
        change: float64 [frames], as in `FilmLevels`.
        fps: Frames per second.
        still: Change of a frame that stands still, at most, in levels of 255.
        shortest_s: Seconds that a freeze lasts at least, with the frame that stands.
    """
    spans = (Span(span.first - 1, span.stop) for span in _runs(change <= still))
    return _lasting(tuple(spans), fps, shortest_s)


def black(
    dark: Reals, fps: Fraction, *, share: float = BLACK_SHARE, shortest_s: Fraction = SHORTEST_S
) -> tuple[Span, ...]:
    """The parts of a film in which the picture is black.

    Args:
        dark: Share of dark pixels, float64 [frames], as in `FilmLevels`.
        fps: Frames per second.
        share: Share of dark pixels from which a picture is black.
        shortest_s: Seconds that the black lasts at least.
    """
    return _lasting(_runs(dark >= share), fps, shortest_s)


def _runs(holds: npt.NDArray[np.bool_]) -> tuple[Span, ...]:
    """The longest spans throughout which bool [frames] holds."""
    edges = np.flatnonzero(np.diff(holds.astype(np.int8), prepend=0, append=0)).tolist()
    return tuple(Span(*pair) for pair in zip(edges[::2], edges[1::2], strict=True))


def _lasting(spans: Sequence[Span], fps: Fraction, shortest_s: Fraction) -> tuple[Span, ...]:
    return tuple(span for span in spans if span.stop - span.first >= shortest_s * fps)
