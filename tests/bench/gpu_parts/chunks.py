"""Slice s1: a whole chunk of the generator, four denoising passes and the commit pass.

`plain` is the published way, `strong` what stock PyTorch can do, `ours` cfgen with pages in the
compute dtype, `k8` with int8 keys, `k8v8` with fp8 values besides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gpu_parts import ceilings, dit
from gpu_parts.case import Bench, Case, Contestant, relative
from gpu_parts.dit import Scene
from gpu_parts.dit_plain import PlainChunk, truth
from gpu_parts.dit_strong import StrongChunk
from gpu_parts.ours import ours
from gpu_parts.store import Record
from gpu_parts.timing import Call

SLICE = "s1"
BASELINES = ("strong", "plain")
TOLERANCES = {"bf16": 1e-2, "int8": 5e-2, "fp8": 5e-2}
LIKE = {"bf16": ("plain", 1.25)}
"""Errors grow with depth, so ours may also be as far off as the published way, and a quarter."""
STORAGES = {"ours": "bf16", "k8": "int8", "k8v8": "fp8"}

Maker = Callable[[Scene], Callable[[], Tensor]]


def cases(bench: Bench) -> list[Case]:
    """One case a length of memory."""
    return [_case(bench, memory) for memory in bench.sizes.memories]


def _case(bench: Bench, memory: int) -> Case:
    s = bench.sizes
    makers = ways(bench)
    return Case(
        slice=SLICE,
        name=f"{memory} latent frames",
        inputs=lambda generator: dit.make(s, memory, generator, bench.dtype),
        truth=truth,
        error=lambda _, output, true: relative(output, true),
        contestants=[
            Contestant(
                name=name,
                prepare=make,
                tolerance=TOLERANCES.get(STORAGES.get(name, "")),
                like=LIKE.get(STORAGES.get(name, "")),
                ceiling=ceilings.BF16 if name != "k8v8" else ceilings.FP8,
                graph=name == "strong",
                after=functools.partial(kernel_times, bench),
            )
            for name, make in makers.items()
        ],
        baselines=BASELINES,
        flops=dit.flops(s, memory),
        sets=1,
        seconds=150,
        about={"memory": memory, "frames": 4 * s.chunk},
    )


def ways(bench: Bench) -> dict[str, Maker]:
    """The contestants by name."""
    cuda = bench.device.type == "cuda"
    best = SDPBackend.CUDNN_ATTENTION if cuda else SDPBackend.FLASH_ATTENTION
    found: dict[str, Maker] = {
        "plain": lambda scene: PlainChunk(
            scene, bench.dtype, _attention(SDPBackend.FLASH_ATTENTION), reads=True
        ),
        "strong": lambda scene: StrongChunk(scene, _attention(best)),
    }
    for name, storage in STORAGES.items():
        found[name] = functools.partial(
            ours, dtype=bench.dtype, storage=storage, backend="triton", graph=cuda
        )
    return found


def _attention(backend: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v)

    return attend


KINDS = {
    "attention": ("attend", "attention", "sdpa", "flash", "fmha"),
    "products": ("gemm", "nvjet", "xmma", "cutlass", "cublas"),
}
"""Words in the names of kernels that tell what they do; the rest is called other."""


def kernel_times(bench: Bench, call: Call) -> Record:
    """Milliseconds of a chunk by kind of kernel, from a profile of one."""
    if bench.device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return {"kernels_ms": by_kind([(each.key, _us(each)) for each in seen.key_averages()])}


def _us(event: Any) -> float:
    found: float = event.self_device_time_total
    return found


def by_kind(times: list[tuple[str, float]]) -> dict[str, float]:
    """Milliseconds by kind, of names and microseconds of kernels."""
    found = dict.fromkeys((*KINDS, "other"), 0.0)
    for name, microseconds in times:
        low = name.lower()
        fitting = [kind for kind, words in KINDS.items() if any(word in low for word in words)]
        found[(*fitting, "other")[0]] += microseconds / 1000
    return found
