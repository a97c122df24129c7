"""Parts of single latent frames round subjects: to learn drawing, they are all that is needed.

A whole frame is mostly sky and ground, which are soon learnt. A crop shows a subject in a third of
the tokens, and a latent frame of each moment of a film makes another picture of it.

Axis letters: K crops, F latent frames, C channels, h w latent grid of a crop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cfgen.model.vae import TEMPORAL_STRIDE
from cfgen.train.film_world.captions import caption
from cfgen.train.film_world.labels import Labels, cell_labels
from cfgen.train.film_world.latents import FilmBatch
from cfgen.train.film_world.world import VIEW, Film, SubjectBox, shot_of, subject_boxes

INSIDE = 0.6
"""Share of a subject that must be within a crop for its caption to name it."""


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of equal size.

    Attributes:
        captions: what each shows, K of them; subjects that lie outside are not named.
        latents: [K, 1, C, h, w].
        subjects: cells near a subject, [K, 1, h, w] in {0, 1}.
        labels: what the cells show.
    """

    captions: list[str]
    latents: Tensor
    subjects: Tensor
    labels: Labels


def draw_crops(
    batch: FilmBatch, count: int, size: tuple[int, int], rng: np.random.Generator, *, step: int = 2
) -> Crops:
    """Draw crops from the films of a batch.

    Args:
        batch: the films.
        count: crops to draw.
        size: rows and columns of a crop, in latent cells.
        rng: what is drawn by.
        step: crops begin at multiples of it, as tokens do.
    """
    rows, columns = batch.latents.shape[-2:]
    size = min(size[0], rows), min(size[1], columns)
    captions, cells, words, places = [], [], [], []
    for _ in range(count):
        number = int(rng.integers(len(batch.films)))
        film, frame, chosen = _subject_of(batch, number, rng)
        y, x = _corner(chosen, size, (rows, columns), step, rng)
        window = (x / columns, y / rows, (x + size[1]) / columns, (y + size[0]) / rows)
        captions.append(_caption(film, frame, window, chosen, rng))
        part = np.s_[..., y : y + size[0], x : x + size[1]]
        cells.append((batch.latents[number, frame][part], batch.subjects[number, frame][part]))
        said, lies = cell_labels(film, [frame], rows, columns)
        words.append(said[part])
        places.append(lies[part])
    latents, subjects = (torch.stack(each)[:, None] for each in zip(*cells, strict=True))
    return Crops(captions, latents, subjects, Labels.of(words, places))


def _subject_of(
    batch: FilmBatch, number: int, rng: np.random.Generator
) -> tuple[Film, int, SubjectBox]:
    """A latent frame of a film, and a subject of its shot that is in view there."""
    film = batch.films[number]
    while True:
        frame = int(rng.integers(batch.latents.shape[1]))
        shot = film.shots[_shot_at(film, frame)]
        boxes = [b for b in subject_boxes(film, frame * TEMPORAL_STRIDE) if b.share > INSIDE]
        boxes = [box for box in boxes if box.subject in shot.subjects]
        if boxes:
            return film, frame, boxes[int(rng.integers(len(boxes)))]


def _shot_at(film: Film, frame: int) -> int:
    at = frame * TEMPORAL_STRIDE
    return int(shot_of(film, at + 1)[at])


def _corner(
    box: SubjectBox,
    size: tuple[int, int],
    grid: tuple[int, int],
    step: int,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """First row and column of a crop with the subject's centre in its middle half."""
    centre = (box.y0 + box.y1) / 2 / VIEW[1], (box.x0 + box.x1) / 2 / VIEW[0]
    corner = []
    for at, length, cells in zip(centre, size, grid, strict=True):
        first = at * cells - length * rng.uniform(0.25, 0.75)
        most = (cells - length) // step
        corner.append(step * int(np.clip(round(first / step), 0, most)))
    return corner[0], corner[1]


def _caption(
    film: Film,
    frame: int,
    window: tuple[float, float, float, float],
    chosen: SubjectBox,
    rng: np.random.Generator,
) -> str:
    """The caption of the frame's shot without the subjects that lie outside the window."""
    number = _shot_at(film, frame)
    boxes = subject_boxes(film, frame * TEMPORAL_STRIDE)
    inside = {box.subject for box in boxes if _share(box, window) > INSIDE} | {chosen.subject}
    shot = film.shots[number]
    kept = tuple(subject for subject in shot.subjects if subject in inside)
    shots = list(film.shots)
    shots[number] = replace(shot, subjects=kept)
    return caption(replace(film, shots=tuple(shots)), number, int(rng.integers(2**62)))


def _share(box: SubjectBox, window: tuple[float, float, float, float]) -> float:
    """How much of a subject is within a window that is given in shares of the view."""
    x0, y0 = max(box.x0, window[0] * VIEW[0]), max(box.y0, window[1] * VIEW[1])
    x1, y1 = min(box.x1, window[2] * VIEW[0]), min(box.y1, window[3] * VIEW[1])
    whole = (box.x1 - box.x0) * (box.y1 - box.y0)
    return box.share * max(0.0, x1 - x0) * max(0.0, y1 - y0) / whole
