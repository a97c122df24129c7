"""Tells how the camera moved: how far the near layer goes between sampled frames, and its legs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cfgen.train.probes_subjects import Sighting
from cfgen.train.world import PAN_SPEED

Image = NDArray[np.float32]

#: Rows of the near layer that no far hill reaches, in pixels at a height of 96.
NEAR_ROWS = slice(62, 96)
#: A leg of a sweep shows when it is at least half of the shortest one (2 s at 32 pixels/s).
LEG = 32.0

_STILL = 8.0  # pixels that a resting camera may seem to wander
_REACH = 16  # pixels either way that a step is looked for in
_CAP = 32.0  # levels; a pixel that differs by more (a subject, something uncovered) counts as this
_CLEAR = 0.06  # by what share the best displacement must match better than the usual one
_SUBJECT_BOX = (20, 20, 20, 28)  # left, right, up and down from a subject's centre


def step_ways(frames: Image, sightings: list[list[Sighting]]) -> NDArray[np.float64]:
    """How far the camera went right between neighbours of `frames` [n, 96, W, 3]: [n - 1] pixels.

    NaN where no displacement matches clearly better than the others.
    """
    bands = [_band(frame) for frame in frames]
    seen = [_seen(frame.shape, found) for frame, found in zip(frames, sightings, strict=True)]
    pairs = zip(pairwise(bands), pairwise(seen), strict=True)
    return np.asarray([_way(*band, *valid) for band, valid in pairs], np.float64)


def camera_class(ways: NDArray[np.float64], frames: int) -> str | None:
    """The word of `CAMERAS` for the ways that the near layer went, None if it is none of them.

    Args:
        ways: from `step_ways`.
        frames: how many frames of film they span.
    """
    known = np.flatnonzero(np.isfinite(ways))
    if len(known) < 0.75 * len(ways) or not len(known):
        return None
    filled = np.interp(np.arange(len(ways)), known, ways[known])
    path = np.concatenate([[0.0], filled.cumsum()])
    legs = path_legs(path)
    pan = PAN_SPEED * frames
    if np.ptp(path) <= _STILL and np.mean(np.abs(filled) <= 1) >= 0.75:
        return "still"
    if len(legs) >= 2:
        return "right-left" if legs[0] > 0 else "left-right"
    if len(legs) == 1 and 0.6 * pan <= abs(legs[0]) <= 1.4 * pan:
        return "right" if legs[0] > 0 else "left"
    return None


def path_legs(path: NDArray[np.float64]) -> list[float]:
    """Signed lengths between the turning points of a path; what is shorter than `LEG` is no leg."""
    legs: list[float] = []
    low = high = turn = float(path[0])
    direction = 0
    for place in map(float, path):
        low, high = min(low, place), max(high, place)
        if direction >= 0 and high - place >= LEG:
            if direction:
                legs.append(high - turn)
            direction, turn, low = -1, high, place
        elif direction <= 0 and place - low >= LEG:
            if direction:
                legs.append(low - turn)
            direction, turn, high = 1, low, place
    if direction:
        legs.append((high if direction > 0 else low) - turn)
    return legs


def _band(frame: Image) -> Image:
    """The near rows, each less its mean, so that a change of light is no motion."""
    band = frame[NEAR_ROWS]
    return np.asarray(band - np.median(band, axis=1, keepdims=True), np.float32)


def _seen(shape: tuple[int, ...], sightings: list[Sighting]) -> Image:
    """1 where no subject stands in front of the near rows, else 0."""
    seen = np.ones(shape[:2], np.float32)
    left, right, up, down = _SUBJECT_BOX
    for sighting in sightings:
        x, y = int(sighting.x), int(sighting.y)
        seen[max(0, y - up) : y + down, max(0, x - left) : x + right] = 0
    return seen[NEAR_ROWS]


def _way(before: Image, after: Image, seen_before: Image, seen_after: Image) -> float:
    width = before.shape[1]
    costs = np.empty(2 * _REACH + 1)
    for i, way in enumerate(range(-_REACH, _REACH + 1)):
        old = slice(max(0, way), width + min(0, way))
        new = slice(max(0, -way), width - max(0, way))
        difference = np.minimum(np.abs(before[:, old] - after[:, new]).mean(-1), _CAP)
        weight = seen_before[:, old] * seen_after[:, new]
        costs[i] = float((difference * weight).sum() / max(float(weight.sum()), 1.0))
    best = int(costs.argmin())
    if costs[best] > (1 - _CLEAR) * float(np.median(costs)):
        return float("nan")
    return float(best - _REACH)
