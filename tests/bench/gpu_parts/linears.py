"""Slice k3: the linear layers of a block, in bf16 and in 8 bit, with and without quantization.

`fp8` and `int8` find their activations in 8 bit; `+q` quantizes them row by row before, in one
compiled function. The products of int8 are turned back into bf16 by another.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from gpu_parts import ceilings
from gpu_parts.case import Bench, Case, Contestant, relative
from gpu_parts.ceilings import scaled_product
from gpu_parts.kernels import compiled
from gpu_parts.sizes import Sizes
from gpu_parts.timing import Call

SLICE = "k3"
BASELINES = ("bf16",)
TOLERANCES = {"bf16": 4e-3, "int8": 2e-2, "fp8": 5e-2}
FP8 = torch.float8_e4m3fn
LARGEST = {torch.int8: 127.0, FP8: 448.0}
SAMPLE = 256
"""Rows that are compared with float64."""


@dataclass(frozen=True)
class Inputs:
    """Activations [M, K], weight [N, K] and bias [N]."""

    x: Tensor
    weight: Tensor
    bias: Tensor


def shapes(s: Sizes) -> dict[str, tuple[int, int]]:
    """(out, in) by name; `kv` is what a commit pass needs of the last layer."""
    return {
        "qkv": (3 * s.width, s.width),
        "kv": (2 * s.width, s.width),
        "out": (s.width, s.width),
        "up": (s.ffn, s.width),
        "down": (s.width, s.ffn),
    }


def cases(bench: Bench) -> list[Case]:
    """Every shape for one chunk and for two."""
    s = bench.sizes
    return [
        _case(bench, name, frames * s.frame.tokens, n, k)
        for frames in (s.chunk, 2 * s.chunk)
        for name, (n, k) in shapes(s).items()
    ]


def _case(bench: Bench, name: str, m: int, n: int, k: int) -> Case:
    s, device = bench.sizes, bench.device
    nbytes = 2 * (m * k + n * k + m * n)

    def inputs(generator: torch.Generator) -> Inputs:
        random = functools.partial(torch.randn, generator=generator, device=device)
        weight = random(n, k) / math.sqrt(k)
        return Inputs(*(x.to(bench.dtype) for x in (random(m, k), weight, random(n))))

    return Case(
        slice=SLICE,
        name=f"{name} {m} x {k} -> {n}",
        inputs=inputs,
        truth=lambda i: linear(*(x.double() for x in (i.x[:SAMPLE], i.weight, i.bias))),
        error=lambda _, output, true: relative(output[:SAMPLE], true),
        contestants=_contestants(device),
        baselines=BASELINES,
        flops=2.0 * m * n * k,
        sets=max(s.sets, min(12, math.ceil(s.cache / nbytes))),
        seconds=8,
        about={"rows": m, "out": n, "in": k},
    )


def _contestants(device: torch.device) -> list[Contestant]:
    found = [
        Contestant(name="bf16", prepare=_bf16, tolerance=TOLERANCES["bf16"], ceiling=ceilings.BF16)
    ]
    for name, prepare in (("fp8", _fp8), ("int8", _int8)):
        for quantizes in (False, True):
            found.append(
                Contestant(
                    name=name + "+q" * quantizes,
                    prepare=functools.partial(prepare, device, quantizes),
                    tolerance=TOLERANCES[name],
                    ceiling=ceilings.FP8,
                )
            )
    return found


def _bf16(i: Inputs) -> Call:
    return lambda: linear(i.x, i.weight, i.bias)


def rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A matrix in 8 bit and its scale of every row, [M, 1] float32."""
    scale = x.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / LARGEST[dtype]
    steps = x.float() / scale
    return (steps.round() if dtype == torch.int8 else steps).to(dtype), scale


def unscaled(product: Tensor, row: Tensor, column: Tensor, bias: Tensor) -> Tensor:
    """The sums of a product of int8 matrices as the numbers they stand for."""
    return (product.float() * row * column.t() + bias.float()).to(bias.dtype)


def _fp8(device: torch.device, quantizes: bool, i: Inputs) -> Call:
    (weight, column), ready = rows(i.weight, FP8), rows(i.x, FP8)
    multiply, quantize = scaled_product(), compiled(rows, device)
    bias = i.bias.to(torch.bfloat16)

    def call() -> Tensor:
        x, row = quantize(i.x, FP8) if quantizes else ready
        return multiply(
            *(x, weight.t()),
            scale_a=row,
            scale_b=column.t(),
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    return call


def _int8(device: torch.device, quantizes: bool, i: Inputs) -> Call:
    (weight, column), ready = rows(i.weight, torch.int8), rows(i.x, torch.int8)
    finish, quantize = compiled(unscaled, device), compiled(rows, device)

    def call() -> Tensor:
        x, row = quantize(i.x, torch.int8) if quantizes else ready
        out: Tensor = finish(torch._int_mm(x, weight.t()), row, column, i.bias)
        return out

    return call
