"""What the card does at best, measured in every run: a large copy and large matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpu_parts.case import Bench, Case, Contestant, Refused
from gpu_parts.sizes import Sizes
from gpu_parts.timing import Call

COPY, BF16, FP8 = "copy", "bf16", "fp8"
"""The ceilings; fp8's also bounds int8."""

SLICE = "ceilings"


def measure(bench: Bench) -> None:
    """Measure the ceilings of this process; every rate after it is also told as a share."""
    for case in cases(bench.sizes, bench.device, bench.store.run()["number"]):
        for entry in bench.measure(case, code="")["contestants"]:
            if "tera_per_s" in entry:
                bench.ceilings[entry["name"]] = entry["tera_per_s"]
    bench.store.run()["ceilings"] = dict(bench.ceilings)
    bench.store.save()


def cases(sizes: Sizes, device: torch.device, run: int) -> list[Case]:
    """One case for bytes and one for products; `run` keeps those of all runs apart."""
    side = sizes.square
    return [
        Case(
            slice=SLICE,
            name=f"copy, run {run}",
            inputs=lambda generator: _bytes(sizes.copied // 2, generator, device),
            contestants=[Contestant(name=COPY, prepare=_copy, tolerance=None)],
            nbytes=sizes.copied,
            sets=1,
        ),
        Case(
            slice=SLICE,
            name=f"product {side}, run {run}",
            inputs=lambda generator: tuple(
                torch.randn(side, side, generator=generator, device=device, dtype=torch.bfloat16)
                for _ in range(2)
            ),
            contestants=[
                Contestant(name=BF16, prepare=_product, tolerance=None),
                Contestant(name=FP8, prepare=_fp8_product, tolerance=None),
            ],
            flops=2 * side**3,
        ),
    ]


def _bytes(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(
        -(2**31), 2**31 - 1, (count // 4,), generator=generator, device=device, dtype=torch.int32
    )


def _copy(source: Tensor) -> Call:
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(factors: tuple[Tensor, Tensor]) -> Call:
    a, b = factors
    return lambda: a @ b


def _fp8_product(factors: tuple[Tensor, Tensor]) -> Call:
    a, b = (_fp8(each) for each in factors)
    one = torch.ones((), device=a.device)
    scaled = scaled_product()
    return lambda: scaled(
        a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _fp8(x: Tensor) -> Tensor:
    """Random numbers that fill the range of fp8, as scaled weights do."""
    return (x * 64).clamp(-448, 448).to(torch.float8_e4m3fn)


def scaled_product() -> Callable[..., Tensor]:
    """PyTorch's product of scaled fp8 matrices, which has a private name."""
    found: Callable[..., Tensor] | None = getattr(torch, "_scaled_mm", None)
    if found is None:
        raise Refused("this PyTorch has no _scaled_mm")
    return found
