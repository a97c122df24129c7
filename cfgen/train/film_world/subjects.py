"""The subjects of the film world: bold shapes in one colour, about 28 units across.

Each is drawn around the origin of a `Canvas`, lit from the upper left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cfgen.train.film_world.drawing import Canvas, Image, Rgb, shade

REACH = 22.0
"""No subject reaches farther from its centre, in units."""

INK = (58, 48, 56)


def draw_subject(
    canvas: Canvas, shape: str, colour: Rgb, *, at: tuple[float, float], size: float
) -> None:
    """Draw a subject of a size (1 is usual) over a canvas in place, centred in its units."""
    part = canvas.around(*at, REACH * size)
    if part is None:
        return
    grown = np.float32(size)
    unit = Canvas(part.rgb, part.alpha, part.x / grown, part.y / grown, part.scale * size)
    _DRAW[shape](unit, np.asarray(colour, np.float32))


def _body(canvas: Canvas, colour: Image, outline: Image) -> None:
    """A body with a darker rim, so that it stands out from any ground."""
    canvas.paint(shade(colour, 0.55), outline)
    canvas.paint(colour, outline + 1.5)


def _balloon(canvas: Canvas, colour: Image) -> None:
    canvas.paint((120, 78, 48), canvas.box(0, 17.5, 3.8, 3.0, 0.8))
    cone = canvas.polygon([(-10.5, 2), (10.5, 2), (3.2, 14.5), (-3.2, 14.5)])
    _body(canvas, colour, np.minimum(canvas.disc(0, -4, 13), cone))
    stripe = np.maximum(canvas.oval(0, -3, 4.2, 15), canvas.disc(0, -4, 11.5))
    canvas.paint(shade(colour, 1.45), stripe)


def _kite(canvas: Canvas, colour: Image) -> None:
    canvas.paint(shade(colour, 0.6), canvas.polygon([(-0.9, 14), (0.9, 14), (3.2, 21), (1.4, 21)]))
    _body(canvas, colour, canvas.polygon([(0, -18), (12.5, -4), (0, 16), (-12.5, -4)]))
    canvas.paint(shade(colour, 1.45), canvas.polygon([(0, -15), (0, -4), (-9.5, -4)]))
    canvas.paint(shade(colour, 1.45), canvas.polygon([(0, 12), (0, -4), (9, -4)]))


def _star(canvas: Canvas, colour: Image) -> None:
    turns = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 17.0, 8.0)
    points = [
        (float(r * np.sin(a)), float(-r * np.cos(a))) for r, a in zip(radii, turns, strict=True)
    ]
    _body(canvas, colour, canvas.polygon(points) - 0.6)


def _heart(canvas: Canvas, colour: Image) -> None:
    lobe = np.hypot(np.abs(canvas.x) - 6.6, canvas.y + 5) - 8
    point = canvas.polygon([(-13.6, -1.5), (13.6, -1.5), (0, 15.5)])
    _body(canvas, colour, np.minimum(lobe, point))
    canvas.paint(shade(colour, 1.5), canvas.disc(-6.5, -6.5, 2.8))


def _cube(canvas: Canvas, colour: Image) -> None:
    canvas.paint(shade(colour, 0.5), canvas.box(0, 0, 14, 14, 1.5))
    canvas.paint(colour, canvas.box(-2.2, 2.2, 9.8, 9.8, 0.5))
    canvas.paint(
        shade(colour, 1.45), canvas.polygon([(-12, -9), (-8, -12.5), (12.5, -12.5), (8.5, -9)])
    )


def _airplane(canvas: Canvas, colour: Image) -> None:
    _body(canvas, colour, canvas.polygon([(-14, -2), (-19, -12), (-14, -12), (-7, -3)]))
    _body(canvas, colour, canvas.oval(0, 0, 18.5, 6.2))
    _body(canvas, colour, canvas.polygon([(5, 1), (-3, 1), (-11, 14), (-5, 14)]))
    for x in (-3.5, 2.5, 8.5):
        canvas.paint(shade(colour, 1.7), canvas.disc(x, -1.8, 1.5))


def _bird(canvas: Canvas, colour: Image) -> None:
    canvas.paint((250, 176, 40), canvas.polygon([(13, -8), (20.5, -5.5), (13, -3)]))
    _body(canvas, colour, canvas.polygon([(-8, 0), (-20, -5), (-20, 6)]))
    _body(canvas, colour, np.minimum(canvas.oval(-1, 1, 12.5, 8.8), canvas.disc(9, -5.5, 6.6)))
    _body(canvas, shade(colour, 1.35), canvas.polygon([(-7, -1), (4, -1), (-6, 14)]))
    canvas.paint(INK, canvas.disc(10.5, -7, 1.5))


def _fish(canvas: Canvas, colour: Image) -> None:
    _body(canvas, colour, canvas.polygon([(-9, 0), (-19.5, -10), (-16.5, 0), (-19.5, 10)]))
    _body(canvas, colour, canvas.oval(2, 0, 15.5, 10.5))
    band = np.maximum(canvas.box(-1, 0, 2.2, 12), canvas.oval(2, 0, 14, 9))
    canvas.paint(shade(colour, 1.5), band)
    canvas.paint((250, 250, 250), canvas.disc(10, -3, 3))
    canvas.paint(INK, canvas.disc(10.8, -3, 1.5))


def _rocket(canvas: Canvas, colour: Image) -> None:
    canvas.paint((255, 178, 44), canvas.polygon([(-4.5, 12), (4.5, 12), (0, 21.5)]))
    for side in (-1, 1):
        fin = canvas.polygon([(5 * side, 3), (12.5 * side, 15), (5 * side, 12.5)])
        _body(canvas, shade(colour, 0.8), fin)
    nose = canvas.polygon([(-7.5, -4), (-4.5, -13), (0, -19.5), (4.5, -13), (7.5, -4)])
    _body(canvas, colour, np.minimum(nose, canvas.box(0, 4, 7.5, 9.5, 2)) - 0.3)
    canvas.paint(shade(colour, 1.75), canvas.disc(0, -4, 3.6))


def _umbrella(canvas: Canvas, colour: Image) -> None:
    canvas.paint(INK, canvas.box(0, 7, 1.1, 11.5))
    canvas.paint(INK, canvas.box(2.6, 18, 3.6, 1.1))
    dome = np.maximum(canvas.oval(0, 2, 18, 18.5), canvas.y - 2)
    for x in (-12, 0, 12):
        dome = np.maximum(dome, -canvas.oval(x, 3.4, 5.6, 3.6))
    _body(canvas, colour, dome)
    canvas.paint(
        shade(colour, 1.4), np.maximum(canvas.oval(0, 2, 5.5, 17), np.maximum(dome + 1.5, canvas.y))
    )


_DRAW: dict[str, Callable[[Canvas, Image], None]] = {
    "balloon": _balloon,
    "kite": _kite,
    "star": _star,
    "heart": _heart,
    "cube": _cube,
    "airplane": _airplane,
    "bird": _bird,
    "fish": _fish,
    "rocket": _rocket,
    "umbrella": _umbrella,
}

SHAPES = tuple(_DRAW)
