"""Views of a place: its layers painted once as strips, put together for each camera position."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cfgen.train.film_world import backgrounds, grounds
from cfgen.train.film_world.drawing import Canvas, Image
from cfgen.train.film_world.landmarks import REACH, draw_landmark, landmark_light, standing


class Views:
    """A place under a sky, as a camera sees it.

    Args:
        ground: name of the place's ground.
        seed: the place's seed.
        sky: name of the sky.
        path: left edge of the view for each frame, [frames] in units.
        width: of a view in pixels.
        height: of a view in pixels.
        scale: pixels a unit.
    """

    def __init__(
        self,
        ground: str,
        seed: int,
        sky: str,
        path: NDArray[np.float64],
        *,
        width: int,
        height: int,
        scale: float,
    ) -> None:
        self._width = width
        self._sky = backgrounds.paint_sky(sky, seed, width, height, scale)
        near = np.round(path * scale).astype(int)
        far = np.round(path * scale / 2).astype(int)
        self._lefts = list(
            zip((far - far.min()).tolist(), (near - near.min()).tolist(), strict=True)
        )
        self._far = Canvas.empty(int(far.min()), int(far.max()) + width, height, scale)
        backgrounds.paint_clouds(self._far, sky, seed)
        grounds.paint_ridge(self._far, sky, ground, seed)
        self._near = Canvas.empty(int(near.min()), int(near.max()) + width, height, scale)
        light = landmark_light(sky)
        left, right = float(self._near.x[0, 0]), float(self._near.x[0, -1])
        for _, kind, at in standing(seed, left - REACH, right + REACH):
            draw_landmark(self._near, kind, at=at, light=light)
        grounds.paint_ground(self._near, sky, ground, seed)
        self._top = int((grounds.GROUND_TOP - REACH) * scale)
        self._solid = int(np.ceil(grounds.GROUND_SOLID * scale))
        self._last: tuple[tuple[int, int], Image] | None = None

    def image(self, i: int) -> Image:
        """The view of the i-th frame, opaque planes [3, height, width] float32, a new array."""
        if self._last is None or self._last[0] != self._lefts[i]:
            self._last = self._lefts[i], self._put_together(*self._lefts[i])
        return self._last[1].copy()

    def _put_together(self, far_left: int, near_left: int) -> Image:
        image = np.empty_like(self._sky)
        behind = slice(far_left, far_left + self._width)
        before = slice(near_left, near_left + self._width)
        air, edge, solid = (
            slice(self._solid),
            slice(self._top, self._solid),
            slice(self._solid, None),
        )
        np.multiply(self._sky[:, air], 1 - self._far.alpha[air, behind], out=image[:, air])
        image[:, air] += self._far.rgb[:, air, behind]
        image[:, edge] *= 1 - self._near.alpha[edge, before]
        image[:, edge] += self._near.rgb[:, edge, before]
        image[:, solid] = self._near.rgb[:, solid, before]
        return image
