"""Tells sky and ground of frames by colour; the palettes are read off the world's own pictures.

Axis letters: T frames, H W pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from cfgen.train.film_world.backgrounds import SKIES as SKY_TABLE
from cfgen.train.film_world.grounds import GROUNDS as GROUND_TABLE
from cfgen.train.film_world.world import GROUNDS, SKIES, VIEW, Film, Place, Shot, render

Frames = NDArray[np.uint8]
Image = NDArray[np.float32]

_SKY_ROWS = slice(0, 40)
_GROUND_ROWS = slice(78, 96)
_GROUND_PIXELS = 3 * (_GROUND_ROWS.stop - _GROUND_ROWS.start)
_SKY_RADIUS = 34.0
"""RGB distance within which a pixel of a row of sky has that sky's colour."""
_SKY_SHARE = 0.35
"""How much of the rows must have the colours; clouds, sun and subjects hide the rest."""
_GROUND_RADIUS = 38.0
"""RGB distance within which the foreground on the whole is a ground's."""
_LIFTS = np.arange(-2.5, 2.6, 0.5)
"""By how much the bands of a ground may lie lower than usual, in units."""
_FINER = 4


def to_view(frames: Frames) -> Image:
    """Frames [T, H, W, 3] of any size with the view's shape as float32 [T, 96, 160, 3].

    Larger frames are averaged, smaller ones are stretched.

    Raises:
        ValueError: `frames` are of another form, or none.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}")
    rows, columns = _averaging(frames.shape[1], VIEW[1]), _averaging(frames.shape[2], VIEW[0])
    out = np.empty((len(frames), VIEW[1], VIEW[0], 3), np.float32)
    for i, frame in enumerate(frames):
        down = np.tensordot(rows, frame.astype(np.float32), (1, 0))
        out[i] = np.tensordot(columns, down, (1, 1)).transpose(1, 0, 2)
    return out


@cache
def _averaging(old: int, new: int) -> Image:
    """Weights [new, old] that average `old` cells into `new` ones by their common length."""
    edges = np.arange(new + 1) * (old / new)
    cells = np.arange(old)
    common = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.asarray(np.clip(common, 0, None) * (new / old), np.float32)


def empty_film(place: Place, sky: str, *, camera: str = "still", chunks: int = 1) -> Film:
    """One shot of a place without subjects, for templates; a moving camera is fast."""
    shot = Shot(0, sky, camera, "fast", (), chunks, cut=True)
    return Film((place,), (shot,), seed=0)


def sky_of(views: Image) -> str | None:
    """Word of SKIES that most of the sky of views [T, 96, 160, 3] shows, else None."""
    rows, skies = views[:, _SKY_ROWS], sky_rows()
    distances = np.stack([np.linalg.norm(rows - skies[sky][:, None], axis=-1) for sky in SKIES])
    return _most_seen(SKIES, distances, _SKY_RADIUS, _SKY_SHARE)


def ground_of(views: Image, sky: str | None) -> str | None:
    """Word of GROUNDS whose bands the foreground of views [T, 96, 160, 3] shows, else None.

    Every column is compared with the bands of each ground at the height that suits it best.

    Args:
        views: RGB levels 0..255.
        sky: tells the light on the ground; None tries the light of every sky.
    """
    columns = views[:, _GROUND_ROWS, ::4].transpose(0, 2, 1, 3).reshape(-1, _GROUND_PIXELS)
    squares = np.square(columns).sum(1)[:, None]
    costs = []
    for ground in GROUNDS:
        bands = np.concatenate([ground_bands(s, ground) for s in ([sky] if sky else SKIES)])
        errors = squares - 2 * columns @ bands.T + np.square(bands).sum(1)
        off = np.sqrt(np.maximum(errors.min(1), 0) / (_GROUND_PIXELS // 3))
        costs.append(float(np.minimum(off, 2 * _GROUND_RADIUS).mean()))
    best = int(np.argmin(costs))
    return GROUNDS[best] if costs[best] < _GROUND_RADIUS else None


def _most_seen(
    words: tuple[str, ...], distances: NDArray[np.floating], radius: float, share: float
) -> str | None:
    """The word that most pixels are nearest to within `radius`, if they are `share` of all."""
    nearest = np.where(distances.min(0) < radius, distances.argmin(0), len(words))
    shares = np.bincount(nearest.ravel(), minlength=len(words) + 1)[:-1] / nearest.size
    best = int(shares.argmax())
    return words[best] if shares[best] >= share else None


@cache
def sky_rows() -> dict[str, Image]:
    """Colour of each row of sky, [rows, 3] a sky: the median over places."""
    return {
        sky: np.asarray(
            np.median(
                [
                    _empty_view(sky, ground, seed)[_SKY_ROWS]
                    for ground in GROUNDS
                    for seed in (0, 1)
                ],
                axis=(0, 2),
            ),
            np.float32,
        )
        for sky in SKIES
    }


@cache
def ground_bands(sky: str, name: str) -> Image:
    """How a column of the foreground may look: [heights, rows x 3] levels."""
    ground, light = GROUND_TABLE[name], np.asarray(SKY_TABLE[sky].light, np.float32)
    fine = np.arange(_GROUND_ROWS.start, _GROUND_ROWS.stop, 1 / _FINER) + 0.5 / _FINER
    found = []
    for lift in _LIFTS:
        column = np.tile(np.asarray(ground.near, np.float32), (len(fine), 1))
        for height, colour in ground.bands:
            column[fine > height + lift] = colour
        rows = (column * light).reshape(-1, _FINER, 3).mean(1)
        soft = np.pad(rows, ((1, 1), (0, 0)), mode="edge")
        found.append((soft[:-2] + 2 * rows + soft[2:]).ravel() / 4)
    return np.asarray(found, np.float32)


@cache
def _empty_view(sky: str, ground: str, seed: int) -> Image:
    film = empty_film(Place(ground, 1000 + seed), sky)
    view: Image = to_view(render(film, 0, 1, width=VIEW[0], height=VIEW[1]))[0]
    return view
