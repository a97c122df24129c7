"""Finds the subjects in a frame: blobs of a palette colour that look like one of the world's shapes.

The outlines that blobs are compared with are cut from frames that the world itself renders, so the
two cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cfgen.train.world import (
    COLOUR_RGB,
    COLOURS,
    SHAPES,
    VIEW_HEIGHT,
    Film,
    Subject,
    render,
    subject_centres,
)

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: RGB distance up to which a pixel has a palette colour. The two closest colours, orange and yellow,
#: are 88 apart, so half-way between two is neither; grass and leaves stay 50 from green.
COLOUR_RADIUS = 40.0
#: Overlap (intersection over union) with the closest outline from which a blob is a subject at all.
FOUND_OVERLAP = 0.35

#: A body is edged in a darker and lit by a lighter shade of its colour; these are their ends.
_DARK, _LIGHT = 0.55, 0.45
_SHADE_RADIUS = 40.0
_EDGE = 3  # pixels that such shades reach beyond the colour itself
_BOX = (22, 18)  # half height and half width of what is compared, in pixels
_PER_COLOUR = 2


@dataclass(frozen=True)
class Blob:
    """A subject in one frame: colour, centre in pixels, and overlap with each of `SHAPES`."""

    colour: str
    x: float
    y: float
    overlaps: tuple[float, ...]


def find_blobs(frame: Image) -> list[Blob]:
    """Every subject-like blob of a palette colour in a frame [96, W, 3] of RGB levels 0..255.

    At most two blobs of one colour are looked for: the world never shows two, so the second is
    already one too many.
    """
    return [
        blob
        for colour, mask in zip(COLOURS, colour_masks(frame), strict=True)
        if mask.any()
        for blob in _blobs_of(colour, body_mask(frame, colour, mask))
    ]


def colour_masks(frame: Image) -> Mask:
    """Which pixels have which of `COLOURS`: [colours, H, W], for a frame [H, W, 3]."""
    palette = np.asarray([COLOUR_RGB[c] for c in COLOURS], np.float32)
    distance = np.linalg.norm(frame[None] - palette[:, None, None], axis=-1)
    nearest = distance.argmin(0)[None] == np.arange(len(COLOURS))[:, None, None]
    return nearest & (distance < COLOUR_RADIUS)


def body_mask(frame: Image, colour: str, core: Mask) -> Mask:
    """`core`, the pixels of one colour, grown by those beside it that have a shade of that colour."""
    rgb = np.asarray(COLOUR_RGB[colour], np.float32)
    light = rgb + (255 - rgb) * np.float32(_LIGHT)
    shaded = np.minimum(_to_line(frame, rgb * np.float32(_DARK), rgb), _to_line(frame, rgb, light))
    allowed = shaded < _SHADE_RADIUS
    body = core
    for _ in range(_EDGE):
        body = body | (_widened(body) & allowed)
    return body


def _to_line(pixels: Image, start: Image, end: Image) -> Image:
    """RGB distance of pixels [..., 3] to the line between two colours."""
    along = end - start
    share = np.clip((pixels - start) @ along / (along @ along), 0, 1)
    return np.asarray(np.linalg.norm(pixels - start - share[..., None] * along, axis=-1))


def _widened(mask: Mask) -> Mask:
    """The mask and its neighbours above, below, left and right."""
    wide = mask.copy()
    wide[1:] |= mask[:-1]
    wide[:-1] |= mask[1:]
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    return wide


def _blobs_of(colour: str, mask: Mask) -> list[Blob]:
    mask = mask.copy()
    smallest = FOUND_OVERLAP * min(_outlines()[1])
    found: list[Blob] = []
    while len(found) < _PER_COLOUR and mask.sum() >= smallest:
        overlap = _overlaps(mask)
        best = overlap.reshape(len(SHAPES), -1).max(1)
        if best.max() < FOUND_OVERLAP:
            break
        y, x = np.unravel_index(int(overlap[best.argmax()].argmax()), mask.shape)
        found.append(Blob(colour, float(x), float(y), tuple(float(each) for each in best)))
        top, left = max(0, int(y) - _BOX[0]), max(0, int(x) - _BOX[1])
        mask[top : int(y) + _BOX[0] + 1, left : int(x) + _BOX[1] + 1] = False
    return found


def _overlaps(mask: Mask) -> Image:
    """Intersection over union of the mask with every outline centred at every pixel: [shapes, H, W].

    Only the part of the mask that lies in the outline's box counts.
    """
    height, width = mask.shape
    spectra, areas = _spectra(height, width)
    size = (height + 2 * _BOX[0], width + 2 * _BOX[1])
    padded = np.zeros(size)
    padded[_BOX[0] : -_BOX[0], _BOX[1] : -_BOX[1]] = mask
    counts = np.fft.irfft2(np.fft.rfft2(padded)[None] * spectra.conj(), s=size, axes=(1, 2))
    counts = counts[:, :height, :width]
    shared, inside = counts[:-1], counts[-1]
    union = areas[:, None, None] + inside[None] - shared
    return np.asarray(shared / np.maximum(union, 1.0), np.float32)


@cache
def _spectra(height: int, width: int) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Spectra of the outlines and of their box, [shapes + 1, ...], and the outlines' areas."""
    outlines, areas = _outlines()
    stack = np.zeros((len(SHAPES) + 1, height + 2 * _BOX[0], width + 2 * _BOX[1]))
    stack[:-1, : 2 * _BOX[0] + 1, : 2 * _BOX[1] + 1] = outlines
    stack[-1, : 2 * _BOX[0] + 1, : 2 * _BOX[1] + 1] = 1
    return np.fft.rfft2(stack), np.asarray(areas)


@cache
def _outlines() -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """What `body_mask` sees of each shape, cut around its centre, and how many pixels that is."""
    outlines = []
    for shape in SHAPES:
        film = Film("night", "snow", (Subject(shape, "red", "hovers"),), "still", seed=0)
        frame = render(film, 0, 1)[0].astype(np.float32)
        width = frame.shape[1]
        x, y = subject_centres(film, np.arange(1), width * VIEW_HEIGHT / len(frame))[0, 0]
        core = colour_masks(frame)[COLOURS.index("red")]
        padded = np.pad(body_mask(frame, "red", core), [(side, side) for side in _BOX])
        top, left = int(y), int(x)
        outlines.append(padded[top : top + 2 * _BOX[0] + 1, left : left + 2 * _BOX[1] + 1])
    stack = np.stack(outlines).astype(np.float64)
    return stack, tuple(float(area) for area in stack.sum((1, 2)))
