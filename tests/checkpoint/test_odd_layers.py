"""Quantized layers that are incomplete, contradict themselves or are not known are refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch

from cfgen.errors import CheckpointError
from tests.checkpoint.conftest import marker
from tests.checkpoint.small import FORMAT, FP8, WEIGHT, Tensors, layer, load_state, parts, saved

FP4 = {
    "weight": torch.zeros(2, 8, dtype=torch.uint8),
    "weight_scale": torch.zeros(128, 4, dtype=torch.uint8).view(torch.float8_e4m3fn),
    "weight_scale_2": torch.tensor(1.0),
}
NAN_BLOCK = torch.full((128, 4), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)
NATIVE = {**FP4, "comfy_quant": marker(format="nvfp4")}
GLOBAL = {**FP4, "weight_scale_2": None, "weight_global_scale": torch.tensor(2.0)}
ALPHA = {**FP4, "weight_scale_2": None, "alpha": torch.tensor(2.0)}
MX = {
    "weight": torch.zeros(2, 32).to(torch.float8_e4m3fn),
    "weight_scale": torch.zeros(128, 4, dtype=torch.uint8),
    "comfy_quant": marker(format="mxfp8"),
}
OTHERS = layer("n", weight=FP8, scale_weight=torch.ones(1))
ROTATED = {"format": "int8_tensorwise", "convrot": True}

REFUSED: dict[str, tuple[Tensors, str]] = {
    "scale missing": (parts(weight_scale=None), "layer m: its weight_scale is missing"),
    "weight missing": (parts(weight=None), "layer m: its weight is missing"),
    "orphan scale": (parts() | layer("n", weight_scale=torch.ones(1)), "n: its weight is missing"),
    "orphan legacy scale": (
        layer(weight=torch.ones(2, 2), scale_weight=torch.ones(1)),
        "layer m: its weight must be a matrix of int8 or float8_e4m3fn or float8_e5m2, got float32",
    ),
    "orphan marker": (parts() | layer("n", comfy_quant=marker(**FORMAT)), "n: its weight is miss"),
    "orphan scale of activations": (layer(input_scale=torch.ones(1)), "m: its weight is missing"),
    "orphan alpha": (layer(weight=torch.ones(2, 2), alpha=torch.ones(1)), "m: its weight_scale is"),
    "bare int8": (layer(weight=WEIGHT), "m.weight is int8 and nothing says how it was quantized"),
    "bare bytes": (layer(weight=WEIGHT.view(torch.uint8)), "m.weight is uint8 and nothing says"),
    "bare integers": ({"m.count": torch.tensor(3)}, "m.count is int64 and nothing says"),
    "bare bytes beside scales": (OTHERS | layer(weight=WEIGHT), "m: its weight is int8 and its sc"),
    "one scale missing": (OTHERS | layer(weight=FP8), "m: its weight is float8_e4m3fn and its sca"),
    "scales promised": (
        layer(weight=FP8) | {"scaled_fp8": FP8.new_zeros(0)},
        "layer m: its weight is float8_e4m3fn and its scale is missing",
    ),
    "small bias beside scales": (
        OTHERS | {"n.bias": FP8[0].clone()},
        "n.bias is float8_e4m3fn and",
    ),
    "two scales": (
        layer(weight=FP8, scale_weight=torch.ones(1), weight_scale=torch.ones(1)),
        "m.weight_scale has no meaning in the layout fp8_scaled",
    ),
    "two scales, declared": (
        parts(scale_weight=torch.ones(1)),
        "m.scale_weight has no meaning in the layout ComfyUI native",
    ),
    "one of two not declared": (
        parts() | layer("n", weight=WEIGHT, weight_scale=torch.ones(1)),
        "layer n: nothing declares how it was quantized, as others of the file are",
    ),
    "small values beside quanto": (
        layer(weight___data=WEIGHT, weight___scale=torch.ones(1)) | layer("n", weight=FP8),
        "layer n: its weight is float8_e4m3fn and its scale is missing",
    ),
    "unknown format": (
        parts(comfy_quant=marker(format="int7")),
        "layer m: unknown format 'int7'; known: float8_e4m3fn, float8_e5m2",
    ),
    "no format": (parts(comfy_quant=marker(group_size=64)), "layer m: unknown format None"),
    "format of two lines": (parts(comfy_quant=marker(format="a\nb")), r"unknown format 'a\nb'"),
    "other kind": (
        parts(comfy_quant=marker(format="float8_e4m3fn")),
        "layer m: its weight must be a matrix of float8_e4m3fn, got int8 [2, 3]",
    ),
    "rotation too wide": (parts(comfy_quant=marker(**ROTATED)), "rotation by 256 columns must be"),
    "rotation by no power": (
        parts(comfy_quant=marker(**ROTATED, convrot_groupsize=3)),
        "its rotation by 3 columns must be a power of 4 that divides 3",
    ),
    "unknown setting": (
        parts(comfy_quant=marker(**FORMAT, zero_point=1)),
        "int8_tensorwise does not know the setting 'zero_point'",
    ),
    "no JSON": (parts(comfy_quant=torch.tensor([123, 255], dtype=torch.uint8)), "is not JSON"),
    "no object": (
        parts(comfy_quant=torch.tensor([49], dtype=torch.uint8)),
        "must be a JSON object",
    ),
    "format twice": (
        parts(comfy_quant=torch.tensor(list(b'{"format":"a","format":"b"}'), dtype=torch.uint8)),
        "m.comfy_quant is not JSON: it names format twice",
    ),
    "marker of floats": (parts(comfy_quant=torch.ones(3)), "m.comfy_quant must hold bytes"),
    "endless marker": (
        parts(comfy_quant=torch.zeros(70_000, dtype=torch.uint8)),
        "m.comfy_quant must hold bytes",
    ),
    "float weight": (parts(weight=torch.ones(2, 3)), "must be a matrix of int8, got float32"),
    "weight of one axis": (
        parts(weight=WEIGHT[0].clone()),
        "must be a matrix of int8, got int8 [3]",
    ),
    "weight of no axis": (
        parts(weight=WEIGHT[0, 0].clone()),
        "must be a matrix of int8, got int8 []",
    ),
    "three scales": (parts(torch.ones(3)), "of shape [], [2], [2, 1] or one for each block"),
    "scales of no block": (parts(torch.ones(2, 2)), "of shape [], [2], [2, 1] or one for each"),
    "integer scale": (parts(torch.ones(2, 1, dtype=torch.int32)), "its scale must be floats"),
    "fp8 scale": (parts(FP8[:, :1].contiguous()), "its scale must be floats"),
    "infinite scale": (
        parts(torch.tensor([1.0, torch.inf])),
        "layer m.weight: its scale is not fin",
    ),
    "scale of no number": (parts(torch.tensor(torch.nan)), "its scale is not finite"),
    "empty scale": (parts(torch.ones(0)), "m.weight_scale is empty"),
    "empty weight": (parts(weight=WEIGHT[:0].clone()), "m.weight is empty"),
    "fp4 without its scale": (layer(**{**FP4, "weight_scale_2": None}), "m: its weight must be a"),
    "fp4 with two scales": (
        layer(**{**NATIVE, "weight_scale_2": torch.ones(2)}),
        "must be one float",
    ),
    "fp4 with bytes": (
        layer(**{**NATIVE, "weight_scale_2": FP8[0, 0].clone()}),
        "must be one float",
    ),
    "fp4 of floats": (
        layer(**{**NATIVE, "weight": torch.ones(2, 8)}),
        "must be pairs of 4-bit floats",
    ),
    "fp4 of half blocks": (
        layer(**{**NATIVE, "weight": FP4["weight"][:, :4].clone()}),
        "4-bit floats",
    ),
    "fp4 without padding": (
        layer(**{**NATIVE, "weight_scale": FP4["weight_scale"][:2].clone()}),
        "its weight_scale must have [128, 4] values, got [2, 4]",
    ),
    "fp4 of no number": (layer(**{**NATIVE, "weight_scale": NAN_BLOCK}), "its scale is not finite"),
    "fp4 over zero": (
        layer(**{**GLOBAL, "weight_global_scale": torch.tensor(0.0)}),
        "its scale is not finite",
    ),
    "fp4 with half a scale": (layer(**ALPHA), "neither weight_global_scale nor alpha with input"),
    "fp4 with alphas": (
        layer(**ALPHA, input_global_scale=torch.ones(3)),
        "its input_global_scale must be one float",
    ),
    "mx of odd rows": (layer(**{**MX, "weight": FP8}), "must be fp8 in blocks of 32"),
    "mx with floats": (layer(**{**MX, "weight_scale": torch.ones(128, 4)}), "exponents in bytes"),
    "mx without padding": (
        layer(**{**MX, "weight_scale": MX["weight_scale"][:1].clone()}),
        "must have [128, 4] values",
    ),
    "mx of no number": (
        layer(**{**MX, "weight_scale": torch.full((128, 4), 255, dtype=torch.uint8)}),
        "its scale is not finite",
    ),
    "quanto without scale": (layer(weight___data=WEIGHT), "m: its weight._scale is missing"),
    "quanto without values": (
        layer(weight___scale=torch.ones(1)),
        "m: its weight._data is missing",
    ),
    "torchao without type": (
        layer(_weight_qdata=WEIGHT, _weight_scale=torch.ones(2, 1)),
        "does not say which of torchao's types it is",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_odd_layer_is_refused(kind: str, tmp_path: Path) -> None:
    tensors, reason = REFUSED[kind]
    path = saved(tensors, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_state(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def quanto_map(told: object) -> dict[str, str]:
    return {"quantization_map_base64": base64.b64encode(json.dumps(told).encode()).decode()}


HEADERS: dict[str, tuple[dict[str, str], str]] = {
    name: ({"_quantization_metadata": told if isinstance(told, str) else json.dumps(told)}, reason)
    for name, (told, reason) in {
        "missing layer": ({"layers": {"n": FORMAT}}, "layer n: its weight is missing"),
        "contradiction": ({"layers": {"m": {"format": "nvfp4"}}}, "contradicts _quantization_meta"),
        "list": ({"layers": ["m"]}, "does not list layers"),
        "no settings": ({"layers": {"m": 3}}, "must be a JSON object"),
        "odd params": ({"layers": {"m": {"params": 3}}}, "params must be a JSON object"),
        "no JSON": ("{", "_quantization_metadata is not JSON"),
        "no object": ("null", "_quantization_metadata must be a JSON object"),
        "endless": ("[" * 100_000, "_quantization_metadata is not JSON"),
        "layer twice": ('{"layers": {"m": {}, "m": {}}}', "it names m twice"),
        "layer under two names": (
            {"layers": {"m": FORMAT, "_orig_mod.m": {"format": "nvfp4"}}},
            "says two things of m",
        ),
    }.items()
} | {
    "quanto's no base64": ({"quantization_map_base64": "{}"}, "map is not base64"),
    "quanto's no JSON": ({"quantization_map_base64": "AAAA"}, "map is not JSON"),
    "quanto's no object": (quanto_map([]), "map must be a JSON object"),
    "quanto's other layer": (quanto_map({"n": {"weights": "qint8"}}), "n: its weight is missing"),
    "quanto's other type": (quanto_map({"m": {"weights": "qint4"}}), "quanto's qint4 is not read"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_odd_header_is_refused(kind: str, tmp_path: Path) -> None:
    metadata, reason = HEADERS[kind]
    path = saved(parts(), tmp_path, metadata)
    with pytest.raises(CheckpointError) as caught:
        load_state(path)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
