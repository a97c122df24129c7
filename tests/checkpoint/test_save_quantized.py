"""Weights that training saves in int8 come back closely, in ComfyUI's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from cfgen.checkpoint.convert.quantize import save_quantized
from cfgen.checkpoint.formats.safetensors import open_safetensors
from tests.checkpoint.small import load_state


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    exponent=st.integers(-30, 30),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_saved_weights_come_back_within_half_a_step(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    exponent: int,
    seed: int,
    dtype: torch.dtype,
) -> None:
    noise = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=noise) * 2.0**exponent).to(dtype)
    weight[0] = 0
    path = tmp_path_factory.getbasetemp() / "saved.safetensors"
    save_quantized({"m.weight": weight, "m.bias": weight[:, 0]}, path, lambda _n, t: t.ndim == 2)
    assert (load_file(path)["m.weight_scale"] > 0).all()
    state = load_state(path)
    step = weight.float().abs().amax(1, keepdim=True) / 127
    assert ((state["m.weight"] - weight.float()).abs() <= 0.5001 * step).all()
    assert torch.equal(state["m.bias"], weight[:, 0])


def test_saved_file_is_in_comfys_layout(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = {
        "a.b.weight": torch.randn(4, 3, requires_grad=True),
        "a.b.bias": torch.zeros(4),
        "c.weight": torch.ones(2, 2),
    }
    save_quantized(state, path, lambda name, _: name == "a.b.weight", {"title": "tiny"})
    tensors = load_file(path)
    told = tensors.pop("a.b.comfy_quant")
    assert json.loads(bytes(told.tolist())) == {"format": "int8_tensorwise"}
    assert {n: (t.dtype, list(t.shape)) for n, t in tensors.items()} == {
        "a.b.weight": (torch.int8, [4, 3]),
        "a.b.weight_scale": (torch.float32, [4, 1]),
        "a.b.bias": (torch.float32, [4]),
        "c.weight": (torch.float32, [2, 2]),
    }
    assert open_safetensors(path).metadata["title"] == "tiny"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("m.bias", torch.ones(2, 2)),
        ("weight", torch.ones(2, 2)),
        ("m.weight", torch.ones(2)),
        ("m.weight", torch.ones(2, 2, dtype=torch.int32)),
        ("m.weight", torch.tensor([[1.0, torch.nan]])),
    ],
)
def test_what_cannot_be_saved_in_int8_is_refused(name: str, tensor: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be stored as int8|not finite"):
        save_quantized({name: tensor}, tmp_path / "weights.safetensors", lambda _n, _t: True)
    assert not list(tmp_path.iterdir())
