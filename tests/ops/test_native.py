"""Products with the stored numbers themselves: close to the dequantized ones, refused elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.errors import BackendUnavailable
from cfgen.model.quantized import QuantizedLinear
from cfgen.ops.quant.int8_matmul import _fp8, linear, unsupported
from cfgen.ops.quant.weights import GgmlWeight, ScaledWeight, hadamard
from tests.checkpoint import tiny

CPU = torch.device("cpu")


def int8(weight: Tensor, *, rows: bool = True, rotation: int = 0) -> ScaledWeight:
    if rotation:
        turn = hadamard(rotation, CPU)
        weight = (weight.unflatten(1, (-1, rotation)) @ turn.T).flatten(1)
    scale = weight.abs().amax(1, keepdim=True) if rows else weight.abs().amax().reshape(1, 1)
    scale = scale / 127
    return ScaledWeight((weight / scale).round().to(torch.int8), scale, rotation)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("tokens", [1, 5, 63])
@pytest.mark.parametrize("kind", ["rows", "whole", "rotated"])
def test_int8_product_is_that_of_the_dequantized_weight_but_for_rounded_inputs(
    kind: str, tokens: int
) -> None:
    noise = torch.Generator().manual_seed(0)
    weight = int8(
        torch.randn(24, 512, generator=noise),
        rows=kind != "whole",
        rotation=256 if kind == "rotated" else 0,
    )
    x = torch.randn(2, tokens, 512, generator=noise)
    found = linear(x, weight)
    assert found.shape == (2, tokens, 24)
    assert 1e-4 < relative(found, x @ weight.dequantize(torch.float32).T) < 0.01


def test_each_token_has_a_scale_of_its_own() -> None:
    noise = torch.Generator().manual_seed(1)
    weight = int8(torch.randn(16, 64, generator=noise))
    x = torch.randn(8, 64, generator=noise)
    x[0] *= 1000
    found, wanted = linear(x, weight), x @ weight.dequantize(torch.float32).T
    for row in range(8):
        assert relative(found[row], wanted[row]) < 0.02


def test_inputs_of_zero_give_zero() -> None:
    weight = int8(torch.randn(8, 64, generator=torch.Generator().manual_seed(2)))
    assert linear(torch.zeros(3, 64), weight).eq(0).all()


def test_fp8_product_is_close() -> None:
    noise = torch.Generator().manual_seed(3)
    weight = torch.randn(32, 64, generator=noise)
    scale = (weight.abs().amax() / 448).reshape(1, 1)
    stored = ScaledWeight((weight / scale).to(torch.float8_e4m3fn), scale)
    x = torch.randn(5, 64, generator=noise)
    assert relative(_fp8(x, stored), x @ stored.dequantize(torch.float32).T) < 0.04


REASONS = {
    "GGML block": (GgmlWeight(torch.zeros(8, 34, dtype=torch.uint8), "Q8_0"), "Q8_0 has no"),
    "blocks": (
        ScaledWeight(torch.zeros(8, 64, dtype=torch.int8), torch.ones(8, 2)),
        "one for the weight or one for each row",
    ),
    "odd sides": (
        ScaledWeight(torch.zeros(7, 64, dtype=torch.int8), torch.ones(1, 1)),
        "multiples of 8",
    ),
    "e5m2": (
        ScaledWeight(torch.zeros(8, 64).to(torch.float8_e5m2), torch.ones(1, 1)),
        "float8_e5m2 has no",
    ),
    "fp8 on a CPU": (
        ScaledWeight(torch.zeros(16, 64).to(torch.float8_e4m3fn), torch.ones(1, 1)),
        "need a GPU",
    ),
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_cannot_be_multiplied_says_why(kind: str) -> None:
    weight, reason = REASONS[kind]
    assert reason in (unsupported(weight, CPU) or "")


def test_a_generator_goes_native_where_it_can(tmp_path: Path) -> None:
    file = tiny.write("comfyquant_int8", tmp_path).path
    layers = [
        m for m in load_generator(file, native=True).modules() if isinstance(m, QuantizedLinear)
    ]
    assert layers
    assert all(layer.native for layer in layers)
    kept = [m for m in load_generator(file).modules() if isinstance(m, QuantizedLinear)]
    x = torch.randn(4, kept[0].weight.shape[1], generator=torch.Generator().manual_seed(4))
    assert 1e-4 < relative(layers[0](x), kept[0](x)) < 0.02


@pytest.mark.parametrize("name", ["native_bf16", "gguf_Q4_K"])
def test_a_file_with_nothing_to_multiply_is_refused(name: str, tmp_path: Path) -> None:
    file = tiny.write(name, tmp_path).path
    with pytest.raises(BackendUnavailable, match="cannot be computed with as it is stored"):
        load_generator(file, native=True)


def test_expanded_weights_say_why_they_cannot_be_native(tmp_path: Path) -> None:
    file = tiny.write("comfyquant_int8", tmp_path).path
    with pytest.raises(BackendUnavailable, match="expanded when they are loaded") as caught:
        load_generator(file, native=True, expand=True)
    assert "model.quantized=keep" in str(caught.value.hint)
