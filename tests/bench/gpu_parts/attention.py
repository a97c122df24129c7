"""Slice k1: attention over a memory, ours in its pages against peers on keys made ready for them.

A peer's plain name means that contiguous, rotated keys and values were there before; `+g` means
that it had to gather them from the same pages, rotate them and join the chunk's own, in one
compiled function, as it has to whenever the memory has changed. Ours reads the pages either way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gpu_parts import ceilings
from gpu_parts.attention_data import (
    SCALE,
    Attention,
    Size,
    Storage,
    gathered,
    gathered_8bit,
    make,
    truth,
)
from gpu_parts.case import Bench, Case, Contestant, Refused, relative
from gpu_parts.kernels import compiled, kernel
from gpu_parts.sizes import Sizes
from gpu_parts.timing import Call

SLICE = "k1"
BASELINES = ("cudnn", "cudnn+g")
TOLERANCES: dict[Storage, float] = {"float": 5e-3, "int8": 2e-2, "int8+fp8": 5e-2}
SPLITS = (1, 2, 4)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A peer: queries [B, N, L, D], keys and values [B, N, S, D], output like the queries."""


def cases(bench: Bench) -> list[Case]:
    """Every size of the protocol."""
    return [_case(bench, name, size) for name, size in estimate_memory(bench.sizes)]


def estimate_memory(s: Sizes) -> list[tuple[str, Size]]:
    """Sizes by name: one chunk and two at the usual resolution, one at a larger one."""
    plans = [
        *((s.chunk, s.frame, keys) for keys in s.key_frames),
        *((2 * s.chunk, s.frame, keys) for keys in s.key_frames),
        *((s.chunk, s.large_frame, keys) for keys in s.key_frames[::2]),
    ]
    found = []
    for frames, frame, keys in plans:
        size = Size(
            heads=s.heads,
            head_dim=s.head_dim,
            frames=frames,
            tokens=frame.tokens,
            context=keys - frames,
        )
        found.append((f"{keys} x {frame.tokens} keys, {size.queries} queries", size))
    return found


def _case(bench: Bench, name: str, size: Size) -> Case:
    return Case(
        slice=SLICE,
        name=name,
        inputs=lambda generator: make(size, generator, bench.dtype),
        truth=truth,
        error=lambda inputs, output, true: relative(output[:, inputs.sample], true),
        contestants=[*_peers(bench.device), *_ours()],
        baselines=BASELINES,
        flops=size.flops,
        sets=bench.sizes.sets,
        seconds=20,
        about={"size": asdict(size)},
    )


def _ours() -> list[Contestant]:
    variants: list[tuple[str, Storage, dict[str, int]]] = [
        ("ours", "float", {}),
        *((f"ours/{splits}", "float", {"splits": splits}) for splits in SPLITS),
        ("ours k8", "int8", {}),
        ("ours k8v8", "int8+fp8", {}),
    ]
    return [
        Contestant(
            name=name,
            prepare=functools.partial(_in_pages, storage=storage, options=options),
            tolerance=TOLERANCES[storage],
            ceiling=ceilings.BF16 if storage == "float" else ceilings.FP8,
            poison=True,
        )
        for name, storage, options in variants
    ]


def _in_pages(inputs: Attention, storage: Storage, options: dict[str, int]) -> Call:
    attend_pages, pages = kernel("attend_pages"), inputs.stored(storage)
    return lambda: attend_pages(inputs.q, inputs.k, inputs.v, pages, inputs.slots, **options)


def _peers(device: torch.device) -> list[Contestant]:
    """Each peer on ready keys and with their gathering; all compute in 16 bit but for sage."""
    found = []
    for name, build in PEERS.items():
        for gathers in (False, True):
            found.append(
                Contestant(
                    name=name + "+g" * gathers,
                    prepare=functools.partial(_against, build, device, gathers),
                    tolerance=TOLERANCES["int8" if name == "sage" else "float"],
                    ceiling=ceilings.FP8 if name == "sage" else ceilings.BF16,
                )
            )
    from_8bit = functools.partial(_against, PEERS["cudnn"], device, True, storage="int8")
    return [
        *found,
        Contestant(
            name="cudnn+g8",
            prepare=from_8bit,
            tolerance=TOLERANCES["int8"],
            ceiling=ceilings.BF16,
        ),
    ]


def _against(
    build: Callable[[torch.device], Attend],
    device: torch.device,
    gathers: bool,
    inputs: Attention,
    storage: Storage = "float",
) -> Call:
    attend, q, i = build(device), inputs.q.transpose(1, 2), inputs
    if not gathers:
        k, v = (x.clone() for x in inputs.ready)  # sage takes the mean off its keys in place
        return lambda: attend(q, k, v).transpose(1, 2)
    turns = i.turns
    if storage == "float":
        gather = compiled(gathered, device)
        return lambda: attend(q, *gather(i.pages.k, i.pages.v, i.order, i.k, i.v, turns)).transpose(
            1, 2
        )
    pages, gather = i.stored(storage), compiled(gathered_8bit, device)
    return lambda: attend(q, *gather(pages, i.order, i.k, i.v, turns)).transpose(1, 2)


def fused(backend: SDPBackend, device: torch.device) -> Attend:
    """PyTorch's attention by one backend and no other."""
    if backend is SDPBackend.CUDNN_ATTENTION and device.type != "cuda":
        raise Refused("needs CUDA")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, scale=SCALE)

    return attend


def _flex(device: torch.device, backend: str | None = None) -> Attend:
    """FlexAttention in Triton, or by a backend: FLASH is that of FlashAttention 4, if it is there.

    PyTorch compiles it for each shape; where it cannot, it says so and does not take another.
    """
    from torch.nn.attention.flex_attention import flex_attention

    _needs_cuda(device)
    options = {} if backend is None else {"kernel_options": {"BACKEND": backend}}
    return functools.partial(compiled(flex_attention, device), scale=SCALE, **options)


def _flash4(device: torch.device) -> Attend:
    """FlashAttention 4, for Hopper and Blackwell: [B, L, N, D] in 16 bit."""
    _needs_cuda(device)
    from flash_attn.cute import flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = flash_attn_func(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale=SCALE
        )
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out.transpose(1, 2)

    return attend


def _sage(device: torch.device) -> Attend:
    """SageAttention 1, quantization of queries and keys included: it takes 16 bit only."""
    _needs_cuda(device)
    from sageattention import sageattn

    return lambda q, k, v: sageattn(q, k, v, sm_scale=SCALE)


def _flashinfer(device: torch.device) -> Attend:
    _needs_cuda(device)
    import flashinfer

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(q) != 1:
            raise Refused("takes one clip at a time")
        out: Tensor = flashinfer.single_prefill_with_kv_cache(
            q[0].transpose(0, 1), k[0], v[0], causal=False, sm_scale=SCALE, kv_layout="HND"
        )
        return out.transpose(0, 1)[None]

    return attend


def _needs_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise Refused("needs CUDA")


PEERS: dict[str, Callable[[torch.device], Attend]] = {
    "cudnn": functools.partial(fused, SDPBackend.CUDNN_ATTENTION),
    "flash": functools.partial(fused, SDPBackend.FLASH_ATTENTION),
    "flash4": _flash4,
    "flex": _flex,
    "flexfa4": functools.partial(_flex, backend="FLASH"),
    "sage": _sage,
    "infer": _flashinfer,
}
