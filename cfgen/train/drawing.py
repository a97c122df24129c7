"""Anti-aliased flat shapes: what the film world is drawn with. Knows shapes and colours, no film.

Shapes are signed distances in units (negative inside) over the grid of a `Canvas`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32 | np.float64]
Number = float | Image
Rgb = tuple[float, float, float]

LANDMARKS = ("tree", "pine", "house", "tower", "rock")


@dataclass(frozen=True, slots=True)
class Canvas:
    """A premultiplied layer and where its pixels lie.

    Attributes:
        rgb: Colours times coverage, [H, W, 3] in 0..255, painted in place.
        alpha: Coverage [H, W] in 0..1, painted in place.
        x: Horizontal positions of the pixels in units, [H, W].
        y: Vertical positions, [H, W].
        scale: Pixels a unit.
    """

    rgb: Image
    alpha: Image
    x: Image
    y: Image
    scale: float

    def paint(self, colour: Rgb | Image, distance: Image) -> None:
        """Cover the inside of a shape with a colour."""
        coverage = np.asarray(np.clip(0.5 - distance * self.scale, 0, 1), np.float32)
        self.rgb[...] += (np.asarray(colour, np.float32) - self.rgb) * coverage[..., None]
        self.alpha[...] += (1 - self.alpha) * coverage

    def disc(self, cx: float, cy: Number, radius: float) -> Image:
        """Distance to a circle."""
        return np.asarray(np.hypot(self.x - cx, self.y - cy) - radius)

    def box(self, cx: float, cy: Number, half_w: float, half_h: float) -> Image:
        """Distance to a rectangle around (cx, cy)."""
        return np.asarray(np.maximum(np.abs(self.x - cx) - half_w, np.abs(self.y - cy) - half_h))

    def triangle(self, cx: float, base: Number, half_w: float, tall: float) -> Image:
        """Distance to a triangle that stands on `base` and points up."""
        slope = np.hypot(half_w, tall)
        edges = (np.abs(self.x - cx) * tall - (self.y - base + tall) * half_w) / slope
        return np.asarray(np.maximum(edges, self.y - base))


def draw_landmark(
    canvas: Canvas, x: float, base: Number, rng: np.random.Generator, light: Image
) -> None:
    """Draw one landmark of random kind, size and colour that stands at (x, base)."""
    kind = LANDMARKS[int(rng.integers(len(LANDMARKS)))]
    size = rng.uniform(0.85, 1.2)
    tint = int(rng.integers(3))

    def paint(colour: Rgb, distance: Image) -> None:
        canvas.paint(np.asarray(colour, np.float32) * light, distance)

    def box(dx: float, dy: float, half_w: float, half_h: float) -> Image:
        return canvas.box(x + dx * size, base - dy * size, half_w * size, half_h * size)

    def triangle(dy: float, half_w: float, tall: float) -> Image:
        return canvas.triangle(x, base - dy * size, half_w * size, tall * size)

    if kind == "tree":
        paint((110, 76, 52), box(0, 5, 1.5, 6))
        leaf = ((52, 122, 60), (196, 110, 44), (150, 170, 60))[tint]
        paint(leaf, canvas.disc(x, base - 14 * size, 7.5 * size))
    elif kind == "pine":
        paint((92, 66, 48), box(0, 2, 1.3, 3))
        leaf = ((30, 92, 74), (40, 110, 60), (60, 96, 100))[tint]
        for k in range(3):
            paint(leaf, triangle(3 + 5.5 * k, 7.5 - 1.6 * k, 9))
    elif kind == "house":
        paint(((238, 222, 196), (204, 120, 96), (190, 204, 214))[tint], box(0, 4.5, 7.5, 5))
        paint((132, 60, 52), triangle(9, 9.5, 7))
        paint((250, 222, 120), box(2.5, 5, 1.7, 1.7))
    elif kind == "tower":
        paint(((208, 200, 190), (170, 150, 140), (236, 236, 232))[tint], box(0, 10, 3.6, 11))
        paint((88, 92, 128), triangle(20, 5.2, 7))
        paint((70, 66, 74), box(0, 14, 1.1, 1.8))
    else:
        stone = ((128, 128, 134), (150, 132, 118), (104, 112, 122))[tint]
        dome = np.hypot((canvas.x - x) * 0.75, canvas.y - base) - 6.5 * size
        paint(stone, np.maximum(dome, canvas.y - base))


def draw_subject(
    image: Image, shape: str, colour: Rgb, *, at: tuple[float, float], scale: float
) -> None:
    """Draw a subject over an opaque image [H, W, 3] in place, centred at `at` in units."""
    cx, cy = at
    height, width = image.shape[:2]
    x0, x1 = max(0, int((cx - 22) * scale)), min(width, int((cx + 22) * scale) + 1)
    y0, y1 = max(0, int((cy - 22) * scale)), min(height, int((cy + 30) * scale) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    row = (np.arange(x0, x1, dtype=np.float32) + 0.5)[None] / scale - cx
    column = (np.arange(y0, y1, dtype=np.float32) + 0.5)[:, None] / scale - cy
    x, y = np.broadcast_arrays(row, column)
    patch = image[y0:y1, x0:x1]
    canvas = Canvas(patch, np.ones(patch.shape[:2], np.float32), x, y, scale)
    bright = np.asarray(colour, np.float32)
    if shape == "balloon":
        canvas.paint((96, 62, 40), canvas.box(0, 18.5, 3.6, 3.0))
    if shape == "kite":
        canvas.paint(bright * 0.6, canvas.box(0, 19.5, 0.9, 4.5))
        canvas.paint(bright * 0.6, canvas.box(0, 22.5, 2.8, 1.1))
    body = body_distance(shape, canvas)
    canvas.paint(bright * 0.55, body)
    canvas.paint(bright, body + 1.6)
    shine = np.maximum(canvas.disc(-4.5, -6, 3.2), body + 3)
    canvas.paint(bright + (255 - bright) * 0.45, shine)


def body_distance(shape: str, canvas: Canvas) -> Image:
    """Distance to the outline of a subject's body centred at the origin."""
    x, y = canvas.x, canvas.y
    if shape == "balloon":
        cone = np.maximum(np.abs(x) * 0.86 + (y - 16) * 0.5, 5 - y)
        return np.asarray(np.minimum(canvas.disc(0, -3, 12), cone))
    if shape == "kite":
        tall = np.where(y < -3, 13.0, 19.0)
        half = np.abs(x) / 12.5 + np.abs(y + 3) / tall - 1
        return np.asarray(half * 8.5)
    if shape == "cube":
        return canvas.box(0, 0, 12.5, 12.5)
    if shape == "star":
        return _star(x, y, outer=16.0, inner=7.6)
    lobe = np.hypot(np.abs(x) - 6.4, y + 5) - 7.6
    point = np.abs(x) * 0.76 + (y - 14.5) * 0.65
    return np.asarray(np.minimum(lobe, np.maximum(point, -5 - y)))


def _star(x: Image, y: Image, *, outer: float, inner: float) -> Image:
    """Distance to a five-pointed star with its tips and notches at two radii."""
    angle = np.arctan2(x, -y)
    folded = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(x, y)
    across, along = radius * np.sin(folded), radius * np.cos(folded)
    ex, ey = inner * np.sin(np.pi / 5), inner * np.cos(np.pi / 5) - outer
    return np.asarray((across * -ey + (along - outer) * ex) / np.hypot(ex, ey))
