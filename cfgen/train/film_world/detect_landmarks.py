"""Tells landmarks by name, and pictures of a place from pictures of other places.

Templates of the kinds are drawn by the world itself.

Axis letters: H W pixels, 3 colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cfgen.train.film_world.drawing import Canvas
from cfgen.train.film_world.landmarks import KINDS, draw_landmark, landmark_light
from cfgen.train.film_world.world import (
    HEIGHT,
    VIEW,
    WIDTH,
    Film,
    LandmarkBox,
    subject_boxes,
)

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

SCALE = HEIGHT // VIEW[1]
"""Pixels a unit at the size that landmarks are compared at."""

WHOLE = 0.75
"""Share of a landmark that must be in view for it to be named."""

HIDDEN = 0.3
"""Share of a landmark's box that may be hidden for it to be named."""

_HALF_WIDTH, _TALL = 15 * SCALE, 28 * SCALE
_MARGIN = 2 * SCALE
_BURIED = 5
"""Rows of a landmark that the ground may cover."""
_CAP = 70.0
_REFINED = 5
_SHIFTS_X, _SHIFTS_Y = range(-6, 7), range(-4, 5)


@dataclass(frozen=True, slots=True)
class KindTemplate:
    """A kind's pixels.

    Attributes:
        kind: its name.
        rgb: [n, 3] levels.
        rows: of each pixel, [n], below the upper edge of what `_cut` gives without room.
        columns: likewise, [n].
    """

    kind: str
    rgb: Image
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Named:
    """A landmark box of the truth, and the kind that a picture shows there."""

    box: LandmarkBox
    kind: str | None

    @property
    def is_right(self) -> bool:
        """Whether it is the kind of the truth."""
        return self.kind == self.box.kind


def name_landmarks(
    frame: NDArray[np.uint8], boxes: Sequence[LandmarkBox], sky: str, hidden: Mask | None = None
) -> list[Named]:
    """The kind that a picture shows in each box, among all kinds of the world.

    Args:
        frame: [H, W, 3] RGB at the world's own size.
        boxes: of the truth; those of which less than `WHOLE` is in view, or more than `HIDDEN` is
            hidden, are left out.
        sky: the light that falls on them.
        hidden: pixels [H, W] that something stands in front of.
    """
    hidden = np.zeros(frame.shape[:2], bool) if hidden is None else hidden
    named = []
    for box in boxes:
        rows, columns = pixels_of(box)
        if box.share >= WHOLE and hidden[rows, columns].mean() < HIDDEN:
            named.append(Named(box, _best_kind(frame.astype(np.float32), box, sky, hidden)))
    return named


def _best_kind(frame: Image, box: LandmarkBox, sky: str, hidden: Mask) -> str:
    x, y = foot_of(box)
    reach_x, reach_y = max(_SHIFTS_X), max(_SHIFTS_Y)
    spot, inside = _cut(frame, ~hidden, x, y, reach_x, reach_y)
    shifts = [(dy, dx) for dy in _SHIFTS_Y[::2] for dx in _SHIFTS_X[::2]]
    costs = {
        t.kind: min((_cost(spot, inside, t, at), at) for at in shifts) for t in kind_templates(sky)
    }
    near = sorted(costs, key=lambda kind: costs[kind])[:_REFINED]
    for template in kind_templates(sky):
        if template.kind in near:
            _, (dy, dx) = costs[template.kind]
            around = [(dy + i, dx + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            around = [at for at in around if abs(at[0]) <= reach_y and abs(at[1]) <= reach_x]
            costs[template.kind] = min((_cost(spot, inside, template, at), at) for at in around)
    return min(near, key=lambda kind: costs[kind])


def _cost(pixels: Image, inside: Mask, template: KindTemplate, shift: tuple[int, int]) -> float:
    """How badly a template explains pixels: the mean of squared errors, each with a bound."""
    dy, dx = shift
    rows = template.rows + max(_SHIFTS_Y) + dy
    columns = template.columns + max(_SHIFTS_X) + dx
    seen = inside[rows, columns]
    if seen.sum() < 0.5 * len(seen):
        return np.inf
    shown, wanted = pixels[rows, columns][seen], template.rgb[seen]
    return float(np.minimum(np.square(shown - wanted).sum(-1), _CAP**2).mean())


def _cut(
    frame: Image, seen: Mask, x: float, y: float, reach_x: int, reach_y: int
) -> tuple[Image, Mask]:
    """Pixels around a foot at (x, y) pixels with room to shift, and which are in view and seen."""
    left, top = round(x) - _HALF_WIDTH - reach_x, round(y) - _TALL - reach_y
    wide, tall = 2 * (_HALF_WIDTH + reach_x), _TALL + _MARGIN + 2 * reach_y
    rows, columns = np.arange(top, top + tall), np.arange(left, left + wide)
    fits = ((rows >= 0) & (rows < len(frame)))[:, None] & (
        (columns >= 0) & (columns < frame.shape[1])
    )
    rows, columns = rows.clip(0, len(frame) - 1), columns.clip(0, frame.shape[1] - 1)
    return frame[np.ix_(rows, columns)], fits & seen[np.ix_(rows, columns)]


def foot_of(box: LandmarkBox) -> tuple[float, float]:
    """The middle of a landmark's lower edge in pixels at the world's own size."""
    return (box.x0 + box.x1) / 2 * SCALE, box.y1 * SCALE


def pixels_of(box: LandmarkBox, margin: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns of a box at the world's own size."""
    rows = slice(max(0, int((box.y0 - margin) * SCALE)), int(np.ceil((box.y1 + margin) * SCALE)))
    columns = slice(max(0, int((box.x0 - margin) * SCALE)), int(np.ceil((box.x1 + margin) * SCALE)))
    return rows, columns


def hidden_pixels(film: Film, frame: int, margin: float = 2.0) -> Mask:
    """Pixels [H, W] that subjects of a film stand in front of at a frame."""
    hidden = np.zeros((HEIGHT, WIDTH), bool)
    for box in subject_boxes(film, frame):
        rows = slice(max(0, int((box.y0 - margin) * SCALE)), int((box.y1 + margin) * SCALE))
        columns = slice(max(0, int((box.x0 - margin) * SCALE)), int((box.x1 + margin) * SCALE))
        hidden[rows, columns] = True
    return hidden


@cache
def kind_templates(sky: str) -> tuple[KindTemplate, ...]:
    """Every kind of landmark as the world draws it under a sky."""
    light = landmark_light(sky)
    templates = []
    for kind in KINDS:
        canvas = Canvas.empty(0, 2 * _HALF_WIDTH, _TALL + _MARGIN, SCALE)
        draw_landmark(canvas, kind, at=(_HALF_WIDTH / SCALE, _TALL / SCALE), light=light)
        mask = canvas.alpha > 0.9
        mask[_TALL - _BURIED :] = False  # behind the ground's edge
        rgb = (canvas.rgb / np.maximum(canvas.alpha, 1e-3)).transpose(1, 2, 0)
        rows, columns = np.nonzero(mask)
        pixels = np.asarray(rgb[mask], np.float32)
        templates.append(KindTemplate(kind.name, pixels, rows, columns))
    return tuple(templates)
