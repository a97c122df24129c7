"""Likeness of a frame to the same frame of another film: PSNR and SSIM."""

from __future__ import annotations

import math

import numpy as np

from cfgen.errors import InputRefused
from cfgen.metrics.levels import PEAK, Frame, Reals, luma

SIGMA = 1.5
RADIUS = 5
"""The Gaussian window of SSIM: 11 by 11 pixels (Wang, Bovik, Sheikh, Simoncelli 2004)."""

_C1 = (0.01 * PEAK) ** 2
_C2 = (0.03 * PEAK) ** 2


def squared_error(frame: Frame, reference: Frame) -> float:
    """Mean squared difference of two frames, uint8 [height, width, 3], in squared levels.

    Raises:
        InputRefused: They are of different size.
    """
    _require_alike(frame, reference)
    apart = frame.astype(np.int32) - reference
    return float(np.square(apart).mean(dtype=np.float64))


def psnr_of(error: float) -> float:
    """PSNR, dB, of a mean squared error in squared levels of 255; infinite for none.

    The PSNR of a film is that of its frames' mean error, so that equal frames do not make it
    infinite.
    """
    return 10 * math.log10(PEAK**2 / error) if error else math.inf


def psnr(frame: Frame, reference: Frame) -> float:
    """PSNR of two frames over all of R, G and B, dB; infinite if they are equal.

    Raises:
        InputRefused: They are of different size.
    """
    return psnr_of(squared_error(frame, reference))


def ssim(frame: Frame, reference: Frame) -> float:
    """Structural similarity of the luma of two frames, uint8 [height, width, 3]; 1 if equal.

    Wang and others 2004: Gaussian window of 11 pixels and sigma 1.5, K of 0.01 and 0.03; the mean
    is over the windows that lie within the picture, at full size.

    Raises:
        InputRefused: They are of different size, or smaller than the window.
    """
    _require_alike(frame, reference)
    if min(frame.shape[:2]) <= 2 * RADIUS:
        raise InputRefused(
            f"SSIM needs frames of at least {2 * RADIUS + 1}x{2 * RADIUS + 1} pixels,"
            f" these are {frame.shape[1]}x{frame.shape[0]}"
        )
    one, two = luma(frame), luma(reference)
    mean_one, mean_two = _blurred(one), _blurred(two)
    power_one = _blurred(one * one) - mean_one**2
    power_two = _blurred(two * two) - mean_two**2
    shared = _blurred(one * two) - mean_one * mean_two
    likeness = (2 * mean_one * mean_two + _C1) * (2 * shared + _C2)
    likeness /= (mean_one**2 + mean_two**2 + _C1) * (power_one + power_two + _C2)
    return float(likeness.mean())


def _require_alike(frame: Frame, reference: Frame) -> None:
    if frame.shape != reference.shape:
        raise InputRefused(
            f"a frame of {frame.shape[1]}x{frame.shape[0]} pixels cannot be compared with one of"
            f" {reference.shape[1]}x{reference.shape[0]}"
        )


def _blurred(plane: Reals) -> Reals:
    """Weighted means over the window, float64 [height - 10, width - 10]."""
    offsets = np.arange(-RADIUS, RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    height, width = plane.shape[0] - 2 * RADIUS, plane.shape[1] - 2 * RADIUS
    rows = np.zeros((height, plane.shape[1]))
    for shift, weight in enumerate(weights.tolist()):
        rows += weight * plane[shift : shift + height]
    found = np.zeros((height, width))
    for shift, weight in enumerate(weights.tolist()):
        found += weight * rows[:, shift : shift + width]
    return found
