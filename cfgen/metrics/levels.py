"""Figures of single frames and of their change, taken while a film is read, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cfgen.errors import InputRefused

Frame = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float64]

PEAK = 255
"""The highest level."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in luma, of BT.601."""

DARK = PEAK / 10
"""Luma of a dark pixel, at most, in levels of 255: a tenth, as in ffmpeg's blackdetect."""

LEAST_SIDE = 5
"""Pixels: half of a smaller picture has no pixel with four neighbours."""


@dataclass(frozen=True, slots=True)
class FrameLevels:
    """What one picture looks like.

    Attributes:
        saturation: Mean of S of HSV, 0 to 1.
        contrast: Standard deviation of luma, in levels of 255.
        detail: Mean of the absolute Laplacian of luma over four neighbours, in levels of 255.
        brightness: Mean luma, in levels of 255.
        dark: Share of pixels whose luma is at most `DARK`, 0 to 1.
    """

    saturation: float
    contrast: float
    detail: float
    brightness: float
    dark: float


@dataclass(frozen=True, slots=True)
class FilmLevels:
    """The figures of every frame of a film; each is float64 [frames].

    Attributes:
        saturation: As in `FrameLevels`.
        contrast: As in `FrameLevels`.
        detail: As in `FrameLevels`.
        brightness: As in `FrameLevels`.
        dark: As in `FrameLevels`.
        change: Mean absolute difference from the frame before, in levels of 255; NaN for the first.
    """

    saturation: Reals
    contrast: Reals
    detail: Reals
    brightness: Reals
    dark: Reals
    change: Reals


def luma(frame: npt.NDArray[np.generic]) -> Reals:
    """Luma of RGB [..., 3], in the same levels: float64 [...]."""
    grey: Reals = np.asarray(frame, dtype=np.float64) @ np.array(LUMA)
    return grey


def halved(frame: Frame) -> Frame:
    """Every second pixel of every second row of [height, width, 3]."""
    return frame[::2, ::2]


def frame_levels(frame: Frame) -> FrameLevels:
    """Measure one picture, at half its size as Commit Forcing does (analysis/metrics/compute.py).

    Args:
        frame: uint8 [height, width, 3], RGB.
    """
    small = halved(frame).astype(np.float32)
    highest, lowest = small.max(axis=-1), small.min(axis=-1)
    saturation = (highest - lowest) / np.maximum(highest, np.finfo(np.float32).tiny)
    grey = luma(small)
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return FrameLevels(
        saturation=float(saturation.mean(dtype=np.float64)),
        contrast=float(grey.std()),
        detail=float(np.abs(around - 4 * inner).mean()),
        brightness=float(grey.mean()),
        dark=float((grey <= DARK).mean()),
    )


def frame_change(before: Frame, after: Frame) -> float:
    """Mean absolute difference of two frames, uint8 [height, width, 3], in levels of 255."""
    apart = np.maximum(before, after) - np.minimum(before, after)
    return float(apart.mean(dtype=np.float64))


@dataclass(slots=True)
class Meter:
    """Takes a film's frames one by one and keeps their figures, and the last frame."""

    _levels: list[FrameLevels] = field(default_factory=list)
    _change: list[float] = field(default_factory=list)
    _last: Frame | None = None

    def add(self, frame: Frame) -> None:
        """Measure the next frame.

        Args:
            frame: uint8 [height, width, 3], RGB; it is kept until the next one comes.

        Raises:
            InputRefused: It is too small, no RGB, or of another size than the frame before.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise InputRefused(
                f"a frame is {frame.dtype} {list(frame.shape)}, not uint8 [height, width, 3]"
            )
        if min(frame.shape[:2]) < LEAST_SIDE:
            raise InputRefused(
                f"a frame of {frame.shape[1]}x{frame.shape[0]} pixels is too small to be scored:"
                f" each side needs {LEAST_SIDE}"
            )
        if self._last is not None and frame.shape != self._last.shape:
            raise InputRefused(
                f"frame {len(self._levels)} is {frame.shape[1]}x{frame.shape[0]},"
                f" the frames before are {self._last.shape[1]}x{self._last.shape[0]}"
            )
        change = float("nan") if self._last is None else frame_change(self._last, frame)
        self._levels.append(frame_levels(frame))
        self._change.append(change)
        self._last = frame

    def film(self) -> FilmLevels:
        """The figures of the frames so far."""
        rows = self._levels
        return FilmLevels(
            saturation=np.array([row.saturation for row in rows], dtype=np.float64),
            contrast=np.array([row.contrast for row in rows], dtype=np.float64),
            detail=np.array([row.detail for row in rows], dtype=np.float64),
            brightness=np.array([row.brightness for row in rows], dtype=np.float64),
            dark=np.array([row.dark for row in rows], dtype=np.float64),
            change=np.array(self._change, dtype=np.float64),
        )
