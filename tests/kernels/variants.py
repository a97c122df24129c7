"""The launches that are compiled without a GPU: host functions called on tensors without data.

Sizes are those of real renders, because Triton compiles for divisibility by 16 of each size.

Axis letters: B batch, F latent frames of a chunk, P tokens per latent frame, L = F * P, N heads,
D head dim, C = N * D, S slots, R rows of the table of turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cfgen.kernels import attend, cache_write, modulate, similarity
from cfgen.kernels.pages import ADMITTED, ADMITTED_NOW, Pages, Slots

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
INT8, FP8 = torch.int8, torch.float8_e4m3fn
GPU = torch.device("cuda")


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's chunk."""

    tokens: int
    heads: int
    head_dim: int
    frames: int = 3
    slots: int = 21  # the chunk's own included
    pages: int = 24

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


WAN = Sizes(tokens=1560, heads=12, head_dim=128)
MINI = Sizes(tokens=60, heads=4, head_dim=64)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of calling a host function.

    Attributes:
        call: Calls it for a layer, 0 or 1, whose tables lie at other places in memory.
        unsupported: Gives the reason why it is refused, where it is.
        refused: Targets where it must be.
        dots: For each kernel that multiplies tiles, the types of the tiles.
        short: Targets that every run of the tests compiles it for; slow tests take all.
        narrow: Kernels that may move their bytes in small pieces.
    """

    call: Callable[[int], object]
    unsupported: Callable[[], str | None]
    refused: tuple[int, ...] = ()
    dots: dict[str, tuple[str, ...]] = field(default_factory=dict)
    short: tuple[int, ...] = (90,)
    narrow: tuple[str, ...] = ()


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def slots(s: Sizes, layer: int, *, biased: bool = False, sized: bool = False) -> Slots:
    """Slots of a full memory, cut from tables for all layers and both kinds of pass."""
    whole = {"dtype": torch.int32}
    page, row, start, tokens = (empty(2, 2, 2, s.slots, **whole)[layer, layer] for _ in range(4))
    return Slots(
        page=page,
        row=row,
        counts=empty(2, 2, 2, **whole)[layer, layer],
        here=empty(2, 2, s.slots, **whole)[layer, layer, : s.frames],
        admitted=empty(2, 4, **whole)[layer, ADMITTED : ADMITTED + 1],
        turns=empty(s.slots, s.head_dim // 2, 2, dtype=F32),
        bias=empty(2, 2, 2, s.slots, dtype=F32)[layer, layer] if biased else None,
        start=start if sized else None,
        tokens=tokens if sized else None,
    )


def pages(s: Sizes, keys: torch.dtype, values: torch.dtype) -> Pages:
    """A layer's pages."""
    page, head = (s.pages, 1, s.heads, s.tokens, s.head_dim), (s.pages, 1, s.heads)
    return Pages(
        k=empty(*page, dtype=keys),
        v=empty(*page, dtype=values),
        k_scale=empty(*head, dtype=F32) if keys == INT8 else None,
        k_mean=empty(*head, s.head_dim, dtype=F32) if keys == INT8 else None,
        v_scale=empty(*head, s.head_dim, dtype=F32) if values == FP8 else None,
    )


def heads(s: Sizes, dtype: torch.dtype) -> Tensor:
    """Queries, keys or values of a chunk: [1, L, N, D]."""
    return empty(1, s.frames * s.tokens, s.heads, s.head_dim, dtype=dtype)


def channels(s: Sizes, dtype: torch.dtype) -> Tensor:
    """Activations of a chunk: [1, L, C]."""
    return heads(s, dtype).flatten(2)


def attention(
    s: Sizes,
    dtype: torch.dtype,
    keys: torch.dtype | None = None,
    values: torch.dtype | None = None,
    *,
    splits: int = 1,
    biased: bool = False,
    sized: bool = False,
    short: tuple[int, ...] = (90,),
) -> Variant:
    """Attention to a full memory; `sized` pages lie behind one another, each as long as it is."""
    q, stored = heads(s, dtype), pages(s, keys or dtype, values or dtype)
    if sized:
        stored = Pages(stored.k.flatten(0, -2), stored.v.flatten(0, -2))
    own = "scalar" if dtype == F32 else "float"
    return Variant(
        lambda layer: attend.attend_pages(
            q, q, q, stored, slots(s, layer, biased=biased, sized=sized), splits=splits
        ),
        lambda: attend.unsupported(GPU, dtype=dtype, head_dim=s.head_dim, keys=keys, values=values),
        refused=(80,) if values == FP8 else (),
        dots={"_attend": (own, "int8") if keys == INT8 else (own,)},
        short=short,
        narrow=("_attend",) if values == FP8 else (),  # scales of channels: two a thread
    )


def norm_rotate(s: Sizes, dtype: torch.dtype, *, key_sums: bool = True) -> Variant:
    x, gain = channels(s, dtype), empty(s.width, dtype=dtype)
    spatial = empty(s.tokens, s.head_dim // 2, 2, dtype=F32)
    return Variant(
        lambda layer: cache_write.norm_rotate(
            x, x, gain, gain, eps=1e-6, spatial=spatial, slots=slots(s, layer), key_sums=key_sums
        ),
        lambda: cache_write.unsupported(GPU, dtype, head_dim=s.head_dim),
    )


def write_pages(
    s: Sizes, dtype: torch.dtype, keys: torch.dtype, values: torch.dtype, *, guarded: bool = False
) -> Variant:
    x, into = heads(s, dtype), empty(2, s.frames, dtype=torch.int32)
    decisions = empty(2, 4, dtype=torch.int32)

    def call(layer: int) -> None:
        only_if = decisions[layer, ADMITTED_NOW : ADMITTED_NOW + 1] if guarded else None
        cache_write.write_pages(x, x, pages(s, keys, values), into[layer], only_if=only_if)

    return Variant(
        call,
        lambda: cache_write.unsupported(GPU, dtype, head_dim=s.head_dim, keys=keys, values=values),
        refused=(80,) if values == FP8 else (),
    )


def admit(s: Sizes, *, narrow: tuple[str, ...] = ()) -> Variant:
    """The sums are those that `norm_rotate` gives."""
    groups = -(-s.frames * s.tokens // cache_write.GROUP)
    parts, reference = empty(1, groups, s.width, dtype=F32), empty(1, s.width, dtype=F32)
    decisions = empty(2, 4, dtype=torch.int32)
    return Variant(
        lambda layer: similarity.admit(
            parts, reference, decisions[layer], tokens=s.frames * s.tokens, tau=0.95
        ),
        lambda: similarity.unsupported(GPU),
        narrow=narrow,
    )


def modulation(s: Sizes, part: int, frames: int) -> Tensor:
    """One of the six rows of a layer's modulation, for each latent frame or for all: [1, F, C]."""
    return empty(1, frames, 6, s.width, dtype=F32).unbind(2)[part]


def modulated(s: Sizes, stream: torch.dtype, out: torch.dtype, *, frames: int = 3) -> Variant:
    x = channels(s, stream)
    shift, scale = modulation(s, 0, frames), modulation(s, 1, frames)
    return Variant(
        lambda _: modulate.modulate(x, shift, scale, eps=1e-6, dtype=out),
        lambda: modulate.unsupported(GPU, stream, out),
    )


def gated(s: Sizes, stream: torch.dtype, branch: torch.dtype, *, frames: int = 3) -> Variant:
    x, y, gate = channels(s, stream), channels(s, branch), modulation(s, 2, frames)
    return Variant(
        lambda _: modulate.add_gated(x, y, gate),
        lambda: modulate.unsupported(GPU, stream, branch),
    )


VARIANTS: dict[str, Variant] = {
    "attend_pages, Wan bf16": attention(WAN, BF16, short=(90, 100)),
    "attend_pages, Wan bf16 in 2 runs": attention(WAN, BF16, splits=2),
    "attend_pages, Wan bf16 and int8 keys": attention(WAN, BF16, INT8, short=(89, 90)),
    "attend_pages, Wan bf16, int8 keys and fp8 values": attention(
        WAN, BF16, INT8, FP8, short=(80, 90, 120)
    ),
    "attend_pages, Wan bf16 and biases": attention(WAN, BF16, biased=True),
    "attend_pages, Wan bf16, int8 keys and biases": attention(WAN, BF16, INT8, biased=True),
    "attend_pages, Wan bf16 and pages of several sizes": attention(WAN, BF16, sized=True),
    "attend_pages, mini float32 and pages of several sizes": attention(MINI, F32, sized=True),
    "attend_pages, mini bf16": attention(MINI, BF16, short=(80,)),
    "attend_pages, mini float32 in 8 runs": attention(MINI, F32, splits=8),
    "norm_rotate, Wan bf16": norm_rotate(WAN, BF16),
    "norm_rotate, Wan bf16, no sums": norm_rotate(WAN, BF16, key_sums=False),
    "norm_rotate, mini float32": norm_rotate(MINI, F32),
    "write_pages, Wan bf16": write_pages(WAN, BF16, BF16, BF16),
    "write_pages, Wan bf16 to int8 keys": write_pages(WAN, BF16, INT8, BF16),
    "write_pages, Wan bf16 to int8 keys and fp8 values": write_pages(WAN, BF16, INT8, FP8),
    "write_pages, mini float32 to int8 keys, if": write_pages(MINI, F32, INT8, F32, guarded=True),
    "admit, Wan": admit(WAN),
    "admit, mini": admit(MINI, narrow=("_decide",)),  # 256 numbers for 256 threads
    "modulate, Wan float32 to bf16": modulated(WAN, F32, BF16),
    "modulate, Wan bf16, one row for all": modulated(WAN, BF16, BF16, frames=1),
    "modulate, mini float32": modulated(MINI, F32, F32),
    "add_gated, Wan float32 and bf16": gated(WAN, F32, BF16),
    "add_gated, Wan bf16, one row for all": gated(WAN, BF16, BF16, frames=1),
    "add_gated, mini float32": gated(MINI, F32, F32),
}
"""What is compiled, by the name of the host function and what sets the call apart."""

OLD_BLACKWELL = "Triton 3.6 only, whose code for this target takes more registers; 3.9 has none."
SPILLS = {
    "attend_pages, Wan bf16 in 2 runs, sm_100, _attend": (2, OLD_BLACKWELL),
    "attend_pages, Wan bf16, int8 keys and fp8 values, sm_100, _attend": (8, OLD_BLACKWELL),
}
"""Accesses to local memory that are allowed, and why; keys as in the record."""
