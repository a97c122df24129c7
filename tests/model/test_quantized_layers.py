"""Layers over quantized weights compute what plain layers over the same numbers do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgen.model.quantized import QuantizedEmbedding, QuantizedLinear
from cfgen.ops.quant.weights import AnyQuantized, Fp4Weight, GgmlWeight, ScaledWeight, nbytes, parts
from tests.checkpoint.tiny import Kind, random_blocks

N, K = 48, 256
DTYPES = [torch.float32, torch.bfloat16]


def int8(rotation: int = 0, grid: tuple[int, int] = (N, 1)) -> ScaledWeight:
    noise = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (N, K), generator=noise, dtype=torch.int8)
    return ScaledWeight(values, 0.01 * torch.rand(grid, generator=noise) + 0.001, rotation)


def fp8() -> ScaledWeight:
    return ScaledWeight(torch.randn(N, K).to(torch.float8_e4m3fn), torch.tensor([[0.05]]))


def mxfp8() -> ScaledWeight:
    scale = (torch.randint(-6, 0, (N, K // 32)).float().exp2()).to(torch.float8_e8m0fnu)
    return ScaledWeight(torch.randn(N, K).to(torch.float8_e4m3fn), scale)


def nvfp4() -> Fp4Weight:
    packed = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8)
    blocks = torch.rand(N, K // 16).to(torch.float8_e4m3fn)
    return Fp4Weight(packed, blocks, torch.tensor([0.02]))


def q4_k() -> GgmlWeight:
    return GgmlWeight(torch.from_numpy(random_blocks(N, K, Kind.Q4_K)), "Q4_K")


WEIGHTS: dict[str, Callable[[], AnyQuantized]] = {
    "int8": int8,
    "int8 rotated": lambda: int8(64),
    "int8 in blocks": lambda: int8(grid=(N // 16, K // 64)),
    "fp8": fp8,
    "mxfp8": mxfp8,
    "nvfp4": nvfp4,
    "Q4_K": q4_k,
}


@pytest.fixture(params=WEIGHTS)
def weight(request: pytest.FixtureRequest) -> AnyQuantized:
    torch.manual_seed(1)
    return WEIGHTS[request.param]()


def plain(weight: AnyQuantized, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(K, N, bias=bias is not None, dtype=dtype)
    layer.weight = nn.Parameter(weight.dequantize(dtype))
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
def test_linear_layer_equals_a_plain_one(
    weight: AnyQuantized, dtype: torch.dtype, biased: bool
) -> None:
    bias = torch.randn(N).to(dtype) if biased else None
    layer = QuantizedLinear(weight, bias, dtype)
    x = torch.randn(2, 5, K).to(dtype)
    found = layer(x)
    assert found.dtype == dtype
    assert torch.equal(found, plain(weight, bias, dtype)(x))


def test_inputs_are_taken_to_the_dtype_of_the_layer(weight: AnyQuantized) -> None:
    layer = QuantizedLinear(weight, None, torch.bfloat16)
    x = torch.randn(3, K)
    assert torch.equal(layer(x), layer(x.to(torch.bfloat16)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_adapters_are_added_without_touching_the_weight(
    weight: AnyQuantized, dtype: torch.dtype
) -> None:
    layer = QuantizedLinear(weight, torch.zeros(N, dtype=dtype), dtype)
    before = {name: part.clone() for name, part in parts(layer.weight).items()}
    x = torch.randn(4, K).to(dtype)
    wanted = layer(x)
    for rank in (3, 8):
        down, up = torch.randn(rank, K) / 16, torch.randn(N, rank)
        layer.add_adapter(down, up)
        wanted = wanted + F.linear(F.linear(x, down.to(dtype)), up.to(dtype))
    assert layer.adapters == 2
    torch.testing.assert_close(layer(x), wanted)
    for name, part in parts(layer.weight).items():
        assert torch.equal(part.view(torch.uint8), before[name].view(torch.uint8))


def test_adapters_equal_a_merged_weight(weight: AnyQuantized) -> None:
    down, up = torch.randn(4, K, dtype=torch.float64) / 16, torch.randn(N, 4, dtype=torch.float64)
    layer = QuantizedLinear(weight, None, torch.float64)
    layer.add_adapter(down, up)
    x = torch.randn(4, K, dtype=torch.float64)
    merged = F.linear(x, weight.dequantize(torch.float64) + up @ down)
    torch.testing.assert_close(layer(x), merged)


@pytest.mark.parametrize("dtype", DTYPES)
def test_table_gives_the_rows_of_a_plain_one(weight: AnyQuantized, dtype: torch.dtype) -> None:
    table = QuantizedEmbedding(weight, dtype)
    index = torch.tensor([[0, N - 1, 5], [7, 7, 3]])
    found = table(index)
    assert found.dtype == dtype
    assert torch.equal(found, F.embedding(index, weight.dequantize(dtype)))
    assert (table.num_embeddings, table.embedding_dim) == (N, K)


def test_layers_hold_what_the_file_holds_and_nothing_else(weight: AnyQuantized) -> None:
    for layer in (
        QuantizedLinear(weight, None, torch.float32),
        QuantizedEmbedding(weight, DTYPES[0]),
    ):
        assert not list(layer.parameters())
        assert sum(buffer.nbytes for buffer in layer.buffers()) == nbytes(weight) < N * K * 1.3
        layer(
            torch.zeros(1, K).long() if isinstance(layer, QuantizedEmbedding) else torch.zeros(1, K)
        )
        assert sum(buffer.nbytes for buffer in layer.buffers()) == nbytes(weight)


def test_layers_move_between_devices_and_copies_are_their_own(weight: AnyQuantized) -> None:
    layer = QuantizedLinear(weight, torch.ones(N), torch.float32)
    layer.add_adapter(torch.ones(2, K), torch.ones(N, 2))
    x = torch.randn(3, K)
    wanted = layer(x)
    hollow = copy.deepcopy(layer).to("meta")
    assert all(buffer.is_meta for buffer in hollow.buffers())
    assert all(part.is_meta for part in parts(hollow.weight).values())
    assert hollow.weight.shape == weight.shape
    assert hollow(x.to("meta")).shape == wanted.shape
    hollow.to_empty(device="cpu").load_state_dict(layer.state_dict())
    assert torch.equal(hollow(x), wanted)
    hollow.get_buffer("bias").zero_()
    assert torch.equal(layer(x), wanted)


def test_layers_say_what_they_hold(weight: AnyQuantized) -> None:
    shown = repr(QuantizedLinear(weight, None, torch.bfloat16))
    assert weight.format in shown
    assert f"[{N}, {K}] as torch.bfloat16" in shown


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_compute_the_same_on_the_gpu(weight: AnyQuantized, dtype: torch.dtype) -> None:
    layer = QuantizedLinear(weight, torch.ones(N, dtype=dtype), dtype)
    x = torch.randn(3, K).to(dtype)
    dequantized = layer.weight.dequantize(torch.float32)
    wanted = layer(x)
    layer = layer.to("cuda")
    torch.testing.assert_close(
        layer.weight.dequantize(torch.float32).cpu(), dequantized, rtol=1e-6, atol=1e-7
    )
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(layer(x.cuda()).cpu(), wanted, rtol=tolerance, atol=tolerance)
