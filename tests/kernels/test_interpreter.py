"""The interpreter that tests kernels without a GPU is itself right."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

NARROW = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@triton.jit
def multiply(a, b, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision="ieee"))


@triton.jit
def cast(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


@triton.jit
def arithmetic(x, y, out, less, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at) * tl.load(y + at) - tl.load(y + at))
    tl.store(less + at, (tl.load(x + at) < tl.load(y + at)).to(tl.int32))


@triton.jit
def largest(x, out, SIZE: tl.constexpr):
    tl.store(out, tl.max(tl.load(x + tl.arange(0, SIZE)) + tl.zeros((SIZE,), tl.float32), 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_of_matrices_are_right(dtype: torch.dtype, device: torch.device) -> None:
    a, b = torch.randn(2, 32, 32, device=device).to(dtype)
    out = torch.full((32, 32), torch.nan, device=device)
    multiply[(1,)](a, b, out, SIZE=32)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


def test_products_of_integers_are_exact(device: torch.device) -> None:
    a, b = torch.randint(-127, 128, (2, 32, 32), device=device, dtype=torch.int8)
    out = torch.zeros(32, 32, dtype=torch.int32, device=device)
    multiply[(1,)](a, b, out, SIZE=32)
    assert torch.equal(out.cpu(), a.cpu().int() @ b.cpu().int())


@pytest.mark.parametrize("dtype", NARROW)
def test_float32_is_rounded_to_the_nearest(dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cuda" and dtype.itemsize == 1:
        pytest.skip("old GPUs have no fp8")
    x = torch.randn(1024, device=device) * torch.logspace(-6, 2, 1024, device=device)
    x = x.clamp(-448, 448)
    out = torch.empty(1024, dtype=dtype, device=device)
    cast[(1,)](x, out, SIZE=1024)
    assert torch.equal(out.float(), x.to(dtype).float())
    assert not torch.equal(out.float(), x)


@pytest.mark.parametrize("source", NARROW)
@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_numbers_are_widened_exactly(
    source: torch.dtype, target: torch.dtype, device: torch.device
) -> None:
    if device.type == "cuda" and source.itemsize == 1:
        pytest.skip("old GPUs have no fp8")
    x = torch.randn(1024, device=device).to(source)
    out = torch.empty(1024, dtype=target, device=device)
    cast[(1,)](x, out, SIZE=1024)
    assert torch.equal(out, x.to(target))


def test_arithmetic_of_bfloat16_is_not_that_of_its_bits(device: torch.device) -> None:
    x, y = torch.randn(2, 64, device=device).bfloat16()
    out, less = torch.empty_like(x), torch.zeros(64, dtype=torch.int32, device=device)
    arithmetic[(1,)](x, y, out, less, SIZE=64)
    torch.testing.assert_close(out, x * y - y, rtol=2e-2, atol=2e-2)
    assert torch.equal(less.bool(), x < y)


def test_functions_of_triton_itself_are_interpreted(device: torch.device) -> None:
    x, out = torch.randn(64, device=device), torch.zeros(1, device=device)
    largest[(1,)](x, out, SIZE=64)
    assert out.item() == x.max().item()


def test_nothing_is_interpreted_outside_of_these_tests() -> None:
    code = (
        "import torch; from cfgen.kernels.device import unsupported_device\n"
        "assert 'CUDA' in unsupported_device(torch.device('cpu'))"
    )
    environment = {"PATH": ""}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
