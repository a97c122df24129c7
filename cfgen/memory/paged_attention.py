"""Attention that reads pages where they lie: time stands in the slots, and queries are turned.

What a chunk may read is written to the device before its first pass, at addresses that never
change, for each kind of pass and for both outcomes of a decision: nothing in a chunk waits for the
host.

Axis letters: B batch, F latent frames, P tokens per latent frame, E rotary pairs, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cfgen.kernels.pages import ADMITTED, Slots
from cfgen.memory.attention import Chunk, Prepared
from cfgen.memory.page_pool import KVCache
from cfgen.memory.page_sizes import WHOLE, Patch
from cfgen.memory.protocols import Norms, Pass
from cfgen.ops.reference import LOG2E, Rope
from cfgen.ops.select import PageOps


class PagedAttention:
    """See `attention.KVAttention`.

    Args:
        pool: Where pages lie.
        ops: Its `pages` do the work.
        rope: Rotary layout of the generator.
        grid: Tokens of a latent frame as (rows, columns).
        slots: Most slots that a pass reads, the chunk's own included.
        steps: Denoising passes that may each read something of their own.
        biased: Whether slots may have a bias.
        pooled: Whether tokens of a larger patch have the mean of its rotations.
    """

    def __init__(
        self,
        pool: KVCache,
        ops: PageOps,
        *,
        rope: Rope,
        grid: tuple[int, int],
        slots: int,
        steps: int = 1,
        biased: bool = False,
        pooled: bool = False,
    ) -> None:
        self._pool, self._ops, self._rope, self._grid = pool, ops, rope, grid
        self._exact = torch.float64 if pool.dtype == torch.float64 else torch.float32
        self._pooled = pooled
        self._spatial = {WHOLE: self._on_device(_cosine_sine(rope.spatial(grid)))}
        self._passes = [*map(Pass, range(steps)), Pass(0, commit=True)]
        kinds = len(self._passes)
        self._page = self._whole(kinds, 2, slots)
        self._row = self._whole(kinds, 2, slots)
        self._count = self._whole(kinds, 2)
        self._here = self._whole(kinds, slots)
        mixed = pool.is_mixed
        self._places = torch.tensor(pool.places(), dtype=torch.int32)
        self._start = self._whole(kinds, 2, slots) if mixed else None
        self._tokens = self._whole(kinds, 2, slots) if mixed else None
        self._bias = self._on_device(torch.zeros(self._page.shape)) if biased else None
        # A chunk that jumps in time stands at positions of its own in each layer, and denoising
        # and commit passes may differ.
        most = 2 * slots if kinds == 2 else 4 * slots
        self._turns = self._on_device(_cosine_sine(rope.temporal([0] * most)))

    def begin(self, chunk: Chunk) -> None:
        """Write down what the passes of a chunk will read."""
        # The host writes tables for every case that a pass can meet, before it knows which: for
        # each layer, for each kind of denoising pass and the commit pass, and for the chunk
        # admitted or not, [layers, kinds, 2, slots]. The kernel picks by the decision that it finds
        # on the device, so that nothing waits for it. A row is a temporal position: each is rotated
        # once, whatever reads it.
        self._chunk = chunk
        self._rotate_cells(chunk.patch)
        page, row, count, here = (
            torch.zeros(like.shape, dtype=torch.int32)
            for like in (self._page, self._row, self._count, self._here)
        )
        bias = torch.zeros(self._page.shape)
        rows: dict[int, int] = {}
        for layer, table in enumerate(chunk.tables):
            may_be = table.admission.allowed
            for index, pass_ in enumerate(self._passes):
                for admitted in (False, True):
                    shown = chunk.shown(layer, pass_, admitted and may_be)
                    at = [rows.setdefault(p.position, len(rows)) for p in shown]
                    past = len(shown) - chunk.frames
                    where = layer, index, int(admitted)
                    page[where][:past] = torch.tensor([p.slot.page for p in shown[:past]])
                    row[where][:past] = torch.tensor(at[:past])
                    bias[where][:past] = torch.tensor([LOG2E * p.bias for p in shown[:past]])
                    count[where] = past
                    here[layer, index, : chunk.frames] = torch.tensor(at[past:])
        turns = _cosine_sine(self._rope.temporal(list(rows)))
        self._page.copy_(page, non_blocking=True)
        self._row.copy_(row, non_blocking=True)
        self._count.copy_(count, non_blocking=True)
        self._here.copy_(here, non_blocking=True)
        if self._bias is not None:
            self._bias.copy_(bias, non_blocking=True)
        self._turns[: len(turns)] = self._on_device(turns)
        if self._start is not None and self._tokens is not None:
            start, tokens = self._places[page.long()].unbind(-1)
            self._start.copy_(start)
            self._tokens.copy_(tokens)

    def _rotate_cells(self, patch: Patch) -> None:
        """Have the rotations in space of a chunk's tokens."""
        if patch not in self._spatial:
            angles, sizes = self._rope.cells(self._grid, patch, pooled=self._pooled)
            cells = _cosine_sine(angles)
            self._spatial[patch] = self._on_device(
                cells if sizes is None else cells * sizes[..., None]
            )

    def forget(self) -> None:
        """Nothing is kept."""

    def prepare(
        self, layer: int, pass_: Pass, q: Tensor, k: Tensor, norms: Norms, *, watched: bool
    ) -> Prepared:
        """See `KVAttention`; keys come as pages hold them."""
        q, k, key_sums = self._ops.norm_rotate(
            q,
            k,
            norms.q,
            norms.k,
            eps=norms.eps,
            spatial=self._spatial[self._chunk.patch],
            slots=self._slots(layer, pass_),
            key_sums=watched,
            rates=norms.rates,
        )
        return Prepared(q, k, k, key_sums)

    def attend(self, layer: int, pass_: Pass, made: Prepared, v: Tensor) -> Tensor:
        """See `KVAttention`."""
        slots = self._slots(layer, pass_)
        return self._ops.attend_pages(made.q, made.k, v, self._pool.layer(layer), slots)

    def _slots(self, layer: int, pass_: Pass) -> Slots:
        last = len(self._passes) - 1
        index = last if pass_.commit else min(pass_.index, last - 1)
        return Slots(
            page=self._page[layer, index],
            row=self._row[layer, index],
            counts=self._count[layer, index],
            here=self._here[layer, index, : self._chunk.frames],
            admitted=self._chunk.decisions[layer, ADMITTED : ADMITTED + 1],
            turns=self._turns,
            bias=None if self._bias is None else self._bias[layer, index],
            start=None if self._start is None else self._start[layer, index],
            tokens=None if self._tokens is None else self._tokens[layer, index],
        )

    def _whole(self, *shape: int) -> Tensor:
        return torch.zeros(self._pool.layers, *shape, dtype=torch.int32, device=self._pool.device)

    def _on_device(self, numbers: Tensor) -> Tensor:
        return numbers.to(self._pool.device, self._exact, non_blocking=True)


def _cosine_sine(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], -1)
