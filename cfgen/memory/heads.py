"""How a film's tokens and attention heads are shared out among processes; see `cfgen.parallel`.

Axis letters: B batch, F latent frames, L = F * P tokens of a chunk, l those of one process, C = N *
D channels of all heads, c those of the heads of one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from cfgen.memory.protocols import MemoryState, Norms


class HeadSplit(Protocol):
    """Gives each process all tokens of its heads to attend to, else its tokens of all heads."""

    @property
    def processes(self) -> int:
        """How many there are."""

    def by_heads(
        self, q: Tensor, k: Tensor, v: Tensor, norms: Norms, *, frames: int
    ) -> tuple[Tensor, Tensor, Tensor, Norms]:
        """Projections [B, l, C] of own tokens to [B, L, c] of own heads, and their norms."""

    def by_tokens(self, x: Tensor) -> Tensor:
        """What own heads made of all tokens [B, L, c] to own tokens of all heads [B, l, C]."""

    def all_heads(self, x: Tensor, axis: int) -> Tensor:
        """What each process has of its heads, joined along an axis in the order of heads."""

    def gathered(self, state: MemoryState) -> MemoryState:
        """The state of a memory with all heads from that with one's own."""

    def scattered(self, state: MemoryState) -> MemoryState:
        """The state of a memory with one's own heads from that with all."""


@dataclass(frozen=True, slots=True)
class OneProcess:
    """See `HeadSplit`: the only process has all tokens and all heads."""

    processes: int = 1

    def by_heads(
        self, q: Tensor, k: Tensor, v: Tensor, norms: Norms, *, frames: int
    ) -> tuple[Tensor, Tensor, Tensor, Norms]:
        """See `HeadSplit`."""
        return q, k, v, norms

    def by_tokens(self, x: Tensor) -> Tensor:
        """See `HeadSplit`."""
        return x

    def all_heads(self, x: Tensor, axis: int) -> Tensor:
        """See `HeadSplit`."""
        return x

    def gathered(self, state: MemoryState) -> MemoryState:
        """See `HeadSplit`."""
        return state

    def scattered(self, state: MemoryState) -> MemoryState:
        """See `HeadSplit`."""
        return state
