"""Batches of films: one family of one of three lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.latents import FilmBatch, LatentStore


class Lengths(Protocol):
    """How many films there are of short, middling and long ones."""

    @property
    def families(self) -> int:
        """Families of each length."""

    @property
    def members(self) -> int:
        """Films of a family."""

    @property
    def chunks(self) -> tuple[int, int, int]:
        """Most chunks of each length."""

    @property
    def batches(self) -> tuple[int, int, int]:
        """Films of a step, of each length."""


def draw_family(
    store: LatentStore, lengths: Lengths, shares: Sequence[float], rng: np.random.Generator
) -> tuple[FilmBatch, int]:
    """A batch of one family, and which of the three lengths it has.

    Args:
        store: has the films.
        lengths: how many there are.
        shares: how often each length is drawn.
        rng: what is drawn by.
    """
    length = int(rng.choice(len(shares), p=np.array(shares) / sum(shares)))
    family = len(lengths.chunks) * int(rng.integers(lengths.families)) + length
    most = lengths.chunks[length]
    chunks = int(rng_for("family", family).integers(max(2, most // 2), most + 1))
    size = min(lengths.batches[length], lengths.members)
    members = rng.choice(lengths.members, size, replace=False)
    return store.family(family, chunks, [int(i) for i in members]), length
