"""Anti-aliased flat shapes on layers: what the film world is drawn with. Knows no film.

Shapes are signed distances in units (negative inside) over the grid of a `Canvas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32 | np.float64]
Number = float | Image
Rgb = tuple[float, float, float] | Image


@dataclass(frozen=True, slots=True)
class Canvas:
    """A premultiplied layer and where its pixels lie.

    Attributes:
        rgb: Colours times coverage, planes [3, H, W] in 0..255, painted in place.
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

    @classmethod
    def empty(cls, x0: int, x1: int, height: int, scale: float) -> Canvas:
        """A transparent layer of pixel columns x0..x1-1."""
        across = (np.arange(x0, x1, dtype=np.float32) + 0.5) / np.float32(scale)
        down = (np.arange(height, dtype=np.float32) + 0.5) / np.float32(scale)
        y, x = np.meshgrid(down, across, indexing="ij")
        shape = (height, x1 - x0)
        return cls(np.zeros((3, *shape), np.float32), np.zeros(shape, np.float32), x, y, scale)

    def around(self, x: float, y: float, reach: float) -> Canvas | None:
        """The part within `reach` units of a point, its origin moved there; None if outside."""
        height, width = self.alpha.shape
        left, top = float(self.x[0, 0]), float(self.y[0, 0])
        columns = _span((x - reach - left) * self.scale, (x + reach - left) * self.scale, width)
        rows = _span((y - reach - top) * self.scale, (y + reach - top) * self.scale, height)
        if columns is None or rows is None:
            return None
        return Canvas(
            self.rgb[:, rows, columns],
            self.alpha[rows, columns],
            self.x[rows, columns] - np.float32(x),
            self.y[rows, columns] - np.float32(y),
            self.scale,
        )

    def below(self, y: float) -> Canvas:
        """The rows from `y` units down, with the same units."""
        rows = slice(max(0, int((y - float(self.y[0, 0])) * self.scale)), None)
        return Canvas(self.rgb[:, rows], self.alpha[rows], self.x[rows], self.y[rows], self.scale)

    def scaled(self, size: float) -> Canvas:
        """The same pixels in units that are `size` times as large."""
        grown = np.float32(size)
        return Canvas(self.rgb, self.alpha, self.x / grown, self.y / grown, self.scale * size)

    def paint(self, colour: Rgb, distance: Image) -> None:
        """Cover the inside of a shape with a colour."""
        coverage = np.float32(0.5) - np.asarray(distance, np.float32) * np.float32(self.scale)
        np.clip(coverage, 0, 1, out=coverage)
        change = rgb(colour)[:, None, None] - self.rgb
        change *= coverage
        self.rgb[...] += change
        self.alpha[...] += (1 - self.alpha) * coverage

    def disc(self, cx: float, cy: Number, radius: float) -> Image:
        """Distance to a circle."""
        dx, dy = self.x - np.float32(cx), self.y - np.asarray(cy, np.float32)
        return np.asarray(np.sqrt(dx * dx + dy * dy) - np.float32(radius), np.float32)

    def oval(self, cx: float, cy: float, half_w: float, half_h: float) -> Image:
        """Distance to an ellipse, near its edge. Source: Inigo Quilez, "Ellipse - distance"."""
        dx = (self.x - np.float32(cx)) * np.float32(1 / half_w)
        dy = (self.y - np.float32(cy)) * np.float32(1 / half_h)
        size = np.sqrt(dx * dx + dy * dy)
        slope = np.sqrt((dx * np.float32(1 / half_w)) ** 2 + (dy * np.float32(1 / half_h)) ** 2)
        return np.asarray(size * (size - 1) / np.maximum(slope, np.float32(1e-6)), np.float32)

    def box(self, cx: float, cy: Number, half_w: float, half_h: float, round_: float = 0) -> Image:
        """Distance to a rectangle around (cx, cy), with rounded corners."""
        dx = np.abs(self.x - cx) - half_w + round_
        dy = np.abs(self.y - cy) - half_h + round_
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        return np.asarray(outside + np.minimum(np.maximum(dx, dy), 0) - round_, np.float32)

    def polygon(self, points: Sequence[tuple[float, float]]) -> Image:
        """Distance to a simple polygon. Source: Inigo Quilez, "2D distance functions"."""
        nearest = np.full(self.x.shape, np.inf, np.float32)
        inside = np.zeros(self.x.shape, bool)
        corners = np.asarray(points, np.float32)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
            ex, ey = bx - ax, by - ay
            px, py = self.x - ax, self.y - ay
            along = np.clip((px * ex + py * ey) * (1 / (ex * ex + ey * ey)), 0, 1)
            dx, dy = px - ex * along, py - ey * along
            nearest = np.minimum(nearest, dx * dx + dy * dy)
            if ey:
                crosses = (ay > self.y) != (by > self.y)
                inside ^= crosses & (px < py * (ex / ey))
        nearest = np.sqrt(nearest)
        return np.asarray(np.where(inside, -nearest, nearest), np.float32)


def _span(start: float, stop: float, size: int) -> slice | None:
    first, last = max(0, int(np.floor(start))), min(size, int(np.ceil(stop)) + 1)
    return slice(first, last) if first < last else None


def rgb(colour: Rgb) -> Image:
    """A colour as an array."""
    return np.asarray(colour, np.float32)


def shade(colour: Rgb, factor: float) -> Image:
    """A colour made darker (below 1) or lighter (above)."""
    rgb = np.asarray(colour, np.float32)
    return rgb * np.float32(factor) if factor <= 1 else rgb + (255 - rgb) * np.float32(factor - 1)
