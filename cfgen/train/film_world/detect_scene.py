"""Tells sky and ground of frames by colour; the palettes are read off the world's own pictures.

Axis letters: T frames, H W pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from cfgen.train.film_world.world import GROUNDS, SKIES, VIEW, Film, Place, Shot, render

Frames = NDArray[np.uint8]
Image = NDArray[np.float32]

_SKY_ROWS = slice(0, 40)
_GROUND_ROWS = slice(86, 96)
_SKY_RADIUS = 34.0
"""RGB distance within which a pixel of a row of sky has that sky's colour."""
_GROUND_RADIUS = 30.0
_SKY_SHARE, _GROUND_SHARE = 0.35, 0.45
"""How much of the rows must have the colours; clouds, sun and subjects hide the rest."""
_SEEDS = range(3)
_APART = 12.0
_MOST_COLOURS = 8


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
    """Word of GROUNDS that the foreground of views [T, 96, 160, 3] shows, else None.

    Args:
        views: RGB levels 0..255.
        sky: tells the light on the ground; None tries the light of every sky.
    """
    pixels = views[:, _GROUND_ROWS]
    skies = [sky] if sky else list(SKIES)
    distances = np.stack(
        [
            np.min([_to_palette(pixels, ground_palette(each, ground)) for each in skies], axis=0)
            for ground in GROUNDS
        ]
    )
    return _most_seen(GROUNDS, distances, _GROUND_RADIUS, _GROUND_SHARE)


def _most_seen(
    words: tuple[str, ...], distances: NDArray[np.floating], radius: float, share: float
) -> str | None:
    """The word that most pixels are nearest to within `radius`, if they are `share` of all."""
    nearest = np.where(distances.min(0) < radius, distances.argmin(0), len(words))
    shares = np.bincount(nearest.ravel(), minlength=len(words) + 1)[:-1] / nearest.size
    best = int(shares.argmax())
    return words[best] if shares[best] >= share else None


def _to_palette(pixels: Image, palette: Image) -> Image:
    """RGB distance of pixels [..., 3] to the nearest colour of a palette [n, 3]."""
    squares = np.stack([np.square(pixels - colour).sum(-1) for colour in palette])
    return np.asarray(np.sqrt(squares.min(0)), np.float32)


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
def ground_palette(sky: str, ground: str) -> Image:
    """The colours that a ground has under a sky, most frequent first: [n, 3]."""
    pixels = np.concatenate(
        [_empty_view(sky, ground, seed)[_GROUND_ROWS].reshape(-1, 3) for seed in _SEEDS]
    )
    palette: list[Image] = []
    for _ in range(_MOST_COLOURS):
        values, counts = np.unique(pixels.round() // 4, axis=0, return_counts=True)
        colour = np.median(
            pixels[(pixels.round() // 4 == values[counts.argmax()]).all(-1)], axis=0
        ).astype(np.float32)
        palette.append(colour)
        pixels = pixels[np.linalg.norm(pixels - colour, axis=-1) > _APART]
        if len(pixels) < 200:
            break
    return np.stack(palette)


@cache
def _empty_view(sky: str, ground: str, seed: int) -> Image:
    film = empty_film(Place(ground, 1000 + seed), sky)
    return to_view(render(film, 0, 1, width=VIEW[0], height=VIEW[1]))[0]
