"""The memories of training: one of several policies a step, admission by chance.

One set of weights is to run under every policy, so each has its share; slow memory sees every
filling, and most often what a good rule would put there: the first chunk of each shot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cfgen.kernels.pages import ADMITTED, CAN_ADMIT
from cfgen.memory.autograd import AutogradAttention, GraphCache
from cfgen.memory.paged import PagedMemory
from cfgen.memory.protocols import Table
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator
from cfgen.ops.reference import Rope
from cfgen.ops.select import TORCH


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySettings:
    """Sizes in latent frames, and how often which policy is trained.

    Attributes:
        sink: attention sink of `slow_fast` and of the larger window.
        slow: slow memory of `slow_fast`.
        fast: fast memory of `slow_fast`, the current chunk included.
        windows: sizes of the two windows; the first has `sink`, the second a sink of 1.
        window_shares: shares of steps that run under either window.
        full_share: share of steps that keep everything, of those whose films are short enough.
        full_chunks: chunks of a film that is short enough.
        start_chance: chance that the first chunk of a shot is admitted.
        chances: range that the chance of any other chunk is drawn from.
        together: share of steps in which all layers admit the same chunks.
    """

    sink: int = 3
    slow: int = 6
    fast: int = 6
    windows: tuple[int, int] = (12, 6)
    window_shares: tuple[float, float] = (0.1, 0.05)
    full_share: float = 0.15
    full_chunks: int = 14
    start_chance: float = 0.85
    chances: tuple[float, float] = (0.0, 0.5)
    together: float = 0.7


def policy_tables(
    settings: MemorySettings, rng: np.random.Generator, chunks: int, chunk_frames: int
) -> Callable[[], Table]:
    """Draw a policy for films of so many chunks; makes one layer's table of it."""
    s, draw = settings, rng.uniform()
    larger, smaller = s.window_shares
    if draw < larger:
        return lambda: WindowTable(s.windows[0], sink=s.sink, relative=True)
    if draw < larger + smaller:
        return lambda: WindowTable(s.windows[1], sink=1, relative=True)
    if draw < larger + smaller + s.full_share and chunks <= s.full_chunks:
        return lambda: WindowTable(chunks * chunk_frames)
    return lambda: SlowFastTable(sink=s.sink, slow=s.slow, fast=s.fast)


class TrainingAdmission:
    """Admits chunks as a plan says that was drawn beforehand; an `Admit` op.

    Attributes:
        chunk: the chunk that is being committed; whoever plays a film sets it.
    """

    def __init__(self, chances: Sequence[float], rng: np.random.Generator, *, together: bool):
        self.chunk = 0
        self._chances, self._rng = chances, rng
        self._shared = rng.uniform(size=len(chances)) < np.array(chances) if together else None

    @classmethod
    def drawn(
        cls, settings: MemorySettings, rng: np.random.Generator, starts: Collection[int], count: int
    ) -> TrainingAdmission:
        """Draw a plan for a film of `count` chunks, of which `starts` begin a shot."""
        usual = rng.uniform(*settings.chances)
        at_start = max(usual, settings.start_chance)
        chances = [at_start if chunk in starts else usual for chunk in range(count)]
        return cls(chances, rng, together=bool(rng.uniform() < settings.together))

    @classmethod
    def oracle(cls, starts: Collection[int], count: int) -> TrainingAdmission:
        """Admit the first chunk of every shot, and no other."""
        chances = [float(chunk in starts) for chunk in range(count)]
        return cls(chances, np.random.default_rng(0), together=True)

    def __call__(self, _keys: Tensor, _reference: Tensor, decision: Tensor, **_: float) -> None:
        """Decide for one layer; what the table forbids is not admitted."""
        if self._shared is None:
            chosen = self._rng.uniform() < self._chances[self.chunk]
        else:
            chosen = bool(self._shared[self.chunk])
        decision[ADMITTED] = int(bool(decision[CAN_ADMIT]) and chosen)


def training_memory(
    make_table: Callable[[], Table],
    admission: TrainingAdmission,
    generator: Generator,
    latent_size: tuple[int, int],
) -> PagedMemory:
    """A memory whose pages are tensors in the graph, for latents of a height and width."""
    g = generator.geometry
    pool = GraphCache(g.num_layers, generator.device)
    reader = AutogradAttention(pool, TORCH, rope=Rope(g.head_dim), grid=g.grid(*latent_size))
    return PagedMemory([make_table() for _ in range(g.num_layers)], pool, reader, admit=admission)
