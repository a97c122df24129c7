"""Memory for training: pages are the tensors themselves, so gradients reach their writers.

Axis letters: B batch, F latent frames, P tokens per latent frame, N heads, D head dim, S slots.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cfgen.memory.attention import Chunk, Prepared, bias_of
from cfgen.memory.pre_rotated import PatchRotations
from cfgen.memory.protocols import Norms, Pass
from cfgen.ops.reference import Rope, rotate, turns
from cfgen.ops.select import Ops
from cfgen.ops.torch_backend import norm

CPU = torch.device("cpu")


class GraphCache:
    """A pool of tensors in the autograd graph; see `protocols.PagePool`."""

    def __init__(self, layers: int, device: torch.device = CPU) -> None:
        self.layers, self.device = layers, device
        self.numbers_device = CPU
        self._pages: list[dict[int, tuple[Tensor, Tensor] | None]] = [{} for _ in range(layers)]

    def allocate(self, layer: int, patch: int = 1) -> int:
        """The lowest free page, of whatever size."""
        used = self._pages[layer]
        page = next(i for i in range(len(used) + 1) if i not in used)
        used[page] = None
        return page

    def retain(self, layer: int, pages: Iterable[int]) -> None:
        """Free every page of the layer but these."""
        kept = set(pages)
        self._pages[layer] = {page: kv for page, kv in self._pages[layer].items() if page in kept}

    def write(
        self,
        layer: int,
        into: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        only_if: Tensor | None = None,
        patch: int = 1,
    ) -> None:
        """Keep the tensors of frames, [B, F * P, N, D]."""
        if only_if is not None and not int(only_if):
            return
        pages = into.tolist()
        for page, *kv in zip(pages, k.chunk(len(pages), 1), v.chunk(len(pages), 1), strict=True):
            self._pages[layer][page] = (kv[0], kv[1])

    def read(self, layer: int, pages: Iterable[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of pages, [B, P, N, D] each."""
        stored = [self._pages[layer][page] for page in pages]
        written = [kv for kv in stored if kv is not None]
        if len(written) < len(stored):
            raise IndexError(f"layer {layer}: a page was read before it was written")
        return [k for k, _ in written], [v for _, v in written]

    def keys(self, layer: int, page: int) -> Tensor:
        """See `protocols.PagePool`; without gradients."""
        (k,), _ = self.read(layer, [page])
        return k.detach().transpose(1, 2)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(
            k.nbytes + v.nbytes
            for layer in self._pages
            for kv in layer.values()
            if kv
            for k, v in [kv]
        )


class AutogradAttention:
    """Rotates what a pass reads in that pass, out of place; see `attention.KVAttention`.

    Args:
        pool: Where pages lie.
        ops: Attention.
        rope: Rotary layout of the generator.
        grid: Tokens of a latent frame as (rows, columns).
        pooled: Whether tokens of a larger patch have the mean of its rotations.
    """

    def __init__(
        self,
        pool: GraphCache,
        ops: Ops,
        *,
        rope: Rope,
        grid: tuple[int, int],
        pooled: bool = False,
    ) -> None:
        self._pool, self._ops = pool, ops
        self._rotations = PatchRotations(rope, grid, pooled=pooled)

    def begin(self, chunk: Chunk) -> None:
        """See `KVAttention`."""
        self._chunk = chunk
        self._turns = self._rotations.begin(chunk.patch)

    def forget(self) -> None:
        """Nothing is kept."""

    def prepare(
        self, layer: int, pass_: Pass, q: Tensor, k: Tensor, norms: Norms, *, watched: bool
    ) -> Prepared:
        """See `KVAttention`; keys come as pages hold them."""
        frames, width = self._chunk.frames, 2 * self._turns.spatial.shape[1]
        positions = [p.position for p in self._chunk.visible_slots(layer, pass_)[-frames:]]
        q_rate, k_rate = norms.rates or (None, None)
        normed_q = norm(q, norms.q, norms.eps, width, q_rate)
        normed_k = norm(k, norms.k, norms.eps, width, k_rate)
        stored = rotate(normed_k, self._turns.of(frames, normed_k)).to(k.dtype)
        return Prepared(
            q=rotate(normed_q, self._turns.of(positions, normed_q)).to(q.dtype),
            k=rotate(normed_k, self._turns.of(positions, normed_k)).to(k.dtype),
            stored=stored,
            key_sums=normed_k.flatten(2).sum(1, keepdim=True).float() if watched else None,
        )

    def attend(self, layer: int, pass_: Pass, made: Prepared, v: Tensor) -> Tensor:
        """Attend to pages [B, ...] and to the chunk, of which there may be several draws.

        The batch of a pass is [draws * B], all films of one draw together: they read the same past.
        """
        context = self._chunk.visible_slots(layer, pass_)[: -self._chunk.frames]
        keys, values = self._pool.read(layer, [p.slot.page for p in context])
        tokens = [*(k.shape[1] for k in keys)] + [v.shape[1] // self._chunk.frames] * (
            self._chunk.frames
        )
        if keys:
            past = torch.cat(keys, 1)
            angles = self._turns.rope.temporal([p.position for p in context])
            of_pages = turns(angles, past.dtype, past.device)[:, None].unbind()
            # Not by repeat_interleave, whose sizes a GPU would have to be waited for.
            of_tokens = [
                each.expand(size, *each.shape[1:])
                for each, size in zip(of_pages, tokens, strict=False)
            ]
            past = rotate(past, torch.cat(of_tokens))
            draws = len(made.k) // len(past)
            keys = [past.repeat(draws, 1, 1, 1)]
            values = [torch.cat(values, 1).repeat(draws, 1, 1, 1)]
        bias = bias_of(self._chunk.visible_slots(layer, pass_), tokens, made.q)
        k, v = torch.cat([*keys, made.k], 1), torch.cat([*values, v], 1)
        return self._ops.attend(made.q, k, v, bias)
