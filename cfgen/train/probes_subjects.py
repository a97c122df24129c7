"""Finds subjects in frames by the palette, and their shapes by comparing silhouettes.

The silhouettes compared with are taken, by these same functions, from frames that the world itself
renders, so the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cfgen.train.world import COLOUR_RGB, COLOURS, SHAPES, Film, Subject, render

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: RGB distance up to which a pixel has a palette colour. The closest two, orange and yellow, are 88
#: apart, so half-way between two is neither; grass and leaves stay 50 from green.
COLOUR_RADIUS = 40.0
#: Overlap with the closest silhouette, at most 1, from which pixels of a colour are a subject.
FOUND_OVERLAP = 0.45
#: Overlap with the closest silhouette from which a subject has that shape.
SHAPE_OVERLAP = 0.7

_BOX = (24, 20)  # half height and half width of a silhouette's window, in pixels
_PIXELS = (80, 900)  # of a body's colour: the smallest, a star, shows 200, the largest, a cube, 430
_PER_COLOUR = 2  # the world never shows two of one colour, so a second is already one too many
_HEIGHTS = (76, 86, 96, 106, 116)  # of the frames that silhouettes are taken from: a range of sizes
_SHIFTS = range(-2, 3)


@dataclass(frozen=True)
class Sighting:
    """What looks like a subject in one frame: its colour, centre, and silhouette in a window."""

    colour: str
    x: float
    y: float
    window: Mask


def find_subjects(frame: Image) -> list[Sighting]:
    """Every body of a palette colour in a frame [96, W, 3] of RGB levels 0..255."""
    return [
        sighting
        for colour, mask in zip(COLOURS, colour_masks(frame), strict=True)
        for sighting in _bodies(colour, mask)
    ]


def shape_overlaps(windows: Sequence[Mask]) -> Image:
    """How well one subject's silhouettes fit each of `SHAPES`: [shapes] in 0..1.

    The windows are averaged, which evens out pixel edges and compression, and compared as
    intersection over union with each shape in several sizes.
    """
    seen = np.mean(windows, axis=0, dtype=np.float32)
    best = np.zeros(len(SHAPES), np.float32)
    stencils = _stencils()
    for dy in _SHIFTS:
        for dx in _SHIFTS:
            moved = np.roll(seen, (dy, dx), (0, 1))
            shared = np.minimum(stencils, moved).sum((2, 3))
            union = np.maximum(stencils, moved).sum((2, 3))
            best = np.maximum(best, (shared / union).max(1))
    return best


def colour_masks(frame: Image) -> Mask:
    """Which pixels have which of `COLOURS`: [colours, H, W], for a frame [H, W, 3]."""
    palette = np.asarray([COLOUR_RGB[c] for c in COLOURS], np.float32)
    distance = np.linalg.norm(frame[None] - palette[:, None, None], axis=-1)
    nearest = distance.argmin(0)[None] == np.arange(len(COLOURS))[:, None, None]
    return np.asarray(nearest & (distance < COLOUR_RADIUS))


def _bodies(colour: str, mask: Mask) -> list[Sighting]:
    """Up to two bodies in a colour's mask, the one with more pixels first."""
    half_y, half_x = _BOX
    rest = np.pad(mask, ((half_y, half_y), (half_x, half_x)))
    found: list[Sighting] = []
    for _ in range(_PER_COLOUR):
        window = _fullest_window(rest)
        if rest[window].sum() < _PIXELS[0]:
            break
        if rest[window].sum() <= _PIXELS[1]:
            x, y = float(window[1].start), float(window[0].start)
            found.append(Sighting(colour, x, y, rest[window].copy()))
        rest[window] = False
    return found


def _fullest_window(mask: Mask) -> tuple[slice, slice]:
    """Where a window holds most of a mask with a margin of `_BOX`, centred on what it holds."""
    tall, wide = (2 * half + 1 for half in _BOX)
    sums = np.pad(mask.astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    held = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    top, left = (int(i) for i in np.unravel_index(int(held.argmax()), held.shape))
    for _ in range(2):
        rows, columns = np.nonzero(mask[top : top + tall, left : left + wide])
        if not len(rows):
            break
        top = min(max(round(top + float(rows.mean())) - _BOX[0], 0), held.shape[0] - 1)
        left = min(max(round(left + float(columns.mean())) - _BOX[1], 0), held.shape[1] - 1)
    return slice(top, top + tall), slice(left, left + wide)


@cache
def _stencils() -> Image:
    """Average silhouette of each shape in each size: [shapes, sizes, h, w]."""
    return np.asarray([[_silhouette(shape, height) for height in _HEIGHTS] for shape in SHAPES])


def _silhouette(shape: str, height: int) -> Image:
    film = Film("night", "snow", (Subject(shape, "red", "circles"),), "still", seed=0)
    frames = [render(film, t, t + 1, width=height, height=height)[0] for t in range(0, 64, 12)]
    found = [find_subjects(frame.astype(np.float32))[0] for frame in frames]
    return np.asarray(np.mean([each.window for each in found], axis=0, dtype=np.float32))
