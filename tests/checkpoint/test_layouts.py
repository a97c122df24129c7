"""Every layout that people have on disk loads to the weights that its writer packed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cfgen.checkpoint.naming import to_diffusers
from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.errors import CheckpointError
from cfgen.model.generator import Generator
from cfgen.model.quantized import QuantizedLinear
from cfgen.ops.quant.weights import nbytes
from tests.checkpoint import packing, tiny
from tests.checkpoint.packing import Array, Arrays

TinyFile = Callable[[str], tiny.Tiny]
QUANTIZED = [name for name, style in tiny.STYLES.items() if style.layout != "plain"]
PREFIXES = ["model.diffusion_model.", "net.", "generator._orig_mod.model."]


def weights_of(generator: Generator) -> Arrays:
    """Every tensor of a generator by its name, quantized ones dequantized."""
    found = {name: parameter.numpy() for name, parameter in generator.named_parameters()}
    for name, layer in generator.named_modules():
        if isinstance(layer, QuantizedLinear):
            found[f"{name}.weight"] = layer.weight.dequantize(torch.float32).numpy()
            found[f"{name}.bias"] = layer.get_buffer("bias").numpy()
    return found


def largest_error(found: Array, wanted: Array) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def assert_same(path: Path, wanted: Arrays, *, expand: bool = True) -> None:
    """A file loads to these weights; those that no tool packs exactly."""
    found = weights_of(load_generator(path, expand=expand))
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        error = largest_error(found[name], weight)
        assert error <= (1e-6 if tiny.is_packed(name) else 0), (name, error)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_layout_loads_to_what_was_packed(name: str, tiny_file: TinyFile) -> None:
    file = tiny_file(name)
    assert_same(file.path, file.weights, expand=False)
    assert_same(file.path, file.weights, expand=True)


@pytest.mark.parametrize("name", [*tiny.STYLES, *(f"gguf_{kind.name}" for kind in tiny.MADE)])
def test_what_was_packed_is_like_its_source(name: str, tiny_file: TinyFile) -> None:
    file = tiny_file(name)
    assert file.error is not None
    for layer, weight in tiny.source().items():
        assert largest_error(file.weights[layer], weight) <= max(file.error, 0.01), layer


@pytest.mark.parametrize("name", tiny.NAMES)
def test_layout_is_recognised_by_name(name: str, tiny_file: TinyFile) -> None:
    file = tiny_file(name)
    network = open_generator(file.path)
    assert network.shapes == {n: w.shape for n, w in tiny.source().items()}
    for layer in network.layers.values():
        wanted = (file.layout, file.format) if tiny.is_packed(layer.name) else ("plain", None)
        assert layer.layout == wanted[0], layer.name
        assert layer.format == wanted[1] or layer.format in ("bfloat16", "float32"), layer.name
    full = any(layer.full_precision for layer in network.layers.values())
    assert full == (name == "fp8_scaled_full_precision")


@pytest.mark.parametrize("name", [*QUANTIZED, "gguf_Q4_K", "gguf_Q8_0"])
def test_quantized_layers_stay_as_small_as_in_the_file(name: str, tiny_file: TinyFile) -> None:
    file = tiny_file(name)
    generator = load_generator(file.path, dtype=torch.bfloat16)
    kept = [m for m in generator.modules() if isinstance(m, QuantizedLinear)]
    assert len(kept) == sum(map(tiny.is_packed, file.weights))
    assert not [m for m in generator.blocks.modules() if isinstance(m, nn.Linear)]
    network = open_generator(file.path)
    layers = [layer for layer in network.layers.values() if layer.is_quantized]
    stored = sum(network.file.entries[raw].nbytes for x in layers for raw in x.parts.values())
    assert sum(nbytes(layer.weight) for layer in kept) <= stored + 4 * len(kept)
    assert stored < 2 * sum(file.weights[layer.name].size for layer in layers)


def test_expanded_layers_are_plain(tiny_file: TinyFile) -> None:
    generator = load_generator(tiny_file("gguf_Q4_K").path, expand=True, dtype=torch.bfloat16)
    assert not [m for m in generator.modules() if isinstance(m, QuantizedLinear)]
    assert generator.blocks[0].ffn[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "prefix"),
    list(zip(["native_bf16", *QUANTIZED], cycle(["", "transformer."]), strict=False)),
)
def test_diffusers_names_load_in_every_layout(name: str, prefix: str, tmp_path: Path) -> None:
    style = replace(tiny.STYLES[name], prefix=prefix)
    packed = tiny.pack(style, to_diffusers)
    assert f"{prefix}blocks.0.attn2.to_out.0.bias" in packed.tensors
    path = packed.write(tmp_path / "model.safetensors")
    assert_same(path, packed.weights)
    quantized = [layer for layer in open_generator(path).layers.values() if layer.is_quantized]
    assert {layer.layout for layer in quantized} == {style.layout} - {"plain"}


@pytest.mark.parametrize(("name", "prefix"), list(zip(QUANTIZED, cycle(PREFIXES), strict=False)))
def test_prefix_comes_off_in_every_layout(name: str, prefix: str, tmp_path: Path) -> None:
    packed = tiny.pack(replace(tiny.STYLES[name], prefix=prefix))
    path = packed.write(tmp_path / "model.safetensors")
    layers = open_generator(path).layers
    assert {layer.layout for layer in layers.values()} == {"plain", tiny.STYLES[name].layout}
    assert_same(path, packed.weights)


@pytest.mark.parametrize(
    "name", ["comfyquant_fp8_headeronly", "comfyquant_int8_convrot_headeronly", "quanto_int8"]
)
def test_header_may_leave_out_the_prefix_of_the_tensors(name: str, tmp_path: Path) -> None:
    bare = tiny.pack(tiny.STYLES[name])
    long = tiny.pack(replace(tiny.STYLES[name], prefix="model.diffusion_model."))
    packed = replace(long, metadata=bare.metadata)
    assert_same(packed.write(tmp_path / "model.safetensors"), packed.weights)


def test_header_that_names_layers_of_another_prefix_is_refused(tmp_path: Path) -> None:
    style = tiny.STYLES["comfyquant_int8_convrot_headeronly"]
    packed = replace(tiny.pack(style), metadata=tiny.pack(replace(style, prefix="net.")).metadata)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.\S+: nothing declares how it was"):
        open_generator(packed.write(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("end", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize(
    ("dtype", "shape"), [(np.float32, (1, 1)), (np.float16, ()), (packing.BF16, (1,))]
)
def test_one_scale_may_have_any_shape_and_float_dtype(
    end: str, dtype: type, shape: tuple[int, ...], tmp_path: Path
) -> None:
    def pack(weight: Array) -> tuple[Arrays, Array]:
        small, scale, back = packing.scaled(weight, packing.E4M3, 1, 1, dtype)
        return {"weight": small, end: scale.reshape(shape)}, back

    packed = tiny.pack(replace(tiny.LEGACY, pack=pack))
    assert_same(packed.write(tmp_path / "model.safetensors"), packed.weights)


def test_bfloat16_scales_of_rows_are_read(tmp_path: Path) -> None:
    def pack(weight: Array) -> tuple[Arrays, Array]:
        small, scale, back = packing.scaled(weight, np.int8, len(weight), 1, packing.BF16)
        return {"weight": small, "weight_scale": scale}, back

    packed = tiny.pack(replace(tiny.STYLES["lightx2v_int8"], pack=pack))
    assert_same(packed.write(tmp_path / "model.safetensors"), packed.weights)


def test_scale_of_the_activations_changes_nothing(tmp_path: Path) -> None:
    packed = tiny.pack(tiny.LEGACY)
    layers = [name.removesuffix(".weight") for name in packed.weights if tiny.is_packed(name)]
    more = {f"{layer}.scale_input": np.array(7.0, np.float32) for layer in layers}
    path = replace(packed, tensors=packed.tensors | more).write(tmp_path / "model.safetensors")
    assert_same(path, packed.weights)


@pytest.mark.parametrize("text", ['{{"format": "float8_e4m3fn"}}', ' {"format":"float8_e4m3fn"}\0'])
def test_marker_may_be_written_with_double_braces_or_padding(text: str, tmp_path: Path) -> None:
    packed = tiny.pack(tiny.STYLES["comfyquant_fp8"])
    odd = np.frombuffer(text.encode(), np.uint8)
    tensors = {n: odd if n.endswith("comfy_quant") else t for n, t in packed.tensors.items()}
    path = replace(packed, tensors=tensors).write(tmp_path / "model.safetensors")
    assert_same(path, packed.weights)


@pytest.mark.parametrize("name", ["comfyquant_fp8", "comfyquant_nvfp4", "comfyquant_mxfp8"])
def test_layer_may_ask_for_full_precision(name: str, tmp_path: Path) -> None:
    style = tiny.STYLES[name]
    told = style.pack(tiny.source()["blocks.0.ffn.0.weight"])[0]["comfy_quant"]
    full = packing.marker(**json.loads(told.tobytes()), full_precision_matrix_mult=True)
    packed = tiny.pack(style)
    layer = "blocks.0.self_attn.q"
    path = replace(packed, tensors=packed.tensors | {f"{layer}.comfy_quant": full}).write(
        tmp_path / "model.safetensors"
    )
    asking = [n for n, layer in open_generator(path).layers.items() if layer.full_precision]
    assert asking == [f"{layer}.weight"]
    assert_same(path, packed.weights)


def test_every_layer_may_have_a_layout_of_its_own(tmp_path: Path) -> None:
    styles = ["comfyquant_nvfp4", "comfyquant_fp8", "comfyquant_int8_convrot", "native_bf16"]
    every = [tiny.pack(tiny.STYLES[name]) for name in styles]
    tensors, weights = dict(every[0].tensors), dict(every[0].weights)
    for i, name in enumerate(filter(tiny.is_packed, weights)):
        chosen = every[i % len(every)]
        layer = name.removesuffix("weight")
        tensors = {n: t for n, t in tensors.items() if not n.startswith(layer) or "bias" in n}
        tensors |= {n: t for n, t in chosen.tensors.items() if n.startswith(layer)}
        weights[name] = chosen.weights[name]
    path = packing.write_safetensors(tmp_path / "model.safetensors", tensors)
    found = open_generator(path).layers
    formats = [found[name].format for name in weights if tiny.is_packed(name)]
    assert formats[:4] == ["nvfp4", "float8_e4m3fn", "int8", "bfloat16"]
    assert_same(path, weights)


def test_other_networks_in_the_file_do_not_matter(tmp_path: Path) -> None:
    packed = tiny.pack(
        replace(tiny.STYLES["comfyquant_fp8_headeronly"], prefix="model.diffusion_model.")
    )
    header = json.loads(packed.metadata["_quantization_metadata"])
    header["layers"]["text_encoders.umt5xxl.shared"] = {"format": "float8_e4m3fn"}
    more = {
        "text_encoders.umt5xxl.shared.weight": np.zeros((2, 4), packing.E4M3),
        "text_encoders.umt5xxl.shared.weight_scale": np.array(1.0, np.float32),
        "first_stage_model.decoder.conv1.bias": np.zeros(3, np.float32),
    }
    whole = tiny.Packed(
        packed.tensors | more, {"_quantization_metadata": json.dumps(header)}, packed.weights
    )
    path = whole.write(tmp_path / "all_in_one.safetensors")
    assert_same(path, packed.weights)
    assert set(open_generator(path).naming.left_alone) == set(more)
