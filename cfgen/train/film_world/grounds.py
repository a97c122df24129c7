"""Grounds of the film world: the ridges behind them, and the near land with its bands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cfgen.train.film_world.backgrounds import SKIES, cells, rng_for
from cfgen.train.film_world.drawing import Canvas, Image, Rgb, rgb

RIDGE_TOP = 34.0
GROUND_TOP = 66.0
GROUND_SOLID = 78.0
"""Heights in units: a ridge reaches no higher, the near ground's edge lies between the others."""


@dataclass(frozen=True, slots=True)
class Ground:
    """How a ground looks.

    Attributes:
        near: colour of its upper edge.
        bands: what follows towards the viewer: heights in units and colours.
        hills: colour of the ridge behind it.
        ridge: form of that ridge, one of RIDGES.
    """

    near: Rgb
    bands: tuple[tuple[float, Rgb], ...]
    hills: Rgb
    ridge: str


GROUNDS = {
    "grass": Ground(
        (124, 192, 96), ((81, (98, 172, 82)), (90, (76, 150, 72))), (98, 164, 112), "hills"
    ),
    "snow": Ground(
        (240, 246, 253), ((81, (220, 231, 247)), (90, (198, 214, 239))), (150, 172, 208), "peaks"
    ),
    "sand": Ground(
        (246, 214, 148), ((81, (236, 196, 122)), (90, (224, 176, 100))), (222, 178, 124), "dunes"
    ),
    "lavender": Ground(
        (182, 152, 224),
        (
            (78, (144, 110, 198)),
            (82, (174, 142, 218)),
            (87, (136, 100, 190)),
            (92, (166, 132, 212)),
        ),
        (132, 138, 184),
        "hills",
    ),
    "autumn": Ground(
        (236, 174, 82), ((81, (216, 146, 62)), (90, (196, 126, 54))), (190, 118, 70), "woods"
    ),
    "sea": Ground(
        (246, 224, 176),
        (
            (79, (238, 250, 252)),
            (81.5, (74, 182, 212)),
            (86.5, (48, 154, 198)),
            (92, (34, 126, 178)),
        ),
        (70, 150, 196),
        "islands",
    ),
    "tulips": Ground(
        (222, 62, 82),
        (
            (77.5, (96, 170, 88)),
            (79.5, (252, 208, 76)),
            (84, (88, 162, 82)),
            (86.5, (246, 132, 172)),
            (92, (78, 150, 76)),
        ),
        (120, 176, 116),
        "hills",
    ),
    "canyon": Ground(
        (212, 116, 76),
        ((80, (190, 92, 62)), (85, (206, 110, 72)), (90, (166, 76, 54))),
        (192, 108, 82),
        "mesas",
    ),
}


def paint_ridge(canvas: Canvas, sky_name: str, ground_name: str, seed: int) -> None:
    """The ridge behind a ground, painted on a strip that moves at half speed."""
    sky, ground = SKIES[sky_name], GROUNDS[ground_name]
    canvas = canvas.below(RIDGE_TOP)
    air, hills = rgb(sky.bottom), rgb(ground.hills) * rgb(sky.light)
    RIDGES[ground.ridge](canvas, lambda mix: (1 - mix) * hills + mix * air, seed)


def paint_ground(canvas: Canvas, sky_name: str, ground_name: str, seed: int) -> None:
    """The near ground with its bands, painted over what stands behind its edge."""
    light, ground = rgb(SKIES[sky_name].light), GROUNDS[ground_name]
    canvas = canvas.below(GROUND_TOP)
    x = canvas.x[0]
    canvas.paint(rgb(ground.near) * light, ground_line(seed, x)[None] - canvas.y)
    shared = waves(x, rng_for(seed, "bands"), (1.5,), (105.0,))
    for k, (height, colour) in enumerate(ground.bands):
        own = waves(x, rng_for(seed, "band", k), (0.4,), (70.0,))
        canvas.paint(rgb(colour) * light, (height + shared + own)[None] - canvas.y)


def ground_line(seed: int, x: Image | np.float32) -> Image:
    """Height of the ground's edge at positions in units; it slopes by less than one in five."""
    return 72 + waves(np.asarray(x, np.float32), rng_for(seed, "near"), (2.2, 0.9), (150.0, 61.0))


def waves(
    x: Image, rng: np.random.Generator, heights: tuple[float, ...], lengths: tuple[float, ...]
) -> Image:
    """A sum of sines of these heights and roughly these lengths."""
    total = np.zeros_like(x)
    for height, length in zip(heights, lengths, strict=True):
        turns = x / np.float32(length * rng.uniform(0.85, 1.15)) + np.float32(rng.uniform())
        total += np.float32(height) * np.sin(np.float32(2 * np.pi) * turns)
    return total


_Tone = Callable[[float], Image]
"""The ridge's colour, mixed with the air in front of it by a share."""


def _hills(canvas: Canvas, tone: _Tone, seed: int) -> None:
    for k, (height, mix) in enumerate(((51.0, 0.5), (59.0, 0.22))):
        line = height + waves(canvas.x[0], rng_for(seed, "far", k), (4.6, 1.8), (110.0, 47.0))
        canvas.paint(tone(mix), line[None] - canvas.y)


def _dunes(canvas: Canvas, tone: _Tone, seed: int) -> None:
    """Sharp crests with round hollows between them."""
    for k, (height, mix, length) in enumerate(((48.0, 0.45, 76.0), (56.0, 0.15, 104.0))):
        rng = rng_for(seed, "far", k)
        bent = canvas.x[0] + waves(canvas.x[0], rng, (9.0,), (97.0,))
        hollow = np.abs(np.sin(np.float32(np.pi / length) * bent + np.float32(rng.uniform(0, 3))))
        canvas.paint(tone(mix), (height + 9 * hollow)[None] - canvas.y)


def _peaks(canvas: Canvas, tone: _Tone, seed: int) -> None:
    """Mountains with a dark side and a white top."""
    for cell in cells(canvas, 46.0):
        rng = rng_for(seed, "peak", cell)
        x, top = 46.0 * cell + float(rng.uniform(10, 36)), float(rng.uniform(39, 48))
        part = canvas.around(x, top, 60)
        if part is None:
            continue
        half = 30.0 + 0.6 * (48 - top)
        tall = 72 - top
        part.paint(tone(0.3), part.polygon([(0, 0), (half, tall), (-half, tall)]))
        part.paint(tone(0.05), part.polygon([(0, 0), (half, tall), (4, tall), (-3, tall * 0.45)]))
        cap = [(0, 0), (0.3 * half, 0.3 * tall), (0.12 * half, 0.24 * tall), (0, 0.36 * tall)]
        cap += [(-0.12 * half, 0.22 * tall), (-0.3 * half, 0.3 * tall)]
        part.paint(_snow(tone, 0.3), part.polygon(cap))
    line = 65 + waves(canvas.x[0], rng_for(seed, "far"), (2.4, 1.2), (100.0, 47.0))
    canvas.paint(0.9 * _snow(tone, 0.1), line[None] - canvas.y)


def _snow(tone: _Tone, mix: float) -> Image:
    """Snow in the same light as the ridge."""
    return np.asarray(np.minimum(tone(mix) * rgb((1.45, 1.33, 1.17)), 255), np.float32)


def _mesas(canvas: Canvas, tone: _Tone, seed: int) -> None:
    """Table mountains with one light layer of rock, and low hills before them."""
    for cell in cells(canvas, 58.0):
        rng = rng_for(seed, "mesa", cell)
        x, top = 58.0 * cell + float(rng.uniform(14, 44)), float(rng.uniform(42, 52))
        part = canvas.around(x, top, 44)
        if part is None:
            continue
        half, foot = float(rng.uniform(11, 19)), 74 - top
        outline = part.polygon(
            [(-half, 0), (half, 0), (half + 2.5, 9), (half + 11, foot), (-half - 11, foot)]
            + [(-half - 2.5, 9)]
        )
        part.paint(tone(0.3), outline)
        layer = np.maximum(outline, np.abs(part.y - 5) - 1.6)
        part.paint(tone(0.55), layer)
    line = 62 + waves(canvas.x[0], rng_for(seed, "far"), (3.0, 1.2), (120.0, 47.0))
    canvas.paint(tone(0.15), line[None] - canvas.y)


def _woods(canvas: Canvas, tone: _Tone, seed: int) -> None:
    """A hill, and before it the round crowns of a wood."""
    line = 51 + waves(canvas.x[0], rng_for(seed, "far", 0), (4.6, 1.8), (110.0, 47.0))
    canvas.paint(tone(0.55), line[None] - canvas.y)
    reds = ((34.0, 8.0, -22.0), (8.0, -26.0, -14.0), (-26.0, -40.0, -12.0))
    for cell in cells(canvas, 11.0):
        rng = rng_for(seed, "crown", cell)
        x = np.float32(11.0 * cell + rng.uniform(3, 8))
        height = float(_forest_floor(seed, x)) - float(rng.uniform(1, 4))
        part = canvas.around(float(x), height, 9)
        if part is not None:
            tint = rgb(reds[int(rng.integers(3))])
            part.paint(np.clip(tone(0.2) + 0.7 * tint, 0, 255), part.disc(0, 0, 7))
    canvas.paint(tone(0.12), (_forest_floor(seed, canvas.x[0]) + 1.5)[None] - canvas.y)


def _forest_floor(seed: int, x: Image | np.float32) -> Image:
    return 63 + waves(np.asarray(x, np.float32), rng_for(seed, "far", 1), (3.0,), (120.0,))


def _islands(canvas: Canvas, tone: _Tone, seed: int) -> None:
    """Open water up to a level horizon, and low islands on it."""
    for cell in cells(canvas, 96.0):
        rng = rng_for(seed, "island", cell)
        x = 96.0 * cell + float(rng.uniform(24, 72))
        wide, tall = float(rng.uniform(14, 24)), float(rng.uniform(5, 9))
        part = canvas.around(x, 57, 30)
        if part is not None:
            bump = part.oval(float(rng.uniform(-0.5, 0.5)) * wide, 0, wide * 0.5, tall * 1.35)
            part.paint(tone(0.5) * 0.9, np.minimum(part.oval(0, 0, wide, tall), bump))
    for height, mix in ((57.0, 0.25), (63.0, 0.05)):
        canvas.paint(tone(mix), np.float32(height) - canvas.y)


RIDGES: dict[str, Callable[[Canvas, _Tone, int], None]] = {
    "hills": _hills,
    "dunes": _dunes,
    "peaks": _peaks,
    "mesas": _mesas,
    "woods": _woods,
    "islands": _islands,
}
