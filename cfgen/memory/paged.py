"""The one memory of all policies: a page pool, a table per layer, and the ops that read them.

Keys are stored with the spatial rotation applied and the temporal one left off, so a page can move
to another temporal position without being touched. Context is rotated once a chunk and reused by
its passes, unless memory is too short for it.

Axis letters: B batch, F latent frames, P tokens per latent frame, L = F * P, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cfgen.memory.base import MemoryState, Pass, Placed, Scalars, Table, whole
from cfgen.memory.kv_cache import KVCache, PagePool
from cfgen.ops.reference import Rope, turns
from cfgen.ops.select import Ops

Context = tuple[tuple[Placed, ...], Tensor, Tensor]


class PagedMemory:
    """See `base.Memory`.

    Args:
        tables: one table per layer.
        pool: where pages lie.
        ops: rotation and attention.
        rope: rotary layout of the generator.
        grid: tokens of a latent frame as (rows, columns).
        reuse: keep the rotated context of a chunk for all its passes, at about the size of the
            cache itself, or rotate anew in every pass.
    """

    def __init__(
        self,
        tables: Sequence[Table[Tensor]],
        pool: PagePool,
        ops: Ops,
        *,
        rope: Rope,
        grid: tuple[int, int],
        reuse: bool = True,
    ) -> None:
        self.reuse = reuse
        self.tables = list(tables)
        self.pool = pool
        self.ops = ops
        self.rope = rope
        self.tokens = grid[0] * grid[1]
        self._spatial = rope.spatial(grid)
        self._next_frame = 0
        self._admitted = 0

    def begin(self, frames: int) -> PagedView:
        """Open the next chunk: evict, then give it pages."""
        pages = []
        for layer, table in enumerate(self.tables):
            table.evict(frames)
            self.pool.keep(layer, (slot.page for slot in table.slots()))
            pages.append([self.pool.take(layer) for _ in range(frames)])
            table.enter(self._next_frame, pages[-1])
        return PagedView(self, frames, pages)

    def commit(self, view: PagedView) -> None:
        """Close the chunk."""
        for layer, table in enumerate(self.tables):
            table.commit()
            self.pool.keep(layer, (slot.page for slot in table.slots()))
        self._next_frame += view.frames
        self._admitted = view.admitted[0]

    @property
    def replayable(self) -> bool:
        """Whether commit passes alone settle what is kept, so that a replay needs no other."""
        return not any(table.watches(Pass(0)) for table in self.tables)

    def state(self) -> MemoryState:
        """What is held between two chunks. The tensors are views: store them before going on.

        Raises:
            TypeError: the pool is one for training.
        """
        if not isinstance(self.pool, KVCache):
            raise TypeError("only a KVCache can be saved")
        pool, pages = self.pool.state()
        states = [table.state() for table in self.tables]
        references = {
            f"reference.{i}": keys for i, (_, keys) in enumerate(states) if keys is not None
        }
        scalars: Scalars = {"pool": pool, "tables": [held for held, _ in states]}
        return MemoryState(scalars | {"next_frame": self._next_frame}, references, pages)

    def restore(self, state: MemoryState) -> None:
        """Hold what `state` gave.

        Raises:
            KeyError, TypeError, ValueError, IndexError: it is the state of another memory.
        """
        if not isinstance(self.pool, KVCache):
            raise TypeError("only a KVCache can be restored")
        tables, pool = state.scalars["tables"], state.scalars["pool"]
        if not isinstance(tables, list) or not isinstance(pool, dict):
            raise TypeError("the state must hold a list of tables and a pool")
        self.pool.restore(pool, state.pages)
        for layer, (table, held) in enumerate(zip(self.tables, tables, strict=True)):
            reference = state.tensors.get(f"reference.{layer}")
            table.restore(held, None if reference is None else reference.to(self.pool.device))
        self._next_frame = whole(state.scalars["next_frame"])

    def frames(self, layer: int) -> list[int]:
        """Source frames of a layer's slots, in table order."""
        return [slot.frame for slot in self.tables[layer].slots()]

    @property
    def nbytes(self) -> int:
        """Bytes of the page pool."""
        return self.pool.nbytes

    def figures(self) -> dict[str, float]:
        """Slots a layer, key frames that the last chunk admitted over all layers, bytes held."""
        slots = sum(len(table.slots()) for table in self.tables) / len(self.tables)
        return {"slots": slots, "admitted": self._admitted, "nbytes": self.nbytes}

    def angles(self, positions: Sequence[int], *, spatial: bool) -> Tensor:
        """Rotary angles of whole frames at temporal positions: [len(positions) * P, E] float64."""
        temporal = self.rope.temporal(positions)[:, None]
        both = temporal + self._spatial if spatial else temporal.expand(-1, self.tokens, -1)
        return both.flatten(0, 1)


@dataclass
class PagedView:
    """See `base.View`. `admitted` counts key frames taken in during the chunk, over all layers."""

    memory: PagedMemory
    frames: int
    pages: list[list[int]]
    pass_: Pass = field(default_factory=lambda: Pass(0))
    contexts: dict[int, Context] = field(default_factory=dict)
    turns: dict[tuple[tuple[int, ...], bool], Tensor] = field(default_factory=dict)
    admitted: list[int] = field(default_factory=lambda: [0])

    def at(self, pass_: Pass) -> PagedView:
        """The same chunk in another pass; rotated context is shared."""
        return replace(self, pass_=pass_)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Let the policy see the keys, then attend to what it shows: all [B, L, N, D]."""
        table = self.memory.tables[layer]
        watched = table.watches(self.pass_)
        if watched or self.pass_.commit:
            stored = self.memory.ops.rotate(k, self._turns((0,) * self.frames, k, spatial=True))
            self.memory.pool.write(layer, self.pages[layer], stored, v)
        if watched:
            self.admitted[0] += table.observe(
                self.pass_, k.mean(1).flatten(1), lambda page: self._copy(layer, page)
            )
        visible = table.visible(self.pass_)
        past, current = visible[: -self.frames], visible[-self.frames :]
        here = self._turns(tuple(p.position for p in current), k, spatial=True)
        q, k = self.memory.ops.rotate(q, here), self.memory.ops.rotate(k, here)
        if past:
            k_past, v_past = self._context(layer, tuple(past), k)
            k, v = torch.cat([k_past, k], 1), torch.cat([v_past, v], 1)
        return self.memory.ops.attend(q, k, v)

    def _context(self, layer: int, past: tuple[Placed, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        known = self.contexts.get(layer)
        if known is None or known[0] != past:
            k, v = self.memory.pool.read(layer, [p.slot.page for p in past])
            k = self.memory.ops.rotate(
                k, self._turns(tuple(p.position for p in past), like, spatial=False)
            )
            known = (past, k.to(like.dtype), v.to(like.dtype))
            if self.memory.reuse:
                self.contexts[layer] = known
        return known[1], known[2]

    def _copy(self, layer: int, page: int) -> int:
        k, v = self.memory.pool.read(layer, [page])
        copy = self.memory.pool.take(layer)
        self.memory.pool.write(layer, [copy], k, v)
        return copy

    def _turns(self, positions: tuple[int, ...], like: Tensor, *, spatial: bool) -> Tensor:
        key = (positions, spatial)
        if key not in self.turns:
            self.turns[key] = turns(
                self.memory.angles(positions, spatial=spatial), like.dtype, like.device
            )
        return self.turns[key]


@dataclass(frozen=True, slots=True)
class Surprise:
    """Compares chunk descriptors [B, N * D]: means of un-rotated keys over a chunk's tokens."""

    tau: float

    def __call__(self, reference: Tensor, keys: Tensor) -> bool:
        """Whether the batch mean of the cosines is below tau."""
        return float(cosine_similarity(reference.float(), keys.float(), dim=-1).mean()) < self.tau
