"""Figures of the change from frame to frame: flicker, seams between chunks, the wrap of a loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cfgen.metrics.levels import PEAK, Frame, Reals, frame_change
from cfgen.metrics.reference import psnr

VISIBLE_SEAM = 1.3
"""Ratio of change at the seams above which they are seen."""


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """Where the chunks of a film begin.

    Attributes:
        first: First frame of the second chunk.
        size: Frames of each chunk after the first.
        scenes: Frames that are meant to look like no frame before them: first of a new shot.
    """

    first: int
    size: int
    scenes: tuple[int, ...] = ()

    @classmethod
    def of(cls, *, latents: int = 3, stride: int = 4) -> ChunkGrid:
        """The grid of a film whose latent 0 is one frame, and each other `stride`.

        With the chunks of Wan, these begin at 9, 21, 33 and so on.

        Args:
            latents: Latent frames of a chunk.
            stride: Frames of a latent frame.
        """
        return cls(first=(latents - 1) * stride + 1, size=latents * stride)

    def starts(self, frames: int) -> npt.NDArray[np.int64]:
        """First frames of all chunks but the first: int64 [chunks - 1].

        Args:
            frames: Frames of the film.
        """
        return np.arange(self.first, frames, self.size, dtype=np.int64)


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
    return None if mean is None else flicker_of(mean)


def flicker_of(mean_change: float) -> float:
    """Temporal flickering of a mean change between frames, in levels of 255."""
    return (PEAK - mean_change) / PEAK


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


def seams(change: Reals, brightness: Reals, grid: ChunkGrid) -> Seams:
    """Compare the frames at which chunks begin with the others; new shots count as neither.

    Args:
        change: float64 [frames], as in `FilmLevels`.
        brightness: float64 [frames], as in `FilmLevels`.
        grid: Where chunks begin.
    """
    at_seam = seam_mask(len(change), grid)
    starts = np.flatnonzero(at_seam)
    worst = int(starts[np.argmax(change[starts])]) if starts.size else None
    return Seams(
        ratio=seam_ratio(change, at_seam, grid),
        worst=worst,
        pulse=autocorrelation(brightness, grid.size),
    )


def seam_mask(frames: int, grid: ChunkGrid) -> npt.NDArray[np.bool_]:
    """Whether each frame begins a chunk that is to go on from the one before: bool [frames]."""
    at_seam = np.zeros(frames, dtype=bool)
    at_seam[grid.starts(frames)] = True
    at_seam[[frame for frame in grid.scenes if frame < frames]] = False
    return at_seam


def seam_ratio(
    change: Reals, at_seam: npt.NDArray[np.bool_], grid: ChunkGrid, *, span: slice = slice(None)
) -> float | None:
    """Mean change at seams over the mean change elsewhere; None without seams or change elsewhere.

    Args:
        change: float64 [frames], as in `FilmLevels`.
        at_seam: bool [frames], of `seam_mask`.
        grid: Where chunks begin.
        span: The frames that count.
    """
    others = ~at_seam
    others[:1] = False
    others[[frame for frame in grid.scenes if frame < len(others)]] = False
    seam, elsewhere = change[span][at_seam[span]], change[span][others[span]]
    if not seam.size or not elsewhere.size or not elsewhere.mean():
        return None
    return float(seam.mean() / elsewhere.mean())


def autocorrelation(values: Reals, lag: int) -> float | None:
    """Correlation of a series, float64 [n], with itself `lag` later, over its whole variance.

    Returns:
        The sum of products of deviations from the mean over the sum of their squares; None if the
        series is shorter than twice the lag or does not vary.
    """
    if len(values) < 2 * lag or lag < 1:
        return None
    if np.ptp(values) <= np.spacing(np.abs(values).max()):
        return None
    apart = values - values.mean()
    return float(apart[:-lag] @ apart[lag:]) / float(apart @ apart)


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
