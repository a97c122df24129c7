"""Attention over keys that were rotated beforehand, for backends that cannot turn queries instead.

Axis letters: B batch, F latent frames, P tokens per latent frame, L = F * P, N heads, D head dim,
E rotary pairs, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cfgen.memory.base import Norms, Pass, Placed
from cfgen.memory.kv_cache import KVCache
from cfgen.memory.reader import Chunk, Prepared
from cfgen.ops.reference import Rope, rotate, turns
from cfgen.ops.select import Ops
from cfgen.ops.torch_backend import norm


class Turns:
    """Rotations of a chunk's tokens, worked out once for each set of positions.

    Args:
        rope: Rotary layout of the generator.
        grid: Tokens of a latent frame as (rows, columns).
    """

    def __init__(self, rope: Rope, grid: tuple[int, int]) -> None:
        self.rope = rope
        self.spatial = rope.spatial(grid)
        self._known: dict[object, Tensor] = {}

    def forget(self) -> None:
        """Keep nothing of the chunk before."""
        self._known.clear()

    def of(self, positions: Sequence[int] | int, like: Tensor) -> Tensor:
        """Unit complex numbers [F * P, E] of frames at positions; F frames not rotated in time."""
        key = positions if isinstance(positions, int) else tuple(positions)
        if key not in self._known:
            angles = (
                self.spatial.repeat(positions, 1)
                if isinstance(positions, int)
                else (self.rope.temporal(positions)[:, None] + self.spatial).flatten(0, 1)
            )
            self._known[key] = turns(angles, like.dtype, like.device)
        return self._known[key]


class RotatedReader:
    """Holds what a chunk reads, rotated, in the order of its slots; only what moved is done anew.

    Args:
        pool: Where pages lie.
        ops: Attention.
        rope: Rotary layout of the generator.
        grid: Tokens of a latent frame as (rows, columns).
        slots: Most slots that a pass reads, the chunk's own included.
        shared: Hold one layer at a time, which then is rotated in every pass, instead of all.
    """

    def __init__(
        self,
        pool: KVCache,
        ops: Ops,
        *,
        rope: Rope,
        grid: tuple[int, int],
        slots: int,
        shared: bool = False,
    ) -> None:
        self._pool, self._ops = pool, ops
        self._turns = Turns(rope, grid)
        self._temporal = int(rope.temporal([1])[0].count_nonzero())
        batch, self._tokens, heads, self._head_dim = pool.shape
        self._shared = shared
        layers = 1 if shared else pool.layers
        shape = (layers, batch, heads, slots * self._tokens, self._head_dim)
        self._k, self._v = torch.zeros(2, *shape, dtype=pool.dtype, device=pool.device)
        self._held: list[list[Placed]] = [[] for _ in range(layers)]

    @property
    def nbytes(self) -> int:
        """Bytes held besides the pool."""
        nbytes: int = self._k.nbytes + self._v.nbytes
        return nbytes

    def begin(self, chunk: Chunk) -> None:
        """See `Reader`."""
        self._chunk = chunk
        self._turns.forget()

    def forget(self) -> None:
        """See `Reader`."""
        self._held = [[] for _ in self._held]

    def prepare(
        self, layer: int, pass_: Pass, q: Tensor, k: Tensor, norms: Norms, *, watched: bool
    ) -> Prepared:
        """See `Reader`."""
        frames = self._chunk.frames
        positions = [p.position for p in self._chunk.visible(layer, pass_)[-frames:]]
        normed_q = norm(q, norms.q, norms.eps, self._head_dim)
        normed_k = norm(k, norms.k, norms.eps, self._head_dim)
        here = self._turns.of(positions, normed_q)
        stored = None
        if watched or pass_.commit:
            stored = rotate(normed_k, self._turns.of(frames, normed_k)).to(k.dtype)
        return Prepared(
            q=rotate(normed_q, here).to(q.dtype),
            k=rotate(normed_k, here).to(k.dtype),
            stored=stored,
            parts=normed_k.flatten(2).sum(1, keepdim=True).float() if watched else None,
        )

    def attend(self, layer: int, pass_: Pass, made: Prepared, v: Tensor) -> Tensor:
        """See `Reader`."""
        context = self._chunk.visible(layer, pass_)[: -self._chunk.frames]
        place = 0 if self._shared else layer
        if self._shared:
            self._held[place] = []
        begin = self._bring(layer, place, context) * self._tokens
        own = begin + len(context) * self._tokens
        end = own + v.shape[1]
        k, v_all = self._k[place], self._v[place]
        k[:, :, own:end] = made.k.transpose(1, 2)
        v_all[:, :, own:end] = v.transpose(1, 2)
        keys, values = (x[:, :, begin:end].transpose(1, 2) for x in (k, v_all))
        return self._ops.attend(made.q, keys, values)

    def _bring(self, layer: int, place: int, context: list[Placed]) -> int:
        """Have these slots held one after another; the index of the first."""
        held = self._held[place]
        if context and context[0] in held:
            first = held.index(context[0])
            if held[first:] == context:
                return first
        for i, placed in enumerate(context):
            if i >= len(held) or held[i] != placed:
                self._rotate(layer, place, i, placed)
        self._held[place] = list(context)
        return 0

    def _rotate(self, layer: int, place: int, index: int, placed: Placed) -> None:
        """Hold a page at its position; only channels that turn in time are computed."""
        k, v = self._pool.read(layer, placed.slot.page)
        here = slice(index * self._tokens, (index + 1) * self._tokens)
        self._k[place, :, :, here], self._v[place, :, :, here] = k, v
        width = 2 * self._temporal
        angle = self._turns.rope.temporal([placed.position])[:, : self._temporal]
        wide = k[..., :width] if k.dtype == torch.float64 else k[..., :width].float()
        self._k[place, :, :, here, :width] = rotate(wide, turns(angle, wide.dtype, k.device))
