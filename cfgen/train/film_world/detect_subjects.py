"""Finds subjects in frames: shape on colour, by comparison with the world's own drawing of each.

A template explains a spot of a picture as far as it predicts it better than one plain colour does;
so neither a cloud nor a field of a subject's colour is a subject.

Axis letters: T frames, K templates, M masks, h w template.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cfgen.train.film_world.detect_scene import empty_film, to_view
from cfgen.train.film_world.subjects import SHAPES
from cfgen.train.film_world.world import (
    COLOURS,
    GROUNDS,
    Film,
    Place,
    Shot,
    Subject,
    render,
    subject_boxes,
)

Image = NDArray[np.float32]

EXPLAINED = 0.55
"""How much of a spot a template must explain, at most 1, for a subject to be there."""
_ROOT_MEAN_SQUARE = 46.0
"""Levels by which a subject's pixels may be off."""
_HALF = 22
"""Half the side of a template, in units."""
_SIDE = 2 * _HALF + 1
_MOST = 4
_NEAR = 13.0
"""Two subjects are never closer than this, in units."""
_CANDIDATES = 10


@dataclass(frozen=True, slots=True)
class Sighting:
    """A subject in one frame: its words, centre in view units, and how well it fits, at most 1."""

    shape: str
    colour: str
    x: float
    y: float
    count: int
    explained: float


@dataclass(frozen=True)
class Templates:
    """Every subject in every size, around its centre.

    Attributes:
        names: shape, colour and how many subjects share the view, K of them.
        rgb: [K, 3, h, w], 0 outside of the mask.
        mask: [K, 1, h, w] in {0, 1}.
        offsets: [K, 2], centre of the template less centre of the subject's box, (x, y).
    """

    names: list[tuple[str, str, int]]
    rgb: Tensor
    mask: Tensor


def find_subjects(view: Image, sky: str) -> list[Sighting]:
    """Every subject in a view [96, 160, 3] of RGB levels, best first, at most four."""
    picture = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))[None]
    fine, coarse = templates(sky), _coarse(sky)
    room = F.pad(picture, (_HALF,) * 4, mode="replicate")
    scores = explained(F.avg_pool2d(room, 2), coarse.rgb, coarse.mask)
    found: list[Sighting] = []
    for _ in range(3 * _MOST):
        place = int(scores.max(0).values.argmax())
        row, column = divmod(place, scores.shape[2])
        best = scores[:, row, column].topk(_CANDIDATES)
        if float(best.values[0]) < EXPLAINED - 0.25 or len(found) == _MOST:
            break
        sighting = _refined(room, fine, best.indices, 2 * row, 2 * column)
        if sighting is not None and all(
            np.hypot(sighting.x - other.x, sighting.y - other.y) > _NEAR for other in found
        ):
            found.append(sighting)
        reach = int(_NEAR) // 2
        top, left = max(0, row - reach), max(0, column - reach)
        scores[:, top : row + reach + 1, left : column + reach + 1] = -1
    return sorted(found, key=lambda each: -each.explained)


def _refined(room: Tensor, fine: Templates, which: Tensor, top: int, left: int) -> Sighting | None:
    """The best of some templates near a spot of a padded view, or None."""
    reach = 3
    top, left = max(0, top - reach), max(0, left - reach)
    spot = room[:, :, top : top + _SIDE + 2 * reach, left : left + _SIDE + 2 * reach]
    scores = explained(spot, fine.rgb[which], fine.mask[which])
    best = int(scores.argmax())
    kind, rest = divmod(best, scores.shape[1] * scores.shape[2])
    row, column = divmod(rest, scores.shape[2])
    value = float(scores.flatten()[best])
    if value < EXPLAINED:
        return None
    shape, colour, count = fine.names[int(which[kind])]
    return Sighting(shape, colour, float(left + column), float(top + row), count, value)


def explained(picture: Tensor, rgb: Tensor, mask: Tensor) -> Tensor:
    """How much better templates predict a picture than one plain colour does, everywhere.

    Args:
        picture: [1, 3, H, W].
        rgb: [K, 3, h, w], 0 outside of the mask.
        mask: [K, 1, h, w].

    Returns:
        [K, H - h + 1, W - w + 1], 1 less squared error over variance; -1 where the pixels are too
        far off.
    """
    # Templates of one shape and size share a mask, so each mask is applied once.
    masks, which = torch.unique(mask.flatten(1), dim=0, return_inverse=True)
    masks = masks.unflatten(1, mask.shape[1:])
    area = mask.sum((1, 2, 3))[:, None, None]
    squares = F.conv2d(picture.square().sum(1, keepdim=True), masks)[0][which]
    sums = torch.stack([F.conv2d(picture[:, i : i + 1], masks)[0] for i in range(3)], 1)[which]
    cross = F.conv2d(picture, rgb)[0]
    error = squares - 2 * cross + rgb.square().sum((1, 2, 3))[:, None, None]
    plain = squares - sums.square().sum(1) / area
    found = 1 - error / plain.clamp(min=1.0)
    return torch.where(error / (3 * area) < _ROOT_MEAN_SQUARE**2, found, -torch.ones_like(found))


@cache
def templates(sky: str) -> Templates:
    """Templates at one pixel a unit under a sky."""
    names, colours, masks = [], [], []
    for count in (1, 2, 3):
        for shape in SHAPES:
            drawn = [_drawn(shape, colour, count, sky) for colour in COLOURS]
            mask = np.max([each[1] for each in drawn], axis=0)
            names += [(shape, colour, count) for colour in COLOURS]
            colours += [each[0] * mask for each in drawn]
            masks += [mask] * len(drawn)
    rgb = torch.from_numpy(np.stack(colours)).permute(0, 3, 1, 2).contiguous()
    return Templates(names, rgb, torch.from_numpy(np.stack(masks)).permute(0, 3, 1, 2).contiguous())


@cache
def _coarse(sky: str) -> Templates:
    """The same at half the size."""
    fine = templates(sky)
    mask = (F.avg_pool2d(fine.mask, 2) > 0.6).float()
    part = F.avg_pool2d(fine.mask, 2).clamp(min=1e-3)
    return Templates(fine.names, F.avg_pool2d(fine.rgb, 2) / part * mask, mask)


def _drawn(shape: str, colour: str, count: int, sky: str) -> tuple[Image, Image]:
    """Pixels [h, w, 3] around a subject's centre and where they are the subject's, [h, w, 1]."""
    fillers = [
        Subject(s, c, "hovers")
        for s, c in zip(SHAPES, reversed(COLOURS), strict=False)
        if s != shape and c != colour
    ]
    cast = (Subject(shape, colour, "hovers"), *fillers[: count - 1])
    place = Place(GROUNDS[0], 1)
    film = Film((place,), (Shot(0, sky, "still", "slow", cast, 1, cut=True),), seed=3)
    x, y = centre_of(film, cast[0])
    alone = to_view(render(film, 0, 1))[0]
    bare = to_view(render(empty_film(place, sky), 0, 1))[0]
    left, top = round(x) - _HALF, round(y) - _HALF
    spot = (slice(max(0, top), top + _SIDE), slice(max(0, left), left + _SIDE))
    pixels = np.zeros((_SIDE, _SIDE, 3), np.float32)
    mask = np.zeros((_SIDE, _SIDE, 1), np.float32)
    inside = (slice(max(0, -top), max(0, -top) + alone[spot].shape[0]),)
    inside += (slice(max(0, -left), max(0, -left) + alone[spot].shape[1]),)
    pixels[inside] = alone[spot]
    mask[inside] = (np.abs(alone[spot] - bare[spot]).max(-1, keepdims=True) > 4).astype(np.float32)
    return pixels, mask


def centre_of(film: Film, subject: Subject) -> tuple[float, float]:
    """Centre of a subject's box in the first frame of a film, in view units."""
    box = next(each for each in subject_boxes(film, 0) if each.subject == subject)
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
