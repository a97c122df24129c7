"""Quantized layers: decoded exactly, encoded closely, refused where anything is odd."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from cfgen.checkpoint import container
from cfgen.checkpoint.load import load_state
from cfgen.checkpoint.quantized import save_quantized
from cfgen.errors import CheckpointError
from tests.checkpoint.conftest import marker

WEIGHT = torch.tensor([[1, -2, 127], [0, 5, -127]], dtype=torch.int8)
FORMAT = {"format": "int8_tensorwise"}
SCALES = {
    "scalar": torch.tensor(0.5),
    "one": torch.tensor([0.5]),
    "one row": torch.tensor([[0.5]]),
    "rows": torch.tensor([0.5, 2.0]),
    "column": torch.tensor([[0.5], [2.0]]),
    "bfloat16": torch.tensor([[0.5], [2.0]], dtype=torch.bfloat16),
}


def parts(scale: Tensor = SCALES["column"], **changes: Tensor | None) -> dict[str, Tensor]:
    """The tensors of a layer `m` and a plain one; a change to None takes a tensor away."""
    layer = {"weight": WEIGHT, "weight_scale": scale, "comfy_quant": marker(**FORMAT)} | changes
    tensors = {f"m.{part}": tensor for part, tensor in layer.items() if tensor is not None}
    return tensors | {"m.bias": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)}


def saved(tensors: dict[str, Tensor], folder: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, folder / "weights.safetensors", metadata)
    return folder / "weights.safetensors"


@pytest.mark.parametrize("kind", SCALES)
def test_weight_is_multiplied_by_its_scale(kind: str, tmp_path: Path) -> None:
    scale = SCALES[kind].float()
    state = load_state(saved(parts(SCALES[kind]), tmp_path))
    assert set(state) == {"m.weight", "m.bias"}
    assert torch.equal(state["m.weight"], WEIGHT.float() * scale.reshape(-1, 1))
    assert state["m.bias"].dtype == torch.bfloat16


def test_decoded_weight_has_the_asked_for_dtype(tmp_path: Path) -> None:
    path = saved(parts(), tmp_path)
    for dtype in (torch.float64, torch.bfloat16):
        assert load_state(path, dtype=dtype)["m.weight"].dtype == dtype


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_header_may_declare_layers(prefix: str, tmp_path: Path) -> None:
    tensors = {prefix + name: t for name, t in parts(comfy_quant=None).items()}
    layers = json.dumps({"format_version": "1.0", "layers": {f"{prefix}m": FORMAT}})
    state = load_state(saved(tensors, tmp_path, {"_quantization_metadata": layers}))
    assert torch.equal(state["m.weight"], WEIGHT.float() * SCALES["column"])


def test_settings_may_be_nested_and_may_be_harmless(tmp_path: Path) -> None:
    quant = marker(params={**FORMAT, "convrot": False}, full_precision_matrix_mult=True)
    assert "m.weight" in load_state(saved(parts(comfy_quant=quant), tmp_path))


def test_diffusers_names_of_quantized_layers_become_wans(tmp_path: Path) -> None:
    here = "blocks.0.attn1.to_out.0"
    tensors = {n.replace("m.", f"{here}.", 1): t for n, t in parts().items()}
    tensors["condition_embedder.time_proj.bias"] = torch.zeros(1)
    state = load_state(saved(tensors, tmp_path))
    assert set(state) == {
        "blocks.0.self_attn.o.weight",
        "blocks.0.self_attn.o.bias",
        "time_projection.1.bias",
    }


REFUSED = {
    "scale missing": (parts(weight_scale=None), "layer m: its weight_scale is missing"),
    "weight missing": (parts(weight=None), "layer m: its weight is missing"),
    "orphan scale": (
        parts() | {"n.weight_scale": torch.ones(1)},
        "n.weight_scale belongs to no layer",
    ),
    "orphan legacy scale": (
        {"n.weight": torch.ones(2), "n.scale_weight": torch.ones(1)},
        "n.scale_weight belongs to no layer",
    ),
    "orphan marker": (parts() | {"n.comfy_quant": marker(**FORMAT)}, "layer n: its weight is miss"),
    "no marker": (parts(comfy_quant=None), "m.weight is torch.int8 and nothing says how"),
    "bare int8": ({"m.weight": WEIGHT}, "m.weight is torch.int8 and nothing says"),
    "unknown format": (
        parts(comfy_quant=marker(format="nvfp4")),
        "layer m: unknown format 'nvfp4'; known: int8_tensorwise",
    ),
    "no format": (parts(comfy_quant=marker(group_size=64)), "layer m: unknown format None"),
    "rotated": (parts(comfy_quant=marker(**FORMAT, convrot=True)), "rotated (convrot)"),
    "unknown setting": (
        parts(comfy_quant=marker(**FORMAT, zero_point=1)),
        "does not know the setting 'zero_point'",
    ),
    "no JSON": (parts(comfy_quant=torch.tensor([123, 255], dtype=torch.uint8)), "is not JSON"),
    "no object": (
        parts(comfy_quant=torch.tensor([49], dtype=torch.uint8)),
        "must be a JSON object",
    ),
    "marker of floats": (parts(comfy_quant=torch.ones(3)), "m.comfy_quant must hold bytes"),
    "float weight": (parts(weight=torch.ones(2, 3)), "must be an int8 matrix, got torch.float32"),
    "weight of one axis": (parts(weight=WEIGHT[0].clone()), "must be an int8 matrix"),
    "three scales": (parts(torch.ones(3)), "of shape [], [2] or [2, 1], got torch.float32 [3]"),
    "scale a column": (parts(torch.ones(1, 3)), "of shape [], [2] or [2, 1]"),
    "integer scale": (parts(torch.ones(2, 1, dtype=torch.int32)), "weight_scale must be floats"),
    "infinite scale": (parts(torch.tensor([1.0, torch.inf])), "weight_scale is not finite"),
    "scale of nothing": (parts(torch.ones(0)), "of shape [], [2] or [2, 1], got torch.float32 [0]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_odd_layer_is_refused(kind: str, tmp_path: Path) -> None:
    tensors, reason = REFUSED[kind]
    path = saved(tensors, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_state(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message


HEADERS = {
    "missing layer": ({"layers": {"n": FORMAT}}, "layer n: its weight is missing"),
    "contradiction": ({"layers": {"m": {"format": "nvfp4"}}}, "contradicts _quantization_metadata"),
    "list": ({"layers": ["m"]}, "does not list layers"),
    "no settings": ({"layers": {"m": 3}}, "must be a JSON object"),
    "odd params": ({"layers": {"m": {"params": 3}}}, "params must be a JSON object"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_odd_header_is_refused(kind: str, tmp_path: Path) -> None:
    layers, reason = HEADERS[kind]
    path = saved(parts(), tmp_path, {"_quantization_metadata": json.dumps(layers)})
    with pytest.raises(CheckpointError, match=reason):
        load_state(path)


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
    dtype,
) -> None:
    noise = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=noise) * 2.0**exponent).to(dtype)
    weight[0] = 0
    path = tmp_path_factory.getbasetemp() / "saved.safetensors"
    save_quantized({"m.weight": weight, "m.bias": weight[:, 0]}, path, lambda _n, t: t.ndim == 2)
    assert (container.read(path).tensors["m.weight_scale"] > 0).all()
    state = load_state(path)
    step = weight.float().abs().amax(1, keepdim=True) / 127
    assert ((state["m.weight"] - weight.float()).abs() <= 0.5001 * step).all()
    assert torch.equal(state["m.bias"], weight[:, 0])


def test_saved_file_is_in_comfys_layout(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = {
        "a.b.weight": torch.randn(4, 3),
        "a.b.bias": torch.zeros(4),
        "c.weight": torch.ones(2, 2),
    }
    save_quantized(state, path, lambda name, _: name == "a.b.weight", {"title": "tiny"})
    contents = container.read(path)
    described = {n: (t.dtype, list(t.shape)) for n, t in contents.tensors.items()}
    quant = contents.tensors["a.b.comfy_quant"]
    assert json.loads(bytes(quant.tolist())) == FORMAT
    assert described == {
        "a.b.weight": (torch.int8, [4, 3]),
        "a.b.weight_scale": (torch.float32, [4, 1]),
        "a.b.comfy_quant": (torch.uint8, list(quant.shape)),
        "a.b.bias": (torch.float32, [4]),
        "c.weight": (torch.float32, [2, 2]),
    }
    assert contents.metadata["title"] == "tiny"


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
def test_what_cannot_be_quantized_is_refused(name: str, tensor: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be stored as int8|not finite"):
        save_quantized({name: tensor}, tmp_path / "weights.safetensors", lambda _n, _t: True)
    assert not list(tmp_path.iterdir())
