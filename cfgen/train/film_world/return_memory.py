"""The memories of the return test: every policy for one set of weights.

Axis letters: B batch, P tokens per latent frame, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from cfgen.kernels.pages import ADMITTED, CAN_ADMIT
from cfgen.memory import policy as memory_policy
from cfgen.memory.autograd import GraphCache
from cfgen.memory.build import build_memory
from cfgen.memory.paged import PagedMemory
from cfgen.memory.protocols import Pass, VisibleSlot
from cfgen.memory.slow_fast import SlowFastMemory, SlowFastTable
from cfgen.memory.window import FullMemory, WindowMemory
from cfgen.model.generator import Generator
from cfgen.ops.select import TORCH
from cfgen.train.film_world.return_test import Case, kept_chunks
from cfgen.train.training_memory import (
    MemorySettings,
    far_of,
    framepack_of,
    require_patches,
)

CHUNK_LATENTS = 3
Policy = Literal[
    "window-12-3",
    "window-6-1",
    "slow_fast-paper",
    "slow_fast-cfgen",
    "slow_fast-oracle",
    "slow_fast-every-4",
    "slow_fast-unbounded",
    "full",
    "far-15",
    "far-6",
    "framepack",
]
EVERY_POLICY: tuple[Policy, ...] = get_args(Policy)
POLICIES = EVERY_POLICY[:-3]
"""Those that need no kernels of larger patches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowFastSizes:
    """Slow-fast memory in latent frames, and how it admits.

    Attributes:
        sink: first frames of a film.
        slow: key frames.
        fast: newest frames, the current chunk included.
        tau: threshold.
        admits: what of an admitted chunk becomes key frames; see `SlowFastMemory`.
        admission_layers: layers that decide together under cfgen's rule; none: each its own.
    """

    sink: int = 3
    slow: int = 6
    fast: int = 6
    tau: float = 0.9994
    admits: Literal["first", "chunk"] = "first"
    admission_layers: tuple[int, ...] = ()

    @property
    def key_chunks(self) -> int:
        """Chunks that slow memory holds key frames of."""
        return self.slow // (CHUNK_LATENTS if self.admits == "chunk" else 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnboundedSlowFast(SlowFastMemory):
    """Slow-fast memory under cfgen's rule whose positions grow with the film.

    An ablation of the Context Forcing paper (arXiv 2602.06028, table 3, without bounded positions).
    """

    def table(self, latent_frames: int) -> SlowFastTable:
        """One layer's table."""
        return UnboundedTable(sink=self.sink, slow=self.slow, fast=self.fast, admits=self.admits)


class UnboundedTable(SlowFastTable):
    """The temporal position of a page is its latent frame's number, whatever lies between."""

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """Sink, slow, fast."""
        placed = super().visible_slots(pass_, admitted)
        return [VisibleSlot(each.slot, each.slot.frame) for each in placed]


class ReplacingCache(GraphCache):
    """A pool that gives the mean over tokens instead of the keys and values of chosen pages.

    Attributes:
        replaced: pages, by layer.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        super().__init__(layers, device)
        self.replaced: dict[int, set[int]] = {}

    def read(self, layer: int, pages: Iterable[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of pages, [B, P, N, D] each."""
        listed, chosen = list(pages), self.replaced.get(layer, set())
        keys, values = super().read(layer, listed)

        def seen(tensors: list[Tensor]) -> list[Tensor]:
            pairs = zip(listed, tensors, strict=True)
            return [t.mean(1, keepdim=True).expand_as(t) if p in chosen else t for p, t in pairs]

        return seen(keys), seen(values)


class Oracle:
    """Admits chunks that are told beforehand, such as those that will be needed; an `Admit` op.

    Attributes:
        chunk: the chunk that is being committed.
    """

    def __init__(self, chunks: Iterable[int]) -> None:
        self.chunk = 0
        self._chunks = frozenset(chunks)

    def __call__(self, _keys: Tensor, _reference: Tensor, decision: Tensor, **_: float) -> None:
        """Decide for one layer; what the table forbids is not admitted."""
        decision[ADMITTED] = int(bool(decision[CAN_ADMIT]) and self.chunk in self._chunks)


@dataclass(frozen=True, slots=True)
class Run:
    """A memory, its pool, and what is told which chunk is played."""

    memory: PagedMemory
    pool: ReplacingCache
    oracle: Oracle


def may_batch(policy: str) -> bool:
    """Whether films can share a batch: not where one decision is made on the keys of all."""
    return policy not in ("slow_fast-paper", "slow_fast-cfgen", "slow_fast-unbounded")


def memory_of(
    policy: str,
    case: Case,
    generator: Generator,
    latent_size: tuple[int, int],
    sizes: SlowFastSizes,
) -> Run:
    """An empty memory of one of EVERY_POLICY.

    Raises:
        ValueError: an unknown policy.
        CheckpointError: the generator lacks kernels that it needs.
        PresetError: an admission layer that the generator lacks.
    """
    s, g = sizes, generator.geometry
    slow_fast, unbounded = (
        partial(kind, sink=s.sink, slow=s.slow, fast=s.fast, tau=s.tau, admits=s.admits)
        for kind in (SlowFastMemory, UnboundedSlowFast)
    )
    policies: Mapping[str, memory_policy.Policy] = {
        "window-12-3": WindowMemory(size=12, sink=3),
        "window-6-1": WindowMemory(size=6, sink=1),
        "slow_fast-paper": slow_fast(variant="paper"),
        "slow_fast-cfgen": slow_fast(admission_layers=s.admission_layers),
        "slow_fast-oracle": slow_fast(),
        "slow_fast-every-4": slow_fast(),
        "slow_fast-unbounded": unbounded(admission_layers=s.admission_layers),
        "full": FullMemory(),
        "far-15": far_of(MemorySettings(far=("15:1", "all:4"))),
        "far-6": far_of(MemorySettings()),
        "framepack": framepack_of(MemorySettings()),
    }
    if policy not in policies:
        raise ValueError(f"the policy must be one of {EVERY_POLICY}, got {policy!r}")
    require_patches(policies[policy], generator)
    told = {
        "slow_fast-oracle": kept_chunks(case, s.key_chunks),
        "slow_fast-every-4": range(0, case.film.chunks, 4),
    }
    oracle = Oracle(told.get(policy, ()))
    pool = ReplacingCache(g.num_layers, generator.device)
    memory = build_memory(
        policies[policy],
        pool,
        TORCH,
        latent_frames=CHUNK_LATENTS * case.film.chunks,
        head_dim=g.head_dim,
        grid=g.grid(*latent_size),
        admit=oracle if policy in told else None,
    )
    return Run(memory, pool, oracle)
