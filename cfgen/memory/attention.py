"""How a chunk reads its layer's pages: the seam between what is kept and how attention runs.

Axis letters: B batch, F latent frames, P tokens per latent frame, L = F * P, N heads, D head dim,
C = N * D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cfgen.kernels.pages import ADMITTED
from cfgen.memory.page_sizes import WHOLE, Patch
from cfgen.memory.protocols import Norms, Pass, Table, VisibleSlot


class Chunk:
    """The chunk that is being made, as readers see it.

    Args:
        frames: Its pages in a layer: its latent frames, where it is no older one that is encoded
            again with a larger patch.
        tables: One per layer; it has entered them.
        decisions: [layers, 4] int32 on the device, see `kernels.pages`.
        jump: Latent frames that the chunk stands later in time than its tables have it.
        patch: What its tokens stand for.
    """

    def __init__(
        self,
        frames: int,
        tables: Sequence[Table],
        decisions: Tensor,
        *,
        jump: int = 0,
        patch: Patch = WHOLE,
    ) -> None:
        self.frames, self.tables, self.decisions = frames, tables, decisions
        self.patch = patch
        self._jump = jump
        self._shown: dict[tuple[int, Pass, bool], list[VisibleSlot]] = {}

    def visible_slots(self, layer: int, pass_: Pass) -> list[VisibleSlot]:
        """What a pass reads; waits for the device where its decision counts."""
        table = self.tables[layer]
        asked = table.spare_pages > 0 and table.admission.allowed
        return self.shown(layer, pass_, asked and bool(self.decisions[layer, ADMITTED]))

    def shown(self, layer: int, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """What a pass reads if the chunk was admitted, or was not."""
        table = self.tables[layer]
        like = Pass(0 if pass_.commit else min(pass_.index, table.steps - 1), pass_.commit)
        key = layer, like, admitted
        if key not in self._shown:
            shown = table.visible_slots(like, admitted)
            past, own = shown[: -self.frames], shown[-self.frames :]
            far = [each._replace(position=each.position + self._jump) for each in own]
            self._shown[key] = [*past, *far] if self._jump else shown
        return self._shown[key]


class Prepared(NamedTuple):
    """Queries and keys of a chunk in one layer.

    Attributes:
        q: Queries as the reader's `attend` takes them, [B, L, N, D].
        k: Keys likewise.
        stored: Keys as pages hold them, rotated in space only; None if nobody asked.
        key_sums: Sums of un-rotated keys, [B, n, C] float32; None if nobody asked.
    """

    q: Tensor
    k: Tensor
    stored: Tensor | None
    key_sums: Tensor | None


def bias_of(shown: Sequence[VisibleSlot], tokens: Sequence[int], like: Tensor) -> Tensor | None:
    """What is added to the scores of each key, [1, S] as `like`; None if nothing is.

    Slots have so many tokens, one number for each of them.
    """
    if not any(each.bias for each in shown):
        return None
    biases = torch.tensor([[each.bias for each in shown]], dtype=like.dtype)
    biases = biases.repeat_interleave(torch.tensor(tokens), 1)
    return biases.to(like.device, non_blocking=True)


class KVAttention(Protocol):
    """Attention of a chunk to pages and to itself."""

    def begin(self, chunk: Chunk) -> None:
        """A chunk has entered its tables."""

    def prepare(
        self, layer: int, pass_: Pass, q: Tensor, k: Tensor, norms: Norms, *, watched: bool
    ) -> Prepared:
        """Norm and rotate projections [B, L, C].

        `stored` is made in commit passes and where the policy inspects keys, `key_sums` in the
        latter.
        """

    def attend(self, layer: int, pass_: Pass, made: Prepared, v: Tensor) -> Tensor:
        """Attend to what the pass shows and to the chunk: [B, L, N, D]; v likewise."""

    def forget(self) -> None:
        """What pages hold has changed behind the reader's back."""
