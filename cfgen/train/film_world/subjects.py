"""The subjects of the film world: bold shapes in one colour, about 28 units across.

Each is drawn around the origin of a `Canvas`, lit from the upper left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cfgen.train.film_world.drawing import Canvas, Image, Rgb, rgb, shade

REACH = 22.0
"""No subject reaches farther from its centre, in units."""

INK = (58, 48, 56)
PLUM = (52, 22, 58)


def draw_subject(
    canvas: Canvas, shape: str, colour: Rgb, *, at: tuple[float, float], size: float
) -> None:
    """Draw a subject of a size (1 is usual) over a canvas in place, centred in its units."""
    part = canvas.around(*at, REACH * size)
    if part is None:
        return
    _DRAW[shape](part.scaled(size), np.asarray(colour, np.float32))


def _body(canvas: Canvas, colour: Image, outline: Image) -> None:
    """A body with a darker rim, so that it stands out from any ground."""
    canvas.paint(rim_of(colour), outline)
    canvas.paint(colour, outline + 1.5)


def rim_of(colour: Image) -> Image:
    """A warm, darker tone of a colour."""
    return np.asarray(0.6 * colour + 0.4 * rgb(PLUM), np.float32)


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
    outer, inner, tenth = 17.6, 8.4, np.float32(np.pi / 5)
    folded = np.abs((np.arctan2(canvas.x, -canvas.y) + tenth) % (2 * tenth) - tenth)
    radius = canvas.disc(0, 0, 0)
    across, along = radius * np.sin(folded), radius * np.cos(folded)
    ex, ey = inner * np.sin(np.pi / 5), inner * np.cos(np.pi / 5) - outer
    edge = (across * np.float32(-ey) + (along - outer) * np.float32(ex)) / np.hypot(ex, ey)
    _body(canvas, colour, np.asarray(edge, np.float32))


def _heart(canvas: Canvas, colour: Image) -> None:
    """Source of the distance: Inigo Quilez, "2D distance functions"."""
    grown = np.float32(28.5)
    x, y = np.abs(canvas.x) / grown, (15.5 - canvas.y) / grown
    lobe = np.hypot(x - 0.25, y - 0.75) - np.float32(np.sqrt(2) / 4)
    along = 0.5 * np.maximum(x + y, 0)
    point = np.minimum(np.hypot(x, y - 1), np.hypot(x - along, y - along)) * np.sign(x - y)
    _body(canvas, colour, grown * np.where(x + y > 1, lobe, point))
    canvas.paint(shade(colour, 1.5), canvas.disc(-6.8, -7.5, 3.0))


def _cube(canvas: Canvas, colour: Image) -> None:
    outline = [(-14, -8), (-8, -14), (14, -14), (14, 8), (8, 14), (-14, 14)]
    canvas.paint(rim_of(colour), canvas.polygon(outline) - 0.4)
    canvas.paint(colour, canvas.box(-3, 3, 9.6, 9.6))
    canvas.paint(
        shade(colour, 1.45), canvas.polygon([(-12.4, -8), (-8, -12.5), (12.4, -12.5), (8, -8)])
    )
    canvas.paint(
        shade(colour, 0.72), canvas.polygon([(8, -6.6), (12.6, -11.2), (12.6, 7.6), (8, 12.2)])
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
    wing = np.maximum(canvas.oval(-4, 1, 8, 7.5), -1 - canvas.y)
    _body(canvas, shade(colour, 1.3), wing)
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


def _butterfly(canvas: Canvas, colour: Image) -> None:
    folded = Canvas(canvas.rgb, canvas.alpha, np.abs(canvas.x), canvas.y, canvas.scale)
    _body(folded, shade(colour, 0.85), folded.oval(8, 8.5, 7, 7.5))
    upper = np.minimum(folded.oval(10.5, -7, 8.5, 9), folded.polygon([(0, 3), (3, -9), (13, 1)]))
    _body(folded, colour, upper)
    folded.paint(shade(colour, 1.6), folded.oval(11.5, -7.5, 3.6, 4.2))
    canvas.paint(INK, canvas.box(0, 0, 2.1, 12.5, 2))


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
    "butterfly": _butterfly,
}

SHAPES = tuple(_DRAW)

EXTENT = {
    "balloon": (-13.0, -17.0, 13.0, 20.5),
    "kite": (-12.5, -18.0, 12.5, 21.0),
    "star": (-17.0, -17.6, 17.0, 14.3),
    "heart": (-17.3, -16.0, 17.3, 15.5),
    "cube": (-14.4, -14.4, 14.4, 14.4),
    "airplane": (-19.0, -12.0, 18.5, 14.0),
    "bird": (-20.0, -12.1, 20.3, 9.8),
    "fish": (-19.5, -10.5, 17.5, 10.5),
    "rocket": (-12.5, -19.8, 12.5, 21.5),
    "umbrella": (-18.0, -16.5, 18.0, 19.1),
    "butterfly": (-19.0, -16.0, 19.0, 16.0),
}
"""Left, top, right and bottom of each shape of size 1 around its centre, in units."""
