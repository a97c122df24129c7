"""The landmarks of the film world: what stands on the ground of a place, and is never in a caption.

A kind is a form and a colour, such as "red lighthouse"; kinds differ in outline or in main colour.
Each is drawn upwards from the origin of a `Canvas`, 12 to 23 units tall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cfgen.train.film_world.backgrounds import SKIES, rng_for
from cfgen.train.film_world.drawing import Canvas, Image, rgb, shade
from cfgen.train.film_world.grounds import ground_line

REACH = 25.0
"""No landmark reaches farther from the point that it stands on, in units."""

CELL = 46.0
"""One landmark at most stands in a cell of so many units."""
SHARE = 0.88
"""The share of cells that are not empty."""

WOOD = (126, 88, 60)
STONE = (200, 192, 184)
CREAM = (246, 234, 210)
DARK = (74, 66, 72)

LANDMARK_RGB = {
    "red": (206, 62, 56),
    "yellow": (244, 190, 60),
    "green": (64, 142, 88),
    "blue": (64, 110, 186),
    "violet": (136, 92, 172),
    "white": (240, 238, 234),
    "orange": (232, 124, 48),
    "teal": (46, 156, 158),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of landmark: its name, its form and colour, half its width and its height in units."""

    name: str
    form: str
    colour: str
    half_width: float
    height: float


def standing(seed: int, left: float, right: float) -> list[tuple[int, Kind, tuple[float, float]]]:
    """Landmarks of a place whose foot is between two positions: cell, kind, foot in units."""
    found = []
    for cell in range(int(left // CELL) - 1, int(right // CELL) + 2):
        rng = rng_for(seed, "landmark", cell)
        if rng.uniform() < SHARE:
            block, at = divmod(cell, len(FORMS))
            of_form = [kind for kind in KINDS if kind.form == _forms(seed, block)[at]]
            kind = of_form[int(rng.integers(len(of_form)))]
            x = cell * CELL + rng.uniform(13, CELL - 13)
            if left <= x <= right:
                y = float(ground_line(seed, np.float32(x))) + 1.5
                found.append((cell, kind, (float(x), y)))
    return found


@lru_cache(1024)
def _forms(seed: int, block: int) -> tuple[str, ...]:
    """The forms of a block of cells: each once, so that no two of a kind are in one view."""
    names = list(FORMS)
    order = rng_for(seed, "forms", block).permutation(len(names)).tolist()
    if block % 2 == 0:
        return tuple(names[i] for i in order)
    near = {*_forms(seed, block - 1)[-3:], *_forms(seed, block + 1)[:3]}
    inner = [names[i] for i in order if names[i] in near]
    outer = [names[i] for i in order if names[i] not in near]
    half = len(outer) // 2
    return (*outer[:half], *inner, *outer[half:])


def landmark_light(sky: str) -> Image:
    """Colour factors of the light on landmarks under a sky: they stand out from the land."""
    light: Image = np.float32(0.72) * rgb(SKIES[sky].light) + np.float32(0.28)
    return light


def draw_landmark(canvas: Canvas, kind: Kind, *, at: tuple[float, float], light: Image) -> None:
    """Draw a landmark that stands at (x, y) units, in a light (colour factors)."""
    part = canvas.around(at[0], at[1] - REACH / 2, REACH)
    if part is None:
        return
    standing = Canvas(part.rgb, part.alpha, part.x, part.y - np.float32(REACH / 2), part.scale)
    lit = _Lit(standing, light)
    FORMS[kind.form].draw(lit, np.asarray(LANDMARK_RGB[kind.colour], np.float32))


@dataclass(frozen=True, slots=True)
class _Lit:
    """A canvas whose colours are seen in a light."""

    on: Canvas
    light: Image

    def paint(self, colour: tuple[int, int, int] | Image, distance: Image) -> None:
        self.on.paint(np.asarray(colour, np.float32) * self.light, distance)

    def wall(self, colour: tuple[int, int, int] | Image, distance: Image, edge: float) -> None:
        """Paint a body whose part to the right of `edge` lies in shadow."""
        self.paint(colour, distance)
        self.paint(shade(colour, 0.78), np.maximum(distance, np.float32(edge) - self.on.x))

    def glow(self, colour: tuple[int, int, int], distance: Image) -> None:
        """Paint what gives light of its own: it keeps its colour at night."""
        self.on.paint(colour, distance)


def _house(c: _Lit, colour: Image) -> None:
    c.wall(CREAM, c.on.box(0, -5, 8, 6), 4.8)
    c.paint(colour, c.on.polygon([(-10.5, -10), (10.5, -10), (0, -18.5)]))
    c.paint(DARK, c.on.box(-3, -3, 1.9, 4))
    c.glow((255, 220, 120), c.on.box(3.6, -6, 1.9, 1.9))


def _tower(c: _Lit, colour: Image) -> None:
    c.wall(STONE, c.on.box(0, -8, 4.6, 9), 1.6)
    c.wall(STONE, c.on.box(0, -16, 6, 2), 2.2)
    c.paint(colour, c.on.polygon([(-6.5, -17.5), (6.5, -17.5), (0, -25)]))
    c.glow((255, 220, 120), c.on.box(0, -9, 1.4, 2.2, 1))


def _lighthouse(c: _Lit, colour: Image) -> None:
    body = c.on.polygon([(-5, 1), (5, 1), (3, -17), (-3, -17)])
    c.wall((244, 242, 238), body, 1.2)
    for y in (-3.0, -12.0):
        c.wall(colour, np.maximum(c.on.box(0, y, 8, 2.3), body), 1.2)
    c.glow((255, 224, 110), c.on.box(0, -18.5, 2.6, 2))
    c.paint(colour, c.on.polygon([(-4, -20), (4, -20), (0, -24.5)]))


def _windmill(c: _Lit, colour: Image) -> None:
    c.wall(CREAM, c.on.polygon([(-5.5, 1), (5.5, 1), (3.2, -13), (-3.2, -13)]), 0.8)
    c.paint(WOOD, c.on.disc(0, -13, 4.4))
    for turn in range(4):
        a = np.pi / 4 + turn * np.pi / 2
        dx, dy = float(np.cos(a)), float(np.sin(a))
        blade = [(1.1 * dy, -1.1 * dx), (10.5 * dx + 2.2 * dy, 10.5 * dy - 2.2 * dx)]
        blade += [(10.5 * dx - 1.2 * dy, 10.5 * dy + 1.2 * dx), (-1.1 * dy, 1.1 * dx)]
        c.paint(colour, c.on.polygon([(x, y - 13) for x, y in blade]))
    c.paint(CREAM, c.on.disc(0, -13, 1.5))


def _tree(c: _Lit, colour: Image) -> None:
    c.paint(WOOD, c.on.box(0, -4, 1.5, 5))
    crown = np.minimum(
        c.on.disc(0, -15, 7), np.minimum(c.on.disc(-4.5, -11, 5), c.on.disc(4.5, -11, 5))
    )
    c.paint(colour, crown)
    c.paint(shade(colour, 1.3), np.maximum(c.on.disc(-2.5, -16.5, 3), crown + 1))


def _pine(c: _Lit, colour: Image) -> None:
    c.paint(WOOD, c.on.box(0, -1.5, 1.5, 3))
    for base, half, tall in ((-3, 8.5, 10), (-8.5, 7, 9.5), (-14, 5.2, 9)):
        c.paint(shade(colour, 0.72), c.on.polygon([(-half, base), (half, base), (0, base - tall)]))
        c.paint(
            colour,
            c.on.polygon([(-half + 1.5, base - 1.6), (half - 3, base - 1.6), (0, base - tall)]),
        )


def _tent(c: _Lit, colour: Image) -> None:
    c.paint(colour, c.on.polygon([(-12, 1), (12, 1), (0, -13)]))
    c.paint(shade(colour, 0.6), c.on.polygon([(-4, 1), (4, 1), (0, -8.5)]))
    c.paint((250, 244, 230), c.on.polygon([(0, -12), (0, -18), (6, -15.5)]))


def _church(c: _Lit, colour: Image) -> None:
    c.paint(shade(CREAM, 0.84), c.on.box(3, -4, 7.5, 5))
    c.paint(colour, c.on.polygon([(-5, -8.5), (12, -8.5), (9, -13.5), (-2, -13.5)]))
    c.wall(CREAM, c.on.box(-5, -7.5, 3.6, 8.5), -3.2)
    c.paint(colour, c.on.polygon([(-9.2, -15.5), (-0.8, -15.5), (-5, -25)]))
    c.glow((255, 224, 130), c.on.box(-5, -10, 1.2, 2.1, 1.1))
    for x in (2.5, 6.5):
        c.paint(DARK, c.on.box(x, -4.5, 1.1, 2, 1))


def _barn(c: _Lit, colour: Image) -> None:
    outline = [(-10, 1), (-10, -8), (-6.5, -14), (0, -17), (6.5, -14), (10, -8), (10, 1)]
    c.paint(shade(colour, 0.6), c.on.polygon(outline))
    c.paint(colour, c.on.polygon(outline) + 1.3)
    c.paint(CREAM, c.on.box(0, -3.2, 4, 4.4))
    c.paint(shade(colour, 0.75), c.on.box(0, -3.2, 2.7, 3.4))
    c.paint(CREAM, c.on.box(0, -11.5, 1.9, 1.6))


def _castle(c: _Lit, colour: Image) -> None:
    c.paint(STONE, c.on.box(0, -5, 8, 6))
    for x in (-9, 9):
        c.paint(shade(STONE, 0.86), c.on.box(x, -7.5, 3.2, 8.5))
        c.paint(colour, c.on.polygon([(x - 4.2, -15.5), (x + 4.2, -15.5), (x, -22.5)]))
    for x in (-4, 0, 4):
        c.paint(STONE, c.on.box(x, -11.5, 1.2, 1.8))
    c.paint(DARK, np.minimum(c.on.disc(0, -3, 2.4), c.on.box(0, -1, 2.4, 2)))


def _arch(c: _Lit, colour: Image) -> None:
    whole = np.minimum(c.on.oval(0, -7, 11, 9.5), c.on.box(0, -3, 11, 4))
    hole = np.minimum(c.on.oval(0, -5, 5.2, 6), c.on.box(0, 0, 5.2, 5))
    c.paint(colour, np.maximum(whole, -hole))
    c.paint(shade(colour, 0.75), np.maximum(np.maximum(whole, -hole), -(c.on.x - 6)))


def _mushroom(c: _Lit, colour: Image) -> None:
    c.wall(CREAM, c.on.box(0, -4, 3, 5, 1), 0.6)
    cap = np.maximum(c.on.oval(0, -8, 10.5, 9), c.on.y + 7)
    c.wall(colour, cap, 4.2)
    for x, y, r in ((-5, -10, 1.9), (1, -13, 2.1), (5.5, -9.8, 1.6)):
        c.paint((252, 248, 240), np.maximum(c.on.disc(x, y, r), cap))


def _flag(c: _Lit, colour: Image) -> None:
    c.paint(DARK, c.on.box(-4, -10, 1.1, 11))
    c.paint(colour, c.on.polygon([(-3, -21), (10, -19), (6.5, -15.5), (10, -12), (-3, -12)]))


def _cactus(c: _Lit, colour: Image) -> None:
    stem = c.on.box(0, -8.5, 2.6, 10, 2.5)
    arms = np.minimum(c.on.box(-4.5, -6.5, 3.2, 1.5, 1.2), c.on.box(-6.6, -9.5, 1.7, 4.4, 1.6))
    arms = np.minimum(
        arms, np.minimum(c.on.box(4.5, -9.5, 3.2, 1.5, 1.2), c.on.box(6.6, -13, 1.7, 5, 1.6))
    )
    c.paint(colour, np.minimum(stem, arms))
    c.paint(shade(colour, 1.35), c.on.box(-0.8, -9, 0.8, 7.5, 0.7))


@dataclass(frozen=True, slots=True)
class _Form:
    """How a form is drawn, its size, and the colours that it comes in."""

    draw: Callable[[_Lit, Image], None]
    half_width: float
    height: float
    colours: tuple[str, ...]


FORMS = {
    "house": _Form(_house, 10.5, 18.5, ("red", "blue", "green", "violet")),
    "tower": _Form(_tower, 6.5, 25, ("red", "blue", "teal", "yellow")),
    "lighthouse": _Form(_lighthouse, 5, 24.5, ("red", "blue", "green")),
    "windmill": _Form(_windmill, 9, 22, ("red", "blue", "orange")),
    "tree": _Form(_tree, 9.5, 22, ("green", "orange", "yellow", "violet")),
    "pine": _Form(_pine, 8.5, 23, ("green", "teal", "white")),
    "tent": _Form(_tent, 12, 18, ("red", "yellow", "blue", "green")),
    "church": _Form(_church, 12, 25, ("red", "teal", "violet")),
    "barn": _Form(_barn, 10, 17, ("red", "blue", "yellow")),
    "castle": _Form(_castle, 13.2, 22.5, ("red", "blue", "violet")),
    "arch": _Form(_arch, 11, 16.5, ("orange", "violet", "white")),
    "mushroom": _Form(_mushroom, 10.5, 17, ("red", "orange", "violet")),
    "flag": _Form(_flag, 10, 21, ("red", "yellow", "blue", "white")),
    "cactus": _Form(_cactus, 8.3, 18.5, ("green", "teal")),
}

KINDS = tuple(
    Kind(f"{colour} {form}", form, colour, made.half_width, made.height)
    for form, made in FORMS.items()
    for colour in made.colours
)
