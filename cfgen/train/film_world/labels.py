"""What each latent cell shows, as labels that a generator learns to tell as it learns to denoise.

The flow alone teaches little of what words for shapes mean: nearly all of its error is layout and
texture. So a linear head reads from a middle layer which subjects and landmarks a cell shows, and
which part of them, and its error is part of the loss; the head is not exported. The world knows the
truth, where others take the features of a pretrained network.
Source: representation alignment, arXiv 2410.06940.

Axis letters: B batch, F latent frames, L = F * rows * columns / patch, E width of the generator,
h w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cfgen.model.generator import Generator
from cfgen.model.vae import TEMPORAL_STRIDE
from cfgen.train.film_world.landmarks import FORMS, LANDMARK_RGB
from cfgen.train.film_world.subjects import SHAPES
from cfgen.train.film_world.world import (
    COLOURS,
    VIEW,
    Box,
    Film,
    landmark_boxes,
    subject_boxes,
)

WORDS: tuple[tuple[str, ...], ...] = (SHAPES, COLOURS, tuple(FORMS), tuple(LANDMARK_RGB))
"""What a cell's subject is, and its colour; what its landmark is, and its colour."""

PLACES = 4
"""Where it lies in the box of its subject, and of its landmark: x and y in [-1, 1] of each."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What the cells of several pictures show; the numbers are those of `cell_labels`.

    Attributes:
        words: [B, F, len(WORDS), h, w].
        places: [B, F, PLACES, h, w].
    """

    words: Tensor
    places: Tensor

    @classmethod
    def of(
        cls, words: Sequence[NDArray[np.int64]], places: Sequence[NDArray[np.float32]]
    ) -> Labels:
        """From those of each picture."""
        return cls(torch.from_numpy(np.stack(words)), torch.from_numpy(np.stack(places)))


def film_labels(films: Sequence[Film], frames: Sequence[int], rows: int, columns: int) -> Labels:
    """Labels of the same latent frames of several films, all their cells."""
    words, places = zip(*[cell_labels(film, frames, rows, columns) for film in films], strict=True)
    return Labels.of(words, places)


def cell_labels(
    film: Film, frames: Sequence[int], rows: int, columns: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What the cells of latent frames show.

    Args:
        film: the film.
        frames: numbers of its latent frames.
        rows: rows of the latent grid.
        columns: columns of it.

    Returns:
        words [F, len(WORDS), rows, columns], each 1 + its place in its list, or 0 where there is
        nothing; and places [F, PLACES, rows, columns], there not a number.
    """
    words = np.zeros((len(frames), len(WORDS), rows, columns), np.int64)
    places = np.full((len(frames), PLACES, rows, columns), np.nan, np.float32)
    x = (np.arange(columns) + 0.5) * VIEW[0] / columns
    y = ((np.arange(rows) + 0.5) * VIEW[1] / rows)[:, None]

    def mark(i: int, box: Box, said: Sequence[str], at: int) -> None:
        x0, y0, x1, y1 = box.whole
        across, down = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)
        inside = (abs(across) < 1) & (abs(down) < 1)
        for number, word in enumerate(said, at):
            words[i, number][inside] = 1 + WORDS[number].index(word)
        places[i, at] = np.where(inside, across, places[i, at])
        places[i, at + 1] = np.where(inside, down, places[i, at + 1])

    for i, latent in enumerate(frames):
        frame = latent * TEMPORAL_STRIDE
        for each in landmark_boxes(film, frame):
            colour, _, form = each.kind.partition(" ")
            mark(i, each, (form, colour), 2)
        for found in subject_boxes(film, frame):
            mark(i, found, (found.subject.shape, found.subject.colour), 0)
    return words, places


class LabelHead(nn.Module):
    """Reads labels of latent cells from a middle layer of a generator.

    Args:
        generator: whose layer it is.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        g = generator.geometry
        self._patch = g.patch_size
        self._layer = g.num_layers // 2
        self._sizes = [*(len(words) for words in WORDS), PLACES]
        values = self._patch[1] * self._patch[2] * sum(self._sizes)
        self.head = nn.Linear(g.dim, values)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, -4.0)  # a cell shows hardly any of what there is

    @contextmanager
    def watching(self, generator: Generator) -> Iterator[list[Tensor]]:
        """Collect what the layer gives in each pass: [B, L, E]."""
        seen: list[Tensor] = []
        block = generator.blocks[self._layer]
        handle = block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            yield seen
        finally:
            handle.remove()

    def loss(self, hidden: Tensor, labels: Labels) -> Tensor:
        """Cross-entropy of the four words, plus the squared error of the places.

        What is not there has the logit 0. Cells that show something count as much as all others.

        Args:
            hidden: what the layer gave, [draws * B, L, E], all pictures of one draw together.
            labels: of B pictures.
        """
        draws = len(hidden) // len(labels.words)
        words, places = (
            each.to(hidden.device).repeat(draws, 1, 1, 1, 1)
            for each in (labels.words, labels.places)
        )
        frames, rows, columns = words.shape[1], *words.shape[-2:]
        _, ph, pw = self._patch
        read = self.head(hidden).float()
        read = read.view(len(hidden), frames, rows // ph, columns // pw, ph, pw, -1)
        read = read.permute(0, 1, 6, 2, 4, 3, 5).reshape(*words.shape[:2], -1, rows, columns)
        *told, placed = read.split(self._sizes, 2)
        known = ~places.isnan()
        miss = (placed - places.nan_to_num()).square() * known
        total: Tensor = miss.sum() / known.sum().clamp(min=1)
        for logits, word in zip(told, words.unbind(2), strict=True):
            something = word > 0
            among = torch.cat([torch.zeros_like(logits[:, :, :1]), logits], 2).transpose(1, 2)
            missed = F.cross_entropy(among, word, reduction="none")
            for cells in (something, ~something):
                total = total + (missed * cells).sum() / cells.sum().clamp(min=1) / 2
        return total
