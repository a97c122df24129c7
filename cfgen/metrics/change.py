"""Figures of the change from frame to frame: flicker, seams between chunks, the wrap of a loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cfgen.metrics.levels import PEAK, Frame, Reals, frame_change
from cfgen.metrics.reference import psnr

VISIBLE_SEAM = 1.3
"""Ratio of change at the seams above which they are seen."""


def chunk_starts(frames: int, *, latents: int = 3, stride: int = 4) -> npt.NDArray[np.int64]:
    """First frames of all chunks but the first: latent 0 is one frame, each other is `stride`.

    With the chunks of Wan these are 9, 21, 33 and so on.

    Args:
        frames: Frames of the film.
        latents: Latent frames of a chunk.
        stride: Frames of a latent frame.

    Returns:
        int64 [chunks - 1].
    """
    return np.arange((latents - 1) * stride + 1, frames, latents * stride, dtype=np.int64)


def motion(change: Reals) -> float | None:
    """Mean change between adjacent frames, in levels of 255; None with fewer than two frames.

    Args:
        change: float64 [frames], as in `FilmLevels`.
    """
    return float(change[1:].mean()) if len(change) > 1 else None


def flicker(change: Reals) -> float | None:
    """VBench's temporal flickering, 0 to 1: high for a still film, so read it beside `motion`.

    Args:
        change: float64 [frames], as in `FilmLevels`.
    """
    mean = motion(change)
    return None if mean is None else (PEAK - mean) / PEAK


@dataclass(frozen=True, slots=True)
class Seams:
    """How chunks meet.

    Attributes:
        ratio: Mean change at the seams over the mean change elsewhere; None without seams, or
            if nothing changes elsewhere.
        worst: The frame that begins the chunk with the greatest change, or None without seams.
        pulse: Correlation of the brightness with itself one chunk later, -1 to 1; None for a film
            of fewer than two chunks, or of even brightness.
    """

    ratio: float | None
    worst: int | None
    pulse: float | None

    @property
    def visible(self) -> bool:
        """Whether the seams change more than `VISIBLE_SEAM` times what the other frames do."""
        return self.ratio is not None and self.ratio > VISIBLE_SEAM


def seams(
    change: Reals, brightness: Reals, starts: npt.NDArray[np.int64], *, chunk_frames: int
) -> Seams:
    """Compare the frames at which chunks begin with the others.

    Args:
        change: float64 [frames], as in `FilmLevels`.
        brightness: float64 [frames], as in `FilmLevels`.
        starts: First frame of each chunk but the first, int64.
        chunk_frames: Frames of a chunk.
    """
    at_seam = np.zeros(len(change), dtype=bool)
    at_seam[starts] = True
    others = ~at_seam
    others[:1] = False
    ratio = worst = None
    if at_seam.any():
        worst = int(starts[np.argmax(change[starts])])
        elsewhere = float(change[others].mean()) if others.any() else 0.0
        ratio = float(change[starts].mean()) / elsewhere if elsewhere else None
    return Seams(ratio=ratio, worst=worst, pulse=autocorrelation(brightness, chunk_frames))


def autocorrelation(values: Reals, lag: int) -> float | None:
    """Correlation of a series, float64 [n], with itself `lag` later, over its whole variance.

    Returns:
        The sum of products of deviations from the mean over the sum of their squares; None if the
        series is shorter than twice the lag or does not vary.
    """
    if len(values) < 2 * lag or lag < 1:
        return None
    apart = values - values.mean()
    power = float(apart @ apart)
    if power <= len(values) * np.spacing(np.abs(values).max()) ** 2:
        return None
    return float(apart[:-lag] @ apart[lag:]) / power


@dataclass(frozen=True, slots=True)
class Wrap:
    """How a film meets its own beginning when it is played in a loop.

    Attributes:
        psnr: Of the last frame against the first, dB.
        ratio: Change from the last frame to the first over the mean change within; None if
            nothing moves.
    """

    psnr: float
    ratio: float | None


def wrap(first: Frame, last: Frame, change: Reals) -> Wrap:
    """Compare a film's last frame with its first, uint8 [height, width, 3] each.

    Args:
        first: The first frame.
        last: The last frame.
        change: float64 [frames], as in `FilmLevels`.
    """
    inside = motion(change)
    return Wrap(
        psnr=psnr(last, first), ratio=frame_change(last, first) / inside if inside else None
    )
