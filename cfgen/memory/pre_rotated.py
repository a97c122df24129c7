"""Attention over keys that were rotated beforehand, for backends that cannot turn queries instead.

Axis letters: B batch, F latent frames, P tokens per latent frame, L = F * P, N heads, D head dim,
E rotary pairs, S slots.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from cfgen.memory.attention import Chunk, Prepared, bias_of
from cfgen.memory.page_pool import KVCache
from cfgen.memory.page_sizes import WHOLE, Patch
from cfgen.memory.protocols import Norms, Pass, Slot, VisibleSlot
from cfgen.ops.reference import Rope, rotate, turns
from cfgen.ops.select import Ops
from cfgen.ops.torch_backend import norm

SPELLED_OUT = 2**16
"""Most complex numbers of a rotation that is spelled out for every head. Then the product takes
5 us, not 10 us, for 180 tokens of 4 heads of 64 channels; for 4680 of 12 of 128 it takes 1.8 ms,
not 1.3 ms (one core of an AMD EPYC, torch 2.13, complex64)."""


class Piece(NamedTuple):
    """A slot whose keys are held, rotated.

    Attributes:
        slot: The slot.
        position: Its temporal position.
        number: Of its page, another whenever that is written anew.
        patch: Rows and columns of tokens of a latent frame that a key is of.
        tokens: How many keys there are.
    """

    slot: Slot
    position: int
    number: int
    patch: int
    tokens: int


MOST_KNOWN = 16
"""Sets of positions whose rotations are kept from one chunk to the next."""


class RotaryTables:
    """Rotations of a chunk's tokens and of its context, worked out once.

    Args:
        rope: Rotary layout of the generator.
        grid: Tokens of a latent frame as (rows, columns).
        patch: What the chunk's tokens stand for.
        pooled: See `Rope.cells`.
    """

    def __init__(
        self,
        rope: Rope,
        grid: tuple[int, int],
        patch: Patch = WHOLE,
        *,
        pooled: bool = False,
    ) -> None:
        self.rope = rope
        self.spatial, self.sizes = rope.cells(grid, patch, pooled=pooled and patch != WHOLE)
        self.pairs_in_time = int(rope.temporal([1])[0].count_nonzero())
        self._known: dict[object, Tensor] = {}

    def next_chunk(self) -> None:
        """Forget all once it is much: bounded positions come again, those of a film do not."""
        if len(self._known) > MOST_KNOWN:
            self._known.clear()

    def of(self, positions: Sequence[int] | int, like: Tensor) -> Tensor:
        """Rotations of whole frames at positions, or of so many that are not rotated in time.

        Complex numbers [F * P, 1 or N, E], for tokens `like` [B, F * P, N, D].
        """
        key = positions if isinstance(positions, int) else tuple(positions)
        if key not in self._known:
            angles = (
                self.spatial.repeat(positions, 1)
                if isinstance(positions, int)
                else (self.rope.temporal(positions)[:, None] + self.spatial).flatten(0, 1)
            )
            sizes = self.sizes
            if sizes is not None:
                sizes = sizes.repeat(len(angles) // len(sizes), 1)
            made = turns(angles, like.dtype, like.device, sizes=sizes)[:, None]
            if made.numel() * like.shape[2] <= SPELLED_OUT:
                made = made.expand(-1, like.shape[2], -1).contiguous()
            self._known[key] = made
        return self._known[key]

    def in_time(self, positions: Sequence[int], like: Tensor) -> Tensor:
        """Rotations of frames by time alone: [F, 1, pairs that turn in time]."""
        key = "in time", tuple(positions)
        if key not in self._known:
            angles = self.rope.temporal(positions)[:, None, : self.pairs_in_time]
            self._known[key] = turns(angles, like.dtype, like.device)
        return self._known[key]


class PatchRotations:
    """The rotations of each patch that a chunk has had; see `RotaryTables`."""

    def __init__(self, rope: Rope, grid: tuple[int, int], *, pooled: bool) -> None:
        self._make = functools.partial(RotaryTables, rope, grid, pooled=pooled)
        self._made: dict[Patch, RotaryTables] = {}

    def begin(self, patch: Patch) -> RotaryTables:
        """Those for a chunk that begins."""
        if patch not in self._made:
            self._made[patch] = self._make(patch)
        found = self._made[patch]
        found.next_chunk()
        return found


class Held(NamedTuple):
    """What a pass reads, as views of what is held.

    Attributes:
        visible: The slots, the chunk's own last.
        k: All keys, [B, S, N, D].
        v: All values, likewise.
        own_k: Where the chunk's own keys go, [B, L, N, D].
        own_v: Where its values go.
        here: Rotations of its tokens, unit complex numbers [L, 1 or N, E].
        bias: Added to the scores of each key, [1, S]; None if nothing is.
    """

    visible: list[VisibleSlot]
    k: Tensor
    v: Tensor
    own_k: Tensor
    own_v: Tensor
    here: Tensor
    bias: Tensor | None


class PreRotatedAttention:
    """Holds what a chunk reads, rotated, in the order of its slots; only what moved is done anew.

    Args:
        pool: Where pages lie.
        ops: Attention.
        rope: Rotary layout of the generator.
        grid: Tokens of a latent frame as (rows, columns).
        slots: Most slots that a pass reads, the chunk's own included.
        tokens: Most tokens that it reads; None where all pages are of one size.
        pooled: Whether tokens of a larger patch have the mean of its rotations.
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
        tokens: int | None = None,
        pooled: bool = False,
        shared: bool = False,
    ) -> None:
        self._pool, self._ops = pool, ops
        self._rotations = PatchRotations(rope, grid, pooled=pooled)
        batch, of_frame, heads, self._head_dim = pool.shape
        self._shared = shared
        layers = 1 if shared else pool.layers
        shape = (layers, batch, heads, tokens or slots * of_frame, self._head_dim)
        self._k, self._v = torch.zeros(2, *shape, dtype=pool.dtype, device=pool.device)
        self._context: list[list[Piece]] = [[] for _ in range(layers)]
        self._held: list[Held | None] = [None] * layers

    @property
    def nbytes(self) -> int:
        """Bytes held besides the pool."""
        nbytes: int = self._k.nbytes + self._v.nbytes
        return nbytes

    def begin(self, chunk: Chunk) -> None:
        """See `KVAttention`."""
        self._chunk = chunk
        self._turns = self._rotations.begin(chunk.patch)

    def forget(self) -> None:
        """See `KVAttention`."""
        self._context = [[] for _ in self._context]
        self._held = [None] * len(self._held)

    def prepare(
        self, layer: int, pass_: Pass, q: Tensor, k: Tensor, norms: Norms, *, watched: bool
    ) -> Prepared:
        """See `KVAttention`; the rotation is left to `attend`, but where it is asked for."""
        q_rate, k_rate = norms.rates or (None, None)
        q = norm(q, norms.q, norms.eps, self._head_dim, q_rate)
        wide = norm(k, norms.k, norms.eps, self._head_dim, k_rate)
        stored = None
        if watched or pass_.commit:
            stored = rotate(wide, self._turns.of(self._chunk.frames, wide)).to(k.dtype)
        return Prepared(
            q=q,
            k=wide,
            stored=stored,
            key_sums=wide.flatten(2).sum(1, keepdim=True).float() if watched else None,
        )

    def attend(self, layer: int, pass_: Pass, made: Prepared, v: Tensor) -> Tensor:
        """See `KVAttention`."""
        visible = self._chunk.visible_slots(layer, pass_)
        place = 0 if self._shared else layer
        held = self._held[place]
        if self._shared or held is None or held.visible is not visible:
            held = self._held[place] = self._hold(layer, place, visible, made.k)
        # The chunk's own keys stand right behind its context in one buffer, so that attention reads
        # both as one [B, slots * P, N, D] without joining them.
        held.own_k.copy_(turn(made.k, held.here))
        held.own_v.copy_(v)
        q = turn(made.q, held.here).to(v.dtype)
        return self._ops.attend(q, held.k, held.v, held.bias)

    def _hold(self, layer: int, place: int, visible: list[VisibleSlot], like: Tensor) -> Held:
        """Have the context held, and room for the chunk behind it, whose keys are `like` these."""
        frames, length = self._chunk.frames, like.shape[1]
        if self._shared:
            self._context[place] = []
        context = [self._piece(layer, each) for each in visible[:-frames]]
        first = self._bring(layer, place, context)
        sizes = [*(each.tokens for each in context), *[length // frames] * frames]
        tokens = slice(first, first + sum(sizes))
        k, v = (x[place, :, :, tokens].transpose(1, 2) for x in (self._k, self._v))
        own = slice(-length, None)
        here = self._turns.of([each.position for each in visible[-frames:]], like)
        return Held(visible, k, v, k[:, own], v[:, own], here, bias_of(visible, sizes, v))

    def _piece(self, layer: int, shown: VisibleSlot) -> Piece:
        page = shown.slot.page
        number, size = self._pool.number(layer, page), self._pool.size(page)
        return Piece(shown.slot, shown.position, number, *size)

    def _bring(self, layer: int, place: int, context: list[Piece]) -> int:
        """Have these slots held one after another; the token that the first begins with."""
        # Most chunks only drop slots at the front of what is held (the window moved on) and add
        # some at its end. Then nothing is copied: the context begins later in the same buffers.
        # Otherwise what stands elsewhere now, and only that, is brought from its pages again.
        held = self._context[place]
        if context and context[0] in held:
            first = held.index(context[0])
            if held[first:] == context:
                return sum(each.tokens for each in held[:first])
        before = dict(zip(_begins(held), held, strict=False))
        begins = list(_begins(context))
        moved = [i for i, each in enumerate(context) if before.get(begins[i]) != each]
        for run in _runs(moved, [each.patch for each in context]):
            self._rotate(layer, place, begins[run.start], context[run.start : run.stop])
        self._context[place] = context
        return 0

    def _rotate(self, layer: int, place: int, first: int, pieces: list[Piece]) -> None:
        """Hold pages of one size at their positions; only channels that turn in time change."""
        tokens = slice(first, first + len(pieces) * pieces[0].tokens)
        k, v = (
            torch.unflatten(x[place][:, :, tokens], 2, (len(pieces), -1))
            for x in (self._k, self._v)
        )
        self._pool.read(layer, [each.slot.page for each in pieces], k, v)
        # Pages hold keys that are rotated in space already, so only the first channel pairs, those
        # of the temporal axis, are left: [B, N, pages, P, 2 * pairs_in_time]. They are turned in
        # float32, since two roundings to bfloat16 would move attention.
        in_time = k[..., : 2 * self._turns.pairs_in_time]
        exact = k.dtype in (torch.float32, torch.float64)
        wide = in_time if exact else in_time.contiguous().float()
        turn(wide, self._turns.in_time([each.position for each in pieces], wide))
        if not exact:
            in_time.copy_(wide.to(k.dtype))


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of floats [..., 2 E] in place, by complex numbers [..., E].

    Floats are float32 and rotations complex64, or float64 and complex128.
    """
    x.view(turns.dtype).mul_(turns)
    return x


def _begins(pieces: Sequence[Piece]) -> Iterator[int]:
    """The token that each begins with, where they stand one after another."""
    return accumulate((each.tokens for each in pieces[:-1]), initial=0)


def _runs(indices: list[int], sizes: Sequence[int]) -> Iterator[range]:
    """Neighbours of one size among rising indices."""
    begin = 0
    for i, index in enumerate(indices):
        ends = i + 1 == len(indices) or indices[i + 1] != index + 1
        if ends or sizes[indices[i + 1]] != sizes[index]:
            yield range(indices[begin], index + 1)
            begin = i + 1
