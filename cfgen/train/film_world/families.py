"""Batches of films: one family of one of several lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.latents import FilmBatch, LatentStore


class Lengths(Protocol):
    """How many films there are of each length."""

    @property
    def families(self) -> int:
        """Families of each length that are drawn from at a time."""

    @property
    def members(self) -> int:
        """Films of a family."""

    @property
    def uses(self) -> float:
        """How often a film is drawn, on average, until a new family takes the place of its own."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """Most chunks of each length."""

    @property
    def batches(self) -> tuple[int, ...]:
        """Films of a batch, of each length."""


def draw_family(
    store: LatentStore,
    lengths: Lengths,
    shares: Sequence[float],
    number: int,
    rng: np.random.Generator,
    *,
    alike: int,
) -> tuple[FilmBatch, int]:
    """A batch of one family, and which of the lengths it has.

    Batches that are of one family take equally long, so no process waits for another.

    Args:
        store: has the films.
        lengths: how many there are.
        shares: how often each length is drawn.
        number: of the batch among all of the run.
        rng: what its films are drawn by.
        alike: so many batches in a row are of one family: those of a step.
    """
    step = number // alike
    shared = rng_for("family of a step", step)
    chances = np.array(shares) / sum(shares)
    length = int(shared.choice(len(chances), p=chances))
    size, most = min(lengths.batches[length], lengths.members), lengths.chunks[length]
    # Few films learnt by heart make small losses on themselves alone, so none stays for long.
    renewed = int(alike * step * chances[length] * size / (lengths.members * lengths.uses))
    family = len(lengths.chunks) * (renewed + int(shared.integers(lengths.families))) + length
    chunks = int(rng_for("family", family).integers(max(min(2, most), most // 2), most + 1))
    members = rng.choice(lengths.members, size, replace=False)
    return store.family(family, chunks, [int(i) for i in members]), length
