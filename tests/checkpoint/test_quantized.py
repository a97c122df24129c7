"""Quantized layers are decoded exactly, whichever way their scales are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.checkpoint.conftest import marker
from tests.checkpoint.small import COLUMN, FORMAT, FP8, WEIGHT, layer, load_state, parts, saved

SCALES = {
    "scalar": torch.tensor(0.5),
    "one": torch.tensor([0.5]),
    "one row": torch.tensor([[0.5]]),
    "rows": torch.tensor([0.5, 2.0]),
    "column": COLUMN,
    "bfloat16": torch.tensor([[0.5], [2.0]], dtype=torch.bfloat16),
    "float16": torch.tensor([0.5, 2.0], dtype=torch.float16),
    "float64": torch.tensor(0.5, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", SCALES)
def test_weight_is_multiplied_by_its_scale(kind: str, tmp_path: Path) -> None:
    scale = SCALES[kind].float()
    state = load_state(saved(parts(SCALES[kind]), tmp_path))
    assert set(state) == {"m.weight", "m.bias"}
    assert torch.equal(state["m.weight"], WEIGHT.float() * scale.reshape(-1, 1))
    assert state["m.bias"].dtype == torch.bfloat16


BARE = {
    "LightX2V": layer(weight=FP8, weight_scale=COLUMN),
    "fp8_scaled": layer(weight=FP8, scale_weight=COLUMN),
    "quanto": layer(weight___data=FP8, weight___scale=COLUMN),
    "int8": layer(weight=WEIGHT, weight_scale=COLUMN),
}


@pytest.mark.parametrize("kind", BARE)
def test_layers_without_a_declaration_are_told_by_their_scales(kind: str, tmp_path: Path) -> None:
    values = WEIGHT.float() if kind == "int8" else FP8.float()
    state = load_state(saved(BARE[kind], tmp_path))
    assert torch.equal(state["m.weight"], values * COLUMN)


def test_one_scale_for_each_block_is_spread_over_it(tmp_path: Path) -> None:
    weight = torch.arange(24, dtype=torch.int8).reshape(4, 6)
    scale = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    state = load_state(saved(layer(weight=weight, weight_scale=scale), tmp_path))
    spread = scale.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(state["m.weight"], weight.float() * spread)


def test_a_convolution_may_have_scales_of_rows(tmp_path: Path) -> None:
    weight = torch.arange(24, dtype=torch.int8).reshape(2, 3, 1, 2, 2)
    path = saved(layer(weight=weight, weight_scale=COLUMN), tmp_path)
    assert torch.equal(load_state(path)["m.weight"][1], weight[1].float() * 2)


def test_decoded_weight_has_the_asked_for_dtype(tmp_path: Path) -> None:
    path = saved(parts(), tmp_path)
    for dtype in (torch.float64, torch.bfloat16):
        assert load_state(path, dtype=dtype)["m.weight"].dtype == dtype


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_header_may_declare_layers(prefix: str, tmp_path: Path) -> None:
    tensors = {prefix + name: t for name, t in parts(comfy_quant=None).items()}
    layers = json.dumps({"format_version": "1.0", "layers": {f"{prefix}m": FORMAT}})
    state = load_state(saved(tensors, tmp_path, {"_quantization_metadata": layers}))
    assert torch.equal(state[f"{prefix}m.weight"], WEIGHT.float() * COLUMN)


def test_header_and_marker_may_say_the_same(tmp_path: Path) -> None:
    layers = json.dumps({"layers": {"m": {"params": FORMAT}}})
    path = saved(parts(), tmp_path, {"_quantization_metadata": layers})
    assert "m.weight" in load_state(path)


def test_settings_may_be_nested_and_may_be_harmless(tmp_path: Path) -> None:
    quant = marker(params={**FORMAT, "convrot": False}, full_precision_matrix_mult=True)
    assert "m.weight" in load_state(saved(parts(comfy_quant=quant), tmp_path))
