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

from cfgen.train.film_world.drawing import Canvas
from cfgen.train.film_world.subjects import SHAPES, draw_subject
from cfgen.train.film_world.world import (
    COLOUR_RGB,
    COLOURS,
    GROUNDS,
    SKIES,
    VIEW,
    Film,
    Place,
    Shot,
    Subject,
    subject_centres,
)

Image = NDArray[np.float32]

_PLAIN = 8.0
"""Levels of variation that count as none."""
_FIT = -13.5
"""Fit from which a spot is looked at closely; see `_fits`."""
_WEAK = -4.0
"""Evidence below which nothing is there."""
_WEIGHTS = (15.44, -7.09, -5.47, 9.14)
"""Log odds that a template is a subject, fitted to 1700 spots of films, half of them decoded from
an autoencoder's latents: per share explained, per logarithms of the error over that of a plain
silhouette and of the levels by which the subject's inside is off, and what is added."""
_AROUND = 2
"""How far around a subject pixels are compared, in units."""
_HALF = 22
"""Half the side of a template, in units."""
_SIDE = 2 * _HALF + 1
_MOST = 6
_INSIDE = 0.2
"""A pixel is a subject's inside if less of what is behind shows there."""
_NEAR = 13.0
"""Two subjects are never closer than this, in units."""
_CANDIDATES = 10
_FINER = 4
_REACH = 3


@dataclass(frozen=True, slots=True)
class Sighting:
    """A subject in one frame.

    Attributes:
        shape: word of SHAPES.
        colour: word of COLOURS.
        x: its centre in view units.
        y: likewise.
        count: how many subjects share the view, by its size.
        evidence: log odds that it is there; positive for one that is.
    """

    shape: str
    colour: str
    x: float
    y: float
    count: int
    evidence: float


@dataclass(frozen=True)
class Templates:
    """Every subject in every size around its centre, as it covers a plain background.

    Attributes:
        names: shape, colour and how many subjects share the view, K of them.
        rgb: colours times coverage, [K, 3, h, w].
        inner: colours of the subject's inside, 0 elsewhere, [K, 3, h, w].
        silhouettes: what is compared (1 near the subject), how much background shows there, and
            what is the subject's inside, [M, 3, h, w], M shapes and sizes.
        which: the silhouette of each template, [K].
    """

    names: list[tuple[str, str, int]]
    rgb: Tensor
    inner: Tensor
    silhouettes: Tensor
    which: Tensor

    def of(self, which: Tensor) -> Templates:
        """Some of them."""
        names = [self.names[i] for i in which.tolist()]
        rgb, inner = self.rgb[which], self.inner[which]
        return Templates(names, rgb, inner, self.silhouettes, self.which[which])


def find_subjects(view: Image) -> list[Sighting]:
    """What may be a subject in a view [96, 160, 3] of RGB levels, surest first, at most six."""
    picture = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))[None]
    room = _soft(F.pad(picture, (_HALF,) * 4, mode="replicate"))
    scores = _fits_everywhere(F.avg_pool2d(room, 2)[0])
    found: list[Sighting] = []
    for _ in range(3 * _MOST):
        place = int(scores.max(0).values.argmax())
        row, column = divmod(place, scores.shape[2])
        best = scores[:, row, column].topk(_CANDIDATES)
        if float(best.values[0]) < _FIT or len(found) == _MOST:
            break
        sighting = _refined(room, best.indices, (2 * row, 2 * column))
        reach = _REACH
        if sighting is not None and all(
            np.hypot(sighting.x - other.x, sighting.y - other.y) > _NEAR for other in found
        ):
            found.append(sighting)
            reach = int(_NEAR) // 2
        top, left = max(0, row - reach), max(0, column - reach)
        scores[:, top : row + reach + 1, left : column + reach + 1] = -np.inf
    return sorted(found, key=lambda each: -each.evidence)


def _refined(room: Tensor, which: Tensor, corner: tuple[int, int]) -> Sighting | None:
    """The best of some templates near a spot, by its row and column, of a padded view, or None."""
    fine = templates().of(which)
    top, left = (max(0, each - _REACH) for each in corner)
    spot = room[:, :, top : top + _SIDE + 2 * _REACH, left : left + _SIDE + 2 * _REACH]
    wide = spot.shape[3] - _SIDE + 1
    pixels = torch.unflatten(F.unfold(spot, _SIDE)[0].T, 1, (3, -1))  # [places, 3, h w]
    near, behind, inside = fine.silhouettes[fine.which].flatten(2).unbind(1)
    squares = pixels.square().sum(1)
    fits = _fits(
        torch.stack([squares @ near.T, squares @ inside.T]),
        (pixels @ near.T).transpose(0, 1),
        (pixels @ behind.T).transpose(0, 1),
        torch.stack([pixels.flatten(1) @ each.flatten(1).T for each in (fine.rgb, fine.inner)]),
        fine,
    )
    place, kind = divmod(int(fits.argmax()), len(which))
    row, column = divmod(place, wide)
    value = float(fits[place, kind])
    sure = _evidence(value, pixels[place], fine.rgb[kind].flatten(1), near[kind], behind[kind])
    if sure < _WEAK:
        return None
    shape, colour, count = fine.names[kind]
    return Sighting(shape, colour, float(left + column), float(top + row), count, sure)


def _evidence(fit: float, pixels: Tensor, rgb: Tensor, near: Tensor, behind: Tensor) -> float:
    """Log odds that a template is there which fits pixels [3, h w] so well.

    A silhouette in any one colour explains a cloud, which has no rim, better than a subject does.
    """
    shown, wanted, shows = pixels[:, near > 0], rgb[:, near > 0], behind[near > 0]
    ground = ((shown - wanted) * shows).sum(1) / shows.square().sum()
    error = (shown - wanted - ground[:, None] * shows).square().sum()
    both = torch.stack([1 - shows, shows], 1)
    plain = (shown.T - both @ torch.linalg.lstsq(both, shown.T).solution).square().sum()
    return fit + _WEIGHTS[1] * float((error / plain.clamp(1)).log()) + _WEIGHTS[3]


def _fits(squares: Tensor, sums: Tensor, behind: Tensor, cross: Tensor, made: Templates) -> Tensor:
    """How well templates before a plain background fit pixels.

    Args:
        squares: sums of the pixels' squares near the subject and inside it, [2, ..., K].
        sums: sums of the pixels of each channel near it, [3, ..., K].
        behind: the same, weighed with how much background shows, [3, ..., K].
        cross: sums of the pixels' products with the template and with its inside, [2, ..., K].
        made: the templates.

    Returns:
        The terms of the evidence that compare with no plain silhouette, [..., K]: the share
        explained, which is 1 less squared error over variance, and how far the inside is off.
    """
    near, shows, inside = made.silhouettes[made.which].unbind(1)
    area, power = near.sum((1, 2)), made.rgb.square().sum((1, 2, 3))
    common = (made.rgb * shows[:, None]).sum((2, 3)).T
    common = common.reshape(3, *[1] * (behind.ndim - 2), -1)
    fitted = (behind - common).square().sum(0) / shows.square().sum((1, 2))
    error = squares[0] - 2 * cross[0] + power - fitted
    plain = squares[0] - sums.square().sum(0) / area
    explained = 1 - error / (plain + _PLAIN**2 * area)
    own = (made.inner.square().sum(1) / inside.clamp(1e-3)).sum((1, 2))
    off = (squares[1] - 2 * cross[1] + own) / inside.sum((1, 2))
    return _WEIGHTS[0] * explained + _WEIGHTS[2] * off.clamp(1).log() / 2


def _fits_everywhere(picture: Tensor) -> Tensor:
    """`_fits` at every place [K, rows, columns] of a picture [3, H, W] at half the size."""
    made, rgb, inner, silhouettes = _coarse()
    side = made.rgb.shape[-1]
    rows, columns = picture.shape[1] - side + 1, picture.shape[2] - side + 1
    size = (picture.shape[1], picture.shape[2])
    seen = torch.fft.rfft2(torch.cat([picture, picture.square().sum(0, keepdim=True)]))

    def compared(spectra: Tensor) -> Tensor:
        whole: Tensor = torch.fft.irfft2(spectra, s=size)
        return whole[..., :rows, :columns]

    cross = [compared((each * seen[:3]).sum(1)).permute(1, 2, 0) for each in (rgb, inner)]
    near = compared(silhouettes[:, :1] * seen)[made.which].permute(1, 2, 3, 0)
    behind = compared(silhouettes[:, 1:2] * seen[:3])[made.which].permute(1, 2, 3, 0)
    inside = compared(silhouettes[:, 2] * seen[3])[made.which].permute(1, 2, 0)
    squares = torch.stack([near[3], inside])
    return _fits(squares, near[:3], behind, torch.stack(cross), made).permute(2, 0, 1)


@cache
def templates() -> Templates:
    """Templates at one pixel a unit, as softened as a picture that they are compared with."""
    names, colours, silhouettes = [], [], []
    for count, size in sizes().items():
        for shape in SHAPES:
            drawn = [_drawn(shape, colour, size) for colour in COLOURS]
            names += [(shape, colour, count) for colour in COLOURS]
            colours += [each[:3] for each in drawn]
            alpha = _soft(drawn[0][None, 3:])
            near = F.max_pool2d((alpha > 0.02).float(), 2 * _AROUND + 1, 1, _AROUND)
            shows = (1 - alpha) * near
            inside = near * (shows < _INSIDE)
            silhouettes.append(torch.cat([near, shows, inside], 1)[0])
    which = torch.arange(len(silhouettes)).repeat_interleave(len(COLOURS))
    rgb, made = _soft(torch.stack(colours)), torch.stack(silhouettes)
    shows, inside = made[which, 1:2], made[which, 2:]
    inner = rgb * inside / (1 - shows * inside)
    return Templates(names, rgb, inner, made, which)


@cache
def _coarse() -> tuple[Templates, Tensor, Tensor, Tensor]:
    """The templates at half the size, and the spectra of their pictures and silhouettes."""
    fine = templates()
    rgb, inner, silhouettes = (
        F.avg_pool2d(each, 2) for each in (fine.rgb, fine.inner, fine.silhouettes)
    )
    size = ((VIEW[1] + 2 * _HALF) // 2, (VIEW[0] + 2 * _HALF) // 2)
    near = (silhouettes[:, :1] > 0.5).float()
    silhouettes = torch.cat([near, silhouettes[:, 1:] * near], 1)
    rgb, inner = (each * near[fine.which] for each in (rgb, inner))
    made = Templates(fine.names, rgb, inner, silhouettes, fine.which)
    first, second, third = (
        torch.fft.rfft2(each, s=size).conj() for each in (rgb, inner, silhouettes)
    )
    return made, first, second, third


def _soft(picture: Tensor) -> Tensor:
    """A picture [n, c, H, W], blurred a little."""
    channels = picture.shape[1]
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (taps[:, None] * taps).expand(channels, 1, 5, 5)
    return F.conv2d(F.pad(picture, (2,) * 4, mode="replicate"), kernel, groups=channels)


def _drawn(shape: str, colour: str, size: float) -> Tensor:
    """A subject around its centre: colours times coverage and coverage, [4, h, w]."""
    canvas = Canvas.empty(0, _SIDE * _FINER, _SIDE * _FINER, _FINER)
    draw_subject(canvas, shape, COLOUR_RGB[colour], at=(_SIDE / 2, _SIDE / 2), size=size)
    both = np.concatenate([canvas.rgb, canvas.alpha[None]])
    small = both.reshape(4, _SIDE, _FINER, _SIDE, _FINER).mean((2, 4))
    return torch.from_numpy(np.asarray(small, np.float32))


@cache
def sizes() -> dict[int, float]:
    """How large subjects are where one, two or three share the view."""
    found = {}
    for count in (1, 2, 3):
        cast = tuple(
            Subject(shape, colour, "hovers")
            for shape, colour in zip(SHAPES[:count], COLOURS[:count], strict=True)
        )
        shot = Shot(0, SKIES[0], "still", "slow", cast, 1, cut=True)
        film = Film((Place(GROUNDS[0], 0),), (shot,), seed=0)
        found[count] = subject_centres(film, np.array([0]))[0][0][3]
    return found
