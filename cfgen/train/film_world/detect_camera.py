"""Tells a shot's camera: how far the near layer goes from frame to frame, compared with the words.

Axis letters: T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

STEP = 4
"""Frames between two that are compared."""

_NEAR_ROWS = slice(56, 96)
_WAYS = np.arange(-12, 13)
"""Displacements that are tried, in units over STEP frames: up to 3 units a frame."""
_CAP = 48.0
"""Levels; a pixel that differs by more (a subject, something uncovered) counts as this."""
_CLEAR = 0.9
"""At most this share of what other displacements cost may the best one cost."""
_AGREE = 0.6
"""Share of the pairs of frames that must move as all do together."""


@dataclass(frozen=True, slots=True)
class Motion:
    """What a camera did.

    Attributes:
        camera: one of CAMERAS, None where nothing fits.
        speed: one of SPEEDS, None for a camera that is still or unknown.
        units: how far right it goes a frame, in view units; NaN if unknown.
    """

    camera: str | None
    speed: str | None
    units: float


UNKNOWN = Motion(None, None, float("nan"))


def camera_of(views: Image) -> Motion:
    """The camera's motion over the consecutive frames of a shot, [T, 96, 160, 3], T above 4."""
    if len(views) <= STEP:
        return UNKNOWN
    costs = pair_costs(views)
    total = costs.mean(0)
    best = int(total.argmin())
    others = total[np.abs(_WAYS - _WAYS[best]) >= 3]
    own = _WAYS[costs.argmin(1)]
    agreeing = np.abs(own - _WAYS[best]) <= 1
    if total[best] > _CLEAR * float(others.min()) or agreeing.mean() < _AGREE:
        return UNKNOWN
    return _named(float(_WAYS[best]) / STEP)


def _named(units: float) -> Motion:
    pace = abs(units)
    if pace <= 0.25:
        return Motion("still", None, units)
    camera = "right" if units > 0 else "left"
    if 0.5 <= pace <= 1.375:
        return Motion(camera, "slow", units)
    if 1.5 <= pace <= 2.6:
        return Motion(camera, "fast", units)
    return Motion(None, None, units)


def pair_costs(views: Image) -> Image:
    """Mean difference of frames STEP apart at every displacement: [pairs, displacements]."""
    band = views[:, _NEAR_ROWS]
    band = band - np.median(band, axis=2, keepdims=True)
    starts = range(0, len(views) - STEP, max(1, STEP // 2))
    before, after = band[list(starts)], band[[s + STEP for s in starts]]
    width = band.shape[2]
    costs = np.empty((len(before), len(_WAYS)), np.float32)
    for i, way in enumerate(map(int, _WAYS)):
        old = before[:, :, max(0, way) : width + min(0, way)]
        new = after[:, :, max(0, -way) : width - max(0, way)]
        difference = np.abs(old - new).mean(-1)
        costs[:, i] = np.minimum(difference, _CAP).mean((1, 2))
    return costs
