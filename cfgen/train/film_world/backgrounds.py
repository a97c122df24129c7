"""Skies, clouds, hills and ground of the film world.

A view is put together of three layers: a fixed sky, a far layer of clouds and hills that moves at
half the camera's speed, and a near layer of ground and landmarks.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from cfgen.train.film_world.drawing import Canvas, Image, Rgb

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
    sun_radius: float = 8.0
    stars: int = 0


SKIES = {
    "dawn": Sky(
        (150, 176, 232), (255, 206, 190), (0.98, 0.88, 0.90), (255, 236, 232), (255, 246, 222), 44
    ),
    "day": Sky(
        (70, 158, 236), (190, 228, 252), (1.0, 1.0, 1.0), (252, 253, 255), (255, 240, 170), 18
    ),
    "sunset": Sky(
        (92, 52, 126), (255, 150, 84), (0.94, 0.72, 0.66), (238, 132, 128), (255, 216, 112), 46, 10
    ),
    "night": Sky(
        (10, 14, 44), (40, 56, 112), (0.50, 0.55, 0.76), (48, 60, 108), (246, 242, 214), 18, 7, 16
    ),
    "overcast": Sky((120, 130, 142), (186, 194, 202), (0.78, 0.81, 0.84), (152, 161, 172), None),
    "storm": Sky((44, 46, 66), (106, 112, 130), (0.62, 0.64, 0.72), (68, 72, 92), None),
}


@dataclass(frozen=True, slots=True)
class Ground:
    """Colours of a ground: near, its bands, and the far hills."""

    near: Rgb
    deep: Rgb
    hills: Rgb


GROUNDS = {
    "grass": Ground((112, 184, 92), (78, 152, 72), (96, 160, 110)),
    "snow": Ground((232, 240, 250), (204, 218, 238), (186, 204, 230)),
    "sand": Ground((240, 206, 138), (224, 180, 104), (214, 170, 118)),
    "lavender": Ground((166, 134, 210), (136, 100, 188), (140, 130, 184)),
    "autumn": Ground((222, 140, 64), (190, 104, 48), (176, 104, 66)),
    "sea": Ground((54, 150, 196), (36, 118, 170), (74, 140, 172)),
    "tulips": Ground((226, 84, 108), (88, 166, 88), (120, 172, 108)),
    "canyon": Ground((196, 98, 66), (164, 74, 54), (178, 104, 84)),
}


def rng_for(*key: int | str) -> np.random.Generator:
    """A generator that depends on `key` alone, the same on every platform."""
    digest = zlib.crc32(repr(key).encode())
    return np.random.Generator(np.random.Philox(key=[digest, len(key)]))


def rgb(colour: Rgb) -> Image:
    """A colour as an array."""
    return np.asarray(colour, np.float32)


def paint_sky(name: str, seed: int, width: int, height: int, scale: float) -> Image:
    """The fixed background, opaque: [height, width, 3]."""
    sky = SKIES[name]
    canvas = Canvas.empty(0, width, height, scale)
    blend = np.clip(canvas.y[:, :1] / HORIZON, 0, 1)[..., None]
    canvas.rgb[...] = rgb(sky.top) * (1 - blend) + rgb(sky.bottom) * blend
    canvas.alpha[...] = 1
    rng = rng_for(seed, "sky")
    view = width / scale
    x = rng.uniform(0.16, 0.84) * view
    stars = zip(rng.uniform(0, view, 16), rng.uniform(3, 44, 16), strict=True)
    for star_x, star_y in list(stars)[: sky.stars]:
        canvas.paint((214, 222, 250), canvas.disc(star_x, star_y, 1.25))
    if sky.sun is not None:
        halo = 0.75 * rgb(sky.bottom) + 0.25 * rgb(sky.sun)
        if not sky.stars:
            canvas.paint(halo, canvas.disc(x, sky.sun_y, sky.sun_radius + 5))
        canvas.paint(sky.sun, canvas.disc(x, sky.sun_y, sky.sun_radius))
        if sky.stars:  # a crescent moon
            behind = rgb(sky.top) * 0.75 + rgb(sky.bottom) * 0.25
            canvas.paint(behind, canvas.disc(x + 3.4, sky.sun_y - 2, sky.sun_radius - 1))
    return canvas.rgb


def paint_far(canvas: Canvas, sky_name: str, ground_name: str, seed: int) -> None:
    """Clouds and far hills, painted on an empty strip."""
    sky, ground = SKIES[sky_name], GROUNDS[ground_name]
    first = int(canvas.x[0, 0] // CLOUD_CELL) - 1
    last = int(canvas.x[0, -1] // CLOUD_CELL) + 1
    for cell in range(first, last + 1):
        rng = rng_for(seed, "cloud", cell)
        cx, cy = cell * CLOUD_CELL + rng.uniform(15, 69), rng.uniform(8, 30)
        size = float(rng.uniform(6, 9.5))
        part = canvas.around(cx, cy, 3 * size)
        if part is None:
            continue
        puffs = np.minimum(
            part.oval(-1.2 * size, 0.3 * size, 1.0 * size, 0.62 * size),
            part.oval(1.25 * size, 0.35 * size, 0.95 * size, 0.58 * size),
        )
        part.paint(
            sky.cloud, np.minimum(part.oval(0, -0.05 * size, 1.25 * size, 0.95 * size), puffs)
        )
    hills = rgb(ground.hills) * rgb(sky.light)
    for k, (height, mix) in enumerate(((50.0, 0.45), (58.0, 0.2))):
        line = height + waves(canvas.x[0], rng_for(seed, "far", k), (5.0, 2.0), (110.0, 47.0))
        canvas.paint((1 - mix) * hills + mix * rgb(sky.bottom), line[None] - canvas.y)


def paint_ground(canvas: Canvas, sky_name: str, ground_name: str, seed: int) -> None:
    """The near ground with its bands, painted over what stands behind its edge."""
    light = rgb(SKIES[sky_name].light)
    ground = GROUNDS[ground_name]
    near, deep = rgb(ground.near) * light, rgb(ground.deep) * light
    canvas.paint(near, ground_line(seed, canvas.x[0])[None] - canvas.y)
    for k in range(2):
        rng = rng_for(seed, "band", k)
        band = 81 + 9 * k + waves(canvas.x[0], rng, (2.2,), (90.0,))
        canvas.paint(near + (deep - near) * (0.5 + 0.5 * k), band[None] - canvas.y)


def ground_line(seed: int, x: Image | np.float32) -> Image:
    """Height of the ground's edge at positions in units."""
    return 72 + waves(np.asarray(x, np.float32), rng_for(seed, "near"), (2.6, 1.3), (150.0, 61.0))


def waves(
    x: Image, rng: np.random.Generator, heights: tuple[float, ...], lengths: tuple[float, ...]
) -> Image:
    """A sum of sines of these heights and roughly these lengths."""
    total = np.zeros_like(x)
    for height, length in zip(heights, lengths, strict=True):
        turns = x / np.float32(length * rng.uniform(0.85, 1.15)) + np.float32(rng.uniform())
        total += np.float32(height) * np.sin(np.float32(2 * np.pi) * turns)
    return total
