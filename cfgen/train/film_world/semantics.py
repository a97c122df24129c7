"""Semantic channels of latents: what lies in each cell, and which part of it.

A generator that denoises them beside the texture of a picture settles first what is where, since
they are few, smooth and strong against the noise; each cell then draws the part that it was told.
Without them neighbours agree slowly on who draws which wing, and subjects come twice.
Sources: joint diffusion of latents and features, arXiv 2504.16064; semantics that lead, arXiv
2512.04926. Those take the features of a pretrained network, and the world knows the truth.

Channels: 0 subject, 1 landmark, 2 and 3 place across and down in its box, 4 to 7 what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from cfgen.train.film_world.landmarks import FORMS
from cfgen.train.film_world.subjects import SHAPES
from cfgen.train.film_world.world import VIEW, Box, Film, landmark_boxes, subject_boxes

SEMANTIC_CHANNELS = 8

PRESENCE, PLACE, CODE = 2.0, 1.6, 1.4
"""Sizes of the channels, where those of texture have about 0.7: semantics leave the noise first."""

REACH = 0.3
"""Cells beyond the edge of a box that still belong to it: they show its outline."""

KIND_CODES = np.array(
    [
        np.eye(4)[first] * a + np.eye(4)[second] * b
        for first, second in combinations(range(4), 2)
        for a, b in product((1, -1), repeat=2)
    ],
    np.float32,
)
"""Twenty-four directions of four channels, 60 degrees or more apart: the corners of a 24-cell."""


def semantic_channels(
    film: Film,
    frames: Sequence[int],
    rows: int,
    columns: int,
    *,
    window: tuple[float, float, float, float] = (0, 0, *VIEW),
) -> NDArray[np.float32]:
    """Semantic channels of frames of a film.

    Args:
        film: the film.
        frames: numbers of its frames.
        rows: rows of the latent grid.
        columns: columns of it.
        window: what part of the view the grid covers: left, upper, right, lower edge in its units.

    Returns:
        [F, SEMANTIC_CHANNELS, rows, columns]; 0 where there is neither subject nor landmark.
    """
    maps = np.zeros((len(frames), SEMANTIC_CHANNELS, rows, columns), np.float32)
    left, upper, right, lower = window
    cell = (right - left) / columns, (lower - upper) / rows
    x = left + (np.arange(columns) + 0.5) * cell[0]
    y = (upper + (np.arange(rows) + 0.5) * cell[1])[:, None]

    def mark(picture: NDArray[np.float32], box: Box, presence: tuple[int, int], kind: int) -> None:
        x0, y0, x1, y1 = box.whole
        width, height = x1 - x0, y1 - y0
        across = np.broadcast_to((2 * x - x0 - x1) / width, (rows, columns))
        down = np.broadcast_to((2 * y - y0 - y1) / height, (rows, columns))
        inside = abs(across) < 1 + 2 * REACH * cell[0] / width
        inside &= abs(down) < 1 + 2 * REACH * cell[1] / height
        constant = [*(PRESENCE * at for at in presence), 0, 0, *(CODE * KIND_CODES[kind])]
        picture[:, inside] = np.array(constant, np.float32)[:, None]
        picture[2, inside] = PLACE * across[inside]
        picture[3, inside] = PLACE * down[inside]

    for picture, frame in zip(maps, frames, strict=True):
        for landmark in landmark_boxes(film, frame):
            form = landmark.kind.partition(" ")[2]
            mark(picture, landmark, (0, 1), tuple(FORMS).index(form))
        for found in subject_boxes(film, frame):
            mark(picture, found, (1, 0), SHAPES.index(found.subject.shape))
    return maps
