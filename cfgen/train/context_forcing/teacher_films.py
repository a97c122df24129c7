"""The films that a teacher learns from: of the film world, or clips of a folder.

Axis letters: B batch, F latent frames, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cfgen.train.data.clips import Clips, in_random_order
from cfgen.train.film_world.captions import caption
from cfgen.train.film_world.families import draw_family
from cfgen.train.film_world.latents import CHUNK_LATENTS, FilmBatch, LatentStore
from cfgen.train.processes import batches_of_a_step
from cfgen.train.shots import shot_by_chunk, shot_starts


@dataclass(frozen=True, slots=True)
class Drawn:
    """Films of one step, cut at the same places.

    Attributes:
        batch: their latents; `films` is empty where they are none of the film world.
        shots: the shot of each chunk.
        starts: chunks that begin a shot.
        words: the prompt of a film, by its place in the batch, and of a shot.
    """

    batch: FilmBatch
    shots: Sequence[int]
    starts: frozenset[int]
    words: Callable[[int, int], str]

    @property
    def chunks(self) -> int:
        """Chunks of each film."""
        return len(self.shots)


class Films(Protocol):
    """Where films come from."""

    def draw(self, number: int, rng: np.random.Generator) -> Drawn:
        """The films of a micro-batch, by its number among all of the run and of its processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmWorldSettings:
    """Which films of the film world are drawn.

    Attributes:
        families: how many families of films of each length are drawn from at a time.
        members: films of a family; each is encoded when it is first drawn.
        uses: how often a film is drawn, on average, until a new family takes the place of its own.
        chunks: most chunks of short, middling and long films; a family has half as many or more.
        batches: films of a step, for each of the three lengths.
        shares: how often each length is drawn.
        probe_films: held-out films on which recall is measured.
    """

    families: int = 12
    members: int = 24
    uses: float = 3.0
    chunks: tuple[int, int, int] = (6, 14, 36)
    batches: tuple[int, int, int] = (4, 3, 2)
    shares: tuple[float, float, float] = (0.2, 0.4, 0.4)
    probe_films: int = 6


class FilmWorld:
    """Films of the film world; those that stage `base` was taught with are encoded already.

    Args:
        settings: which films.
        store: encodes them and keeps them.
        micro_batches: batches of a step that each process makes.
    """

    def __init__(
        self, settings: FilmWorldSettings, store: LatentStore, micro_batches: int = 1
    ) -> None:
        self._settings, self._store, self._micro_batches = settings, store, micro_batches

    def draw(self, number: int, rng: np.random.Generator) -> Drawn:
        """See `Films`."""
        s, alike = self._settings, batches_of_a_step(self._micro_batches)
        batch, _ = draw_family(self._store, s, s.shares, number, rng, alike=alike)
        films, shots = batch.films, shot_by_chunk(batch.films[0])

        def words(film: int, shot: int) -> str:
            return caption(films[film], shot, int(rng.integers(2**62)))

        return Drawn(batch, shots, shot_starts(films[0]), words)


class ClipFilms:
    """Clips of a folder in random order, each one shot of whole chunks.

    Args:
        clips: of equal length.
        batch: clips of a micro-batch.
    """

    def __init__(self, clips: Clips, batch: int) -> None:
        self._clips, self._batch = clips, batch

    def draw(self, number: int, rng: np.random.Generator) -> Drawn:
        """See `Films`."""
        total = len(self._clips.paths)
        numbers = in_random_order(number * self._batch, self._batch, total, "clips")
        latents, captions = self._clips.batch(numbers)
        chunks = latents.shape[1] // CHUNK_LATENTS
        latents = latents[:, : CHUNK_LATENTS * chunks]
        nowhere = torch.zeros_like(latents[:, :, 0])
        batch = FilmBatch([], latents, nowhere, nowhere)
        return Drawn(batch, [0] * chunks, frozenset({0}), lambda film, _: captions[film])
