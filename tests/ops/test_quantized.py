"""Quantized weights stand for the numbers that their parts spell out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cfgen.checkpoint.quant.decode import from_blocked, to_blocked
from cfgen.ops.quant.weights import (
    AnyQuantized,
    Fp4Weight,
    ScaledWeight,
    hadamard,
    nbytes,
    parts,
    with_parts,
)
from tests.checkpoint import packing

CPU = torch.device("cpu")
N, K = 6, 16
SMALL = {
    torch.int8: torch.arange(-48, 48, dtype=torch.int8).reshape(N, K),
    torch.float8_e4m3fn: torch.linspace(-448, 448, N * K).reshape(N, K).to(torch.float8_e4m3fn),
    torch.float8_e5m2: torch.linspace(-9, 9, N * K).reshape(N, K).to(torch.float8_e5m2),
}
GRIDS = [(1, 1), (N, 1), (1, K), (1, 4), (N, 4), (2, 1), (2, 4), (3, 8), (N, K)]


def fp4(rows: int = 4, columns: int = 32, seed: int = 0) -> Fp4Weight:
    noise = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (rows, columns // 2), generator=noise, dtype=torch.uint8)
    blocks = torch.rand(rows, columns // 16, generator=noise).to(torch.float8_e4m3fn)
    return Fp4Weight(packed, blocks, torch.tensor([0.25]))


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("grid", GRIDS)
def test_each_block_is_multiplied_by_its_scale(dtype: torch.dtype, grid: tuple[int, int]) -> None:
    scale = torch.rand(grid) + 0.5
    weight = ScaledWeight(SMALL[dtype], scale)
    n, k = N // grid[0], K // grid[1]
    wanted = SMALL[dtype].float() * scale.repeat_interleave(n, 0).repeat_interleave(k, 1)
    assert torch.equal(weight.dequantize(torch.float32), wanted)
    assert torch.equal(weight.dequantize(torch.bfloat16), wanted.to(torch.bfloat16))
    assert weight.shape == (N, K)
    assert weight.format == str(dtype).removeprefix("torch.")
    index = torch.tensor([5, 0, 0, 2, 4, 4, 1])
    rows = weight.rows(index)
    assert torch.equal(rows.dequantize(torch.float32), wanted[index])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e8m0fnu])
def test_scales_may_have_any_float_dtype(dtype: torch.dtype) -> None:
    scale = torch.tensor([[0.5], [2.0], [1.0], [4.0], [8.0], [0.25]]).to(dtype)
    found = ScaledWeight(SMALL[torch.int8], scale).dequantize(torch.float32)
    assert torch.equal(found, SMALL[torch.int8].float() * scale.float())


def test_a_convolution_keeps_its_shape() -> None:
    values = SMALL[torch.int8].reshape(N, 4, 1, 2, 2)
    found = ScaledWeight(values, torch.full((N, 1), 2.0)).dequantize(torch.float32)
    assert torch.equal(found, 2 * values.float())


@pytest.mark.parametrize("size", [4, 16])
def test_a_rotated_weight_is_turned_back(size: int) -> None:
    weight = torch.randn(N, K)
    turned = torch.from_numpy(packing.turned(weight.numpy(), size))
    scale = turned.abs().amax(1, keepdim=True) / 127
    values = (turned / scale).round().to(torch.int8)
    stored = ScaledWeight(values, scale, size)
    step = float(scale.max())
    torch.testing.assert_close(stored.dequantize(torch.float32), weight, rtol=0, atol=4 * step)
    index = torch.tensor([3, 1])
    assert torch.equal(
        stored.rows(index).dequantize(torch.float32), stored.dequantize(torch.float32)[index]
    )


@pytest.mark.parametrize("size", [4, 16, 64, 256])
def test_hadamard_is_its_own_inverse_and_that_of_comfy(size: int) -> None:
    matrix = hadamard(size, CPU)
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size), rtol=0, atol=1e-5)
    assert np.array_equal(matrix.numpy(), packing.hadamard(size))
    assert set((matrix * size**0.5).flatten().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(matrix.sum(1), torch.ones(size))


@pytest.mark.parametrize("size", [2, 8, 32, 100])
def test_hadamard_of_no_power_of_four_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="not a power of 4"):
        hadamard(size, CPU)


def test_four_bit_floats_are_those_of_the_standard() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    packed = (codes << 4 | codes.flip(0))[None].repeat(2, 1)
    weight = Fp4Weight(packed, torch.ones(2, 2).to(torch.float8_e4m3fn), torch.ones(1))
    found = weight.dequantize(torch.float32)[0]
    wanted = torch.from_numpy(packing.from_e2m1(codes.numpy()))
    assert found[::2].tolist() == wanted.tolist()
    assert found[1::2].tolist() == wanted.flip(0).tolist()


def test_four_bit_floats_are_multiplied_by_both_scales() -> None:
    weight = fp4()
    packed = weight.packed.numpy()
    codes = np.stack([packed >> 4, packed & 15], -1).reshape(weight.shape)
    scale = np.repeat(weight.block_scale.float().numpy() * 0.25, 16, 1)
    wanted = packing.from_e2m1(codes) * scale
    assert np.array_equal(weight.dequantize(torch.float32).numpy(), wanted)
    index = torch.tensor([2, 2, 0])
    rows = weight.rows(index).dequantize(torch.float32).numpy()
    assert np.array_equal(rows, wanted[index.numpy()])
    assert (weight.shape, weight.format) == ((4, 32), "nvfp4")


WEIGHTS: list[AnyQuantized] = [ScaledWeight(SMALL[torch.int8], torch.ones(N, 1), 4), fp4()]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_parts_are_all_there_is(weight: AnyQuantized) -> None:
    held = parts(weight)
    assert nbytes(weight) == sum(part.nbytes for part in held.values())
    copied = with_parts(weight, {name: part.clone() for name, part in held.items()})
    assert torch.equal(copied.dequantize(torch.float32), weight.dequantize(torch.float32))
    moved = with_parts(weight, {name: part.to("meta") for name, part in held.items()})
    assert moved.shape == weight.shape
    assert moved.format == weight.format


def blocks(rows: int, columns: int) -> Tensor:
    return torch.arange(rows * columns).reshape(rows, columns).to(torch.uint8)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(rows=st.integers(1, 300), columns=st.integers(1, 20))
def test_order_of_tensor_cores_is_undone(rows: int, columns: int) -> None:
    scales = blocks(rows, columns)
    turned = to_blocked(scales)
    assert turned.shape == (-(-rows // 128) * 128, -(-columns // 4) * 4)
    assert torch.equal(from_blocked(turned, rows, columns), scales)
    assert np.array_equal(turned.numpy(), packing.to_blocked(scales.numpy()))


def test_order_of_tensor_cores_has_four_rows_of_32_side_by_side() -> None:
    scales = torch.arange(128 * 4, dtype=torch.int16).reshape(128, 4)
    flat = to_blocked(scales).flatten()
    assert flat[:4].tolist() == scales[0].tolist()
    assert flat[4:8].tolist() == scales[32].tolist()
    assert flat[16:20].tolist() == scales[1].tolist()


def test_order_of_tensor_cores_comes_back_from_any_shape_of_the_same_size() -> None:
    scales = blocks(130, 5)
    for shape in ((-1,), (16, -1), (256, 8)):
        assert torch.equal(from_blocked(to_blocked(scales).reshape(shape), 130, 5), scales)
