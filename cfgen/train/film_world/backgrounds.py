"""Skies of the film world and the clouds in them.

A view is put together of three layers: a fixed sky, a far layer of clouds and hills that moves at
half the camera's speed, and a near layer of ground and landmarks (`grounds.py`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from cfgen.train.film_world.drawing import Canvas, Image, Rgb, rgb

HORIZON = 62.0
CLOUD_CELL = 84


@dataclass(frozen=True, slots=True)
class Sky:
    """Colours of a sky, and the light (colour factors) that falls on the land."""

    top: Rgb
    bottom: Rgb
    light: Rgb
    cloud: Rgb
    sun: Rgb | None
    sun_y: float = 18.0
    sun_radius: float = 8.5
    glow: float = 0.5
    stars: int = 0


SKIES = {
    "dawn": Sky(
        (142, 172, 234), (255, 208, 194), (0.98, 0.89, 0.91), (255, 240, 238), (255, 247, 224), 42
    ),
    "day": Sky(
        (66, 154, 236), (196, 232, 252), (1.0, 1.0, 1.0), (253, 254, 255), (255, 238, 160), 17
    ),
    "sunset": Sky(
        (88, 52, 130), (255, 150, 88), (0.94, 0.73, 0.68), (240, 138, 132), (255, 220, 120), 44, 11
    ),
    "night": Sky(
        (10, 14, 46),
        (44, 62, 122),
        (0.52, 0.57, 0.78),
        (50, 62, 112),
        (248, 244, 216),
        18,
        7.5,
        0.14,
        14,
    ),
    "overcast": Sky((126, 138, 152), (200, 208, 214), (0.82, 0.85, 0.88), (168, 178, 188), None),
    "storm": Sky((58, 62, 92), (150, 148, 164), (0.62, 0.64, 0.74), (38, 40, 64), None),
}


def rng_for(*key: int | str) -> np.random.Generator:
    """A generator that depends on `key` alone, the same on every platform."""
    digest = zlib.crc32(repr(key).encode())
    return np.random.Generator(np.random.Philox(key=[digest, len(key)]))


def paint_sky(name: str, seed: int, width: int, height: int, scale: float) -> Image:
    """The fixed background, opaque: planes [3, height, width]."""
    sky = SKIES[name]
    canvas = Canvas.empty(0, width, height, scale)
    blend = np.clip(canvas.y[:, :1] / HORIZON, 0, 1)
    top, bottom = rgb(sky.top)[:, None, None], rgb(sky.bottom)[:, None, None]
    canvas.rgb[...] = top * (1 - blend) + bottom * blend
    canvas.alpha[...] = 1
    rng = rng_for(seed, "sky")
    view = width / scale
    x = float(rng.uniform(0.16, 0.84) * view)
    for star_x, star_y in _stars(rng, sky.stars, view):
        canvas.paint((214, 222, 250), canvas.disc(star_x, star_y, 1.3))
    if sky.sun is not None:
        _paint_sun(canvas, sky, x)
    return canvas.rgb


def _stars(rng: np.random.Generator, count: int, view: float) -> list[tuple[float, float]]:
    """Places of stars, none close to another: they lie in cells of a shifted grid."""
    columns = max(1, (count + 1) // 2)
    cell = view / columns
    found = []
    for i in range(count):
        column, row = i % columns, i // columns
        found.append(
            (
                (column + float(rng.uniform(0.2, 0.8))) * cell,
                4 + 20 * row + float(rng.uniform(0, 14)),
            )
        )
    return found


def _paint_sun(canvas: Canvas, sky: Sky, x: float) -> None:
    """The sun in a soft glow; at night, with stars, a crescent moon."""
    assert sky.sun is not None
    away = canvas.disc(x, sky.sun_y, 0) / np.float32(sky.sun_radius)
    glow = np.float32(sky.glow) * np.exp(-((away / np.float32(2.2)) ** 2), dtype=np.float32)
    canvas.rgb[...] += (rgb(sky.sun)[:, None, None] - canvas.rgb) * glow
    disc = canvas.disc(x, sky.sun_y, sky.sun_radius)
    if sky.stars:
        disc = np.maximum(disc, -canvas.disc(x + 3.8, sky.sun_y - 2.2, sky.sun_radius - 1))
    canvas.paint(sky.sun, disc)


def paint_clouds(canvas: Canvas, sky_name: str, seed: int) -> None:
    """Flat-bottomed clouds in two tones, painted on a strip that moves at half speed."""
    colour = rgb(SKIES[sky_name].cloud)
    under = 0.82 * colour + 0.18 * rgb(SKIES[sky_name].top)
    for cell in cells(canvas, CLOUD_CELL):
        rng = rng_for(seed, "cloud", cell)
        x, y = cell * CLOUD_CELL + rng.uniform(16, 68), rng.uniform(9, 30)
        size = float(rng.uniform(6, 9.5))
        side = 1 if rng.uniform() < 0.5 else -1
        part = canvas.around(float(x), float(y), 3 * size)
        if part is None:
            continue
        unit = part.scaled(size)
        base = unit.box(0, 0.35, 2.2, 0.42, 0.42)
        puffs = np.minimum(unit.disc(-0.25 * side, -0.2, 0.92), unit.disc(1.05 * side, 0.05, 0.62))
        puffs = np.minimum(puffs, unit.disc(-1.2 * side, 0.15, 0.55))
        cloud = np.minimum(np.maximum(puffs, unit.y - 0.77), base)
        unit.paint(under, cloud)
        lit = np.minimum(np.maximum(puffs, unit.y - 0.42), unit.box(0, 0.17, 2.0, 0.25, 0.25))
        unit.paint(colour, np.maximum(lit, cloud))


def cells(canvas: Canvas, size: float) -> range:
    """Cells of a width in units that a strip touches, one more on each side."""
    first, last = float(canvas.x[0, 0]), float(canvas.x[0, -1])
    return range(int(first // size) - 1, int(last // size) + 2)
