"""Random inputs of paged attention, the keys a peer wants of them, and the truth in float64.

Axis letters: B batch, F latent frames of a chunk, P tokens per latent frame, L = F * P, N heads,
D head dim, S key tokens, R rows of the table of turns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from cfgen.kernels.pages import Pages, Slots
from cfgen.ops.reference import LOG2E, Rope, write_pages

SCALE = 1 / LOG2E
"""What PyTorch's attention has to scale scores by: queries come scaled for powers of two."""

SPARE = 3
"""Pages of the pool that are not in use; they hold NaN."""

ROWS = 48
"""Rows whose outputs are compared with the truth."""

Kind = Literal["plain", "biased", "peaked"]
Storage = Literal["float", "int8", "int8+fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Sizes of one attention."""

    heads: int
    head_dim: int
    frames: int
    tokens: int
    context: int
    batch: int = 1

    @property
    def queries(self) -> int:
        """Query tokens."""
        return self.frames * self.tokens

    @property
    def keys(self) -> int:
        """Key tokens, the chunk's own included."""
        return (self.context + self.frames) * self.tokens

    @property
    def flops(self) -> float:
        """Operations of the two matrix products."""
        return 4.0 * self.batch * self.heads * self.head_dim * self.queries * self.keys


@dataclass(frozen=True)
class Attention:
    """One input set.

    Attributes:
        q: [B, L, N, D], rotated in space and time and scaled, as `norm_rotate` gives queries.
        k: [B, L, N, D], the chunk's keys, not rotated in time.
        v: [B, L, N, D], its values.
        pages: The pool, in the dtype of the queries.
        slots: What is read of it.
        order: [context] int64, the pages in the order of time.
        sample: Rows of the queries that are compared.
    """

    size: Size
    q: Tensor
    k: Tensor
    v: Tensor
    pages: Pages
    slots: Slots
    order: Tensor
    sample: Tensor
    _stored: dict[Storage, Pages] = field(default_factory=dict)

    def stored(self, storage: Storage) -> Pages:
        """The pages in a storage; quantized once."""
        if storage == "float":
            return self.pages
        if storage not in self._stored:
            self._stored[storage] = quantized(self.pages, self.order, storage)
        return self._stored[storage]

    @property
    def turns(self) -> Tensor:
        """[context + F, D / 2, 2]: the rotation in time of every latent frame that is read."""
        rows = torch.cat([self.slots.row[0, : self.size.context], self.slots.here])
        return self.slots.turns[rows.long()]

    @cached_property
    def ready(self) -> tuple[Tensor, Tensor]:
        """Keys, rotated in space and time, and values: [B, N, S, D], contiguous."""
        k, v = gathered(self.pages.k, self.pages.v, self.order, self.k, self.v, self.turns)
        return k.contiguous(), v.contiguous()


def make(
    size: Size,
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    kind: Kind = "plain",
    first: int = 0,
) -> Attention:
    """Random inputs whose pages lie in random order in their pool.

    Args:
        size: Its sizes.
        generator: Where the numbers come from, and the device.
        dtype: Of all of them.
        kind: Independent numbers, keys with a mean of their own in every channel, or queries twice
            as large.
        first: Position in time of the first latent frame.
    """
    device, s = generator.device, size

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    bias = random(s.heads, 1, s.head_dim) * (2 if kind == "biased" else 0)
    pool = s.context + SPARE
    order = torch.randperm(pool, generator=generator, device=device)[: s.context]
    k, v = (random(pool, s.batch, s.heads, s.tokens, s.head_dim) for _ in range(2))
    k += bias
    unused = torch.ones(pool, dtype=torch.bool, device=device)
    unused[order] = False
    k[unused], v[unused] = math.nan, math.nan
    slots = make_slots(order, frames=s.frames, head_dim=s.head_dim, first=first)
    q = random(s.batch, s.queries, s.heads, s.head_dim) * (2 if kind == "peaked" else 1)
    here = slots.turns[slots.here.long()].repeat_interleave(s.tokens, 0)[None, :, None]
    q = (turned(q.float(), here) * (LOG2E / math.sqrt(s.head_dim))).to(dtype)
    own_k, own_v = (random(s.batch, s.queries, s.heads, s.head_dim) for _ in range(2))
    own_k += bias.transpose(0, 1)
    sample = torch.randint(s.queries, (ROWS,), generator=generator, device=device)
    return Attention(size, q, own_k, own_v, Pages(k, v), slots, order, sample)


def make_slots(
    order: Tensor, *, frames: int, head_dim: int, first: int = 0, positions: Sequence[int] = ()
) -> Slots:
    """Slots that read pages `order` and then the chunk, at positions that rise from `first`.

    The other alternative, of a chunk that was admitted, reads one page less.
    """
    context, device = len(order), order.device
    told = list(positions) or list(range(first, first + context + frames))
    angles = Rope(head_dim).temporal(told)
    turns = torch.stack([angles.cos(), angles.sin()], -1).to(device, torch.float32)
    rows = torch.arange(context + frames, device=device, dtype=torch.int32)
    width = max(1, context)
    page = torch.zeros(2, width, device=device, dtype=torch.int32)
    row = torch.zeros_like(page)
    page[:, :context], row[:, :context] = order.to(torch.int32), rows[:context]
    return Slots(
        page=page,
        row=row,
        counts=torch.tensor([context, max(0, context - 1)], device=device, dtype=torch.int32),
        here=rows[context:],
        admitted=torch.zeros(1, device=device, dtype=torch.int32),
        turns=turns,
    )


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Adjacent pairs of the last axis, rotated by [..., D / 2, 2]; plain real arithmetic."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = turns.to(x.dtype).unbind(-1)
    pairs = (real * cosine - imaginary * sine, real * sine + imaginary * cosine)
    return torch.stack(pairs, -1).flatten(-2)


def gathered(
    pool_k: Tensor, pool_v: Tensor, order: Tensor, k: Tensor, v: Tensor, turns: Tensor
) -> tuple[Tensor, Tensor]:
    """All keys, rotated in time, and all values: [B, N, S, D] in the dtype of the chunk's."""
    return together(pool_k[order], pool_v[order], k, v, turns)


def gathered_8bit(
    pages: Pages, order: Tensor, k: Tensor, v: Tensor, turns: Tensor
) -> tuple[Tensor, Tensor]:
    """The same from pages in 8 bit, whose numbers are made floats on the way."""
    assert pages.k_scale is not None
    assert pages.k_mean is not None
    old_k = pages.k[order].float() * pages.k_scale[order][..., None, None]
    old_k = old_k + pages.k_mean[order][:, :, :, None]
    old_v = pages.v[order].float()
    if pages.v_scale is not None:
        old_v = old_v * pages.v_scale[order][:, :, :, None]
    return together(old_k, old_v, k, v, turns)


def together(
    old_k: Tensor, old_v: Tensor, k: Tensor, v: Tensor, turns: Tensor
) -> tuple[Tensor, Tensor]:
    """Pages [context, B, N, P, D] and a chunk [B, L, N, D] as [B, N, S, D], keys turned."""
    context, _, _, tokens, _ = old_k.shape
    old = turned(old_k.float(), turns[:context, None, None, None]).to(k.dtype)
    new = turned(k.float().unflatten(1, (-1, tokens)), turns[None, context:, None, None])
    own = new.flatten(1, 2).to(k.dtype).transpose(1, 2)
    keys = torch.cat([old.permute(1, 2, 0, 3, 4).flatten(2, 3), own], 2)
    values = old_v.to(v.dtype).permute(1, 2, 0, 3, 4).flatten(2, 3)
    return keys, torch.cat([values, v.transpose(1, 2)], 2)


def quantized(pages: Pages, order: Tensor, storage: Storage) -> Pages:
    """Pages of a pool in 8 bit: int8 keys, and fp8 values if so named; unused pages keep poison."""
    count, batch, heads, _, dim = pages.k.shape

    def scale(*shape: int) -> Tensor:
        return torch.full(shape, math.nan, device=pages.k.device)

    into = Pages(
        k=torch.full_like(pages.k, 127, dtype=torch.int8),
        v=pages.v.clone(),
        k_scale=scale(count, batch, heads),
        k_mean=scale(count, batch, heads, dim),
    )
    if storage == "int8+fp8":
        into = into._replace(
            v=torch.full_like(pages.v, math.nan, dtype=torch.float32).to(torch.float8_e4m3fn),
            v_scale=scale(count, batch, heads, dim),
        )
    for page in order.tolist():
        k, v = (x[page].transpose(1, 2) for x in (pages.k, pages.v))
        write_pages(k, v, into, torch.tensor([page], device=order.device))
    return into


def truth(inputs: Attention) -> Tensor:
    """The sampled rows [B, ROWS, N, D] in float64, every key rotated by itself."""
    q = inputs.q[:, inputs.sample].double().transpose(1, 2)
    turns, size = inputs.turns.double(), inputs.size
    frames = [
        (inputs.pages.k[page].double(), inputs.pages.v[page].double())
        for page in inputs.order.tolist()
    ]
    own = (x.double().transpose(1, 2).split(size.tokens, 2) for x in (inputs.k, inputs.v))
    frames += list(zip(*own, strict=True))
    scores = [
        q @ turned(k, turn).transpose(-1, -2) for (k, _), turn in zip(frames, turns, strict=True)
    ]
    weights = torch.softmax(torch.cat(scores, -1) / LOG2E, -1)
    return (weights @ torch.cat([v for _, v in frames], 2)).transpose(1, 2)
