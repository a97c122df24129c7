"""What files declare of their layers: honoured, harmless, or refused by name; never guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from cfgen.checkpoint.naming import to_diffusers
from cfgen.checkpoint.networks.fill import open_generator
from cfgen.errors import CheckpointError
from tests.checkpoint import packing, tiny
from tests.checkpoint.conftest import marker
from tests.checkpoint.packing import Pack
from tests.checkpoint.small import FORMAT, FP8, WEIGHT, layer, load_state, parts, saved
from tests.checkpoint.test_layouts import assert_same

SIZES = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 1,
    "ffn_dim": 512,
    "text_dim": 24,
    "freq_dim": 16,
    "patch_size": [1, 2, 2],
}
"""config.json of the tiny generator as diffusers writes it."""

GROUP = {"input_activations": {"num_bits": 4}, "targets": ["Linear"]}
NVFP4 = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "producer": {"name": "modelopt", "version": "0.47.0"},
    "ignore": ["proj_out"],
    "config_groups": {"group_0": {**GROUP, "weights": {"num_bits": 4, "group_size": 16}}},
}
"""What ModelOpt's export_hf_checkpoint puts into config.json."""

ONE_FP8 = packing.with_scale(packing.E4M3, "weight_scale", rows=None, shape=())


def exported(
    folder: Path,
    pack: Pack,
    config: dict[str, Any] | None,
    *,
    header: dict[str, str] | None = None,
    name: str = "diffusion_pytorch_model.safetensors",
) -> tuple[Path, packing.Arrays]:
    """A generator in diffusers' names with a quantizer's settings in its config.json."""

    def renamed(key: str) -> str:
        end = key.removesuffix(".weight")
        return to_diffusers(key) if end != key else to_diffusers(f"{key}.weight")[:-7]

    tensors: packing.Arrays = {}
    weights: packing.Arrays = {}
    for key, weight in tiny.source().items():
        if tiny.is_packed(key):
            made, weights[key] = pack(weight)
            module = renamed(key.removesuffix(".weight"))
            tensors |= {f"{module}.{end}": part for end, part in made.items()}
        else:
            weights[key] = tensors[to_diffusers(key)] = weight
    said = SIZES if config is None else {**SIZES, "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(said))
    return packing.write_safetensors(folder / name, tensors, header), weights


MIXED = {
    "quant_method": "modelopt",
    "quant_algo": "MIXED_PRECISION",
    "quantized_layers": {
        to_diffusers(name).removesuffix(".weight"): {"quant_algo": "NVFP4", "group_size": 16}
        for name in tiny.source()
        if tiny.is_packed(name)
    },
}

MODELOPT: dict[str, tuple[Pack, dict[str, Any]]] = {
    "NVFP4": (packing.modelopt_nvfp4, NVFP4),
    "weights alone": (packing.modelopt_nvfp4, NVFP4 | {"quant_algo": "W4A16_NVFP4"}),
    "by layer": (packing.modelopt_nvfp4, MIXED),
    "FP8": (ONE_FP8, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "FP8 by rows": (
        packing.with_scale(packing.E4M3, "weight_scale"),
        {"producer": {"name": "modelopt"}, "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
    ),
}


@pytest.mark.parametrize("kind", MODELOPT)
def test_export_of_modelopt_is_read_as_its_config_says(kind: str, tmp_path: Path) -> None:
    pack, config = MODELOPT[kind]
    path, weights = exported(tmp_path, pack, config)
    assert_same(path, weights, expand=False)
    told = {lay.layout for lay in open_generator(path).layers.values() if lay.is_quantized}
    assert told == {"ModelOpt"}


def test_settings_of_modelopt_may_lie_in_a_file_of_their_own(tmp_path: Path) -> None:
    path, weights = exported(tmp_path, packing.modelopt_nvfp4, None)
    told = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(told))
    assert_same(path, weights)


Undeclared = tuple[Pack, dict[str, Any] | None, dict[str, str] | None, tuple[str, ...]]
COMFY = {"_quantization_metadata": json.dumps({"layers": {"blocks.0.attn1.to_q": FORMAT}})}
MARKED = packing.with_marker(packing.modelopt_nvfp4, {"format": "nvfp4"})

BOTH = ("ComfyUI's nvfp4", "ModelOpt's NVFP4")
AMBIGUOUS: dict[str, Undeclared] = {
    "nothing says whose 4 bits": (packing.modelopt_nvfp4, None, None, BOTH),
    "nothing says whose, in tiles": (packing.nvfp4, None, None, BOTH),
    "both say so": (MARKED, NVFP4, None, ("ComfyUI's words", "ModelOpt's NVFP4")),
    "gone over": (
        packing.modelopt_nvfp4,
        None,
        {"quantization_config": json.dumps(NVFP4)},
        ("went over the file", "tiles"),
    ),
    "scales in tiles": (
        packing.with_scale(packing.E4M3, "weight_scale"),
        NVFP4,
        None,
        ("float8_e4m3fn", "NVFP4"),
    ),
    "another layout": (packing.lightx2v_nvfp4, NVFP4, None, ("weight_scale_2 is missing",)),
    "quanto's tensors": (packing.quanto(np.int8), NVFP4, None, ("quanto", "ModelOpt")),
    "config and header": (
        packing.modelopt_nvfp4,
        NVFP4,
        {"quantization_config": json.dumps(NVFP4 | {"quant_algo": "FP8"})},
        ("say different things",),
    ),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_layout_that_is_not_declared_once_is_refused(kind: str, tmp_path: Path) -> None:
    pack, config, header, words = AMBIGUOUS[kind]
    path, _ = exported(tmp_path, pack, config, header=header)
    with pytest.raises(CheckpointError) as caught:
        open_generator(path)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.hint


UNKNOWN_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        method: ({"quant_method": method, "bits": 4}, f"quantized by {method}")
        for method in ("sdnq", "bitsandbytes", "compressed-tensors", "gptq", "awq", "fp8", "auto")
    },
    "unnamed": ({"bits": 8}, "an unnamed quantizer"),
    "AWQ of modelopt": (NVFP4 | {"quant_algo": "NVFP4_AWQ"}, "NVFP4_AWQ is not read"),
    "SVD of modelopt": (NVFP4 | {"quant_algo": "NVFP4_SVD"}, "NVFP4_SVD is not read"),
    "MXFP8 of modelopt": (NVFP4 | {"quant_algo": "MXFP8"}, "MXFP8 is not read"),
    "rotated": (NVFP4 | {"rotation": "hadamard"}, "sets rotation to hadamard"),
    "smoothed": (
        NVFP4 | {"config_groups": {"group_0": {**GROUP, "pre_quant_scale": True}}},
        "sets pre_quant_scale to True",
    ),
    "blocks of 32": (
        NVFP4 | {"config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}}},
        "group_size must be 16",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN_CONFIGS)
def test_quantizer_that_is_not_read_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    config, reason = UNKNOWN_CONFIGS[kind]
    path, _ = exported(tmp_path, packing.modelopt_nvfp4, config)
    with pytest.raises(CheckpointError) as caught:
        open_generator(path)
    assert reason in caught.value.message


def test_config_of_a_neighbour_says_nothing_of_the_generator(tmp_path: Path) -> None:
    path, weights = exported(tmp_path, packing.plain(np.float32), None)
    said = {"d_model": 64, "quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert_same(path, weights)


HARMLESS = {
    "modelspec.title": "SVD quantized rotation",
    "ss_scale_weight_norms": "1.0",
    "sshs_model_hash": "abc",
    "description": "quantized with care",
    "rotation": "none",
    "convrot": "false",
    "prompt": '{"1": {}}',
    "license": "apache-2.0",
}

STRANGE = {
    "rotation": "hadamard-256",
    "weights_rotated": "true",
    "quant_scheme": "int8",
    "comfy.transposed": "1",
    "nibble_order": "low",
    "scale_layout": "swizzled",
    "block_size": "64",
    "packing": "column",
    "svdquant": "rank 32",
    "quantization_format": "something",
}


@pytest.mark.parametrize("key", HARMLESS)
def test_note_in_a_header_is_harmless(key: str, tmp_path: Path) -> None:
    assert set(load_state(saved(parts(), tmp_path, {key: HARMLESS[key]}))) == {"m.weight", "m.bias"}


@pytest.mark.parametrize("key", STRANGE)
def test_rule_in_a_header_that_is_not_known_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not know how to honour|is not read") as caught:
        load_state(saved(parts(), tmp_path, {key: STRANGE[key]}))
    assert key in caught.value.message


GGUF_KEYS: dict[str, tuple[Callable[[Any], None], str]] = {
    "comfy.gguf.quant": (
        lambda w: w.add_string("comfy.gguf.quant.blocks.0.ffn.0", '{"convrot": true}'),
        "comfy.gguf.quant.blocks.0.ffn.0",
    ),
    "comfy.gguf": (lambda w: w.add_uint32("comfy.gguf.tomorrow", 1), "comfy.gguf.tomorrow"),
    "rotation": (lambda w: w.add_string("wan.rotation", "hadamard"), "wan.rotation"),
    "another's": (lambda w: w.add_string("x.quant.scheme", "y"), "x.quant.scheme"),
    "version": (lambda w: w.add_quantization_version(3), "general.quantization_version"),
    "author": (lambda w: w.add_string("general.author", "quantizer"), ""),
    "rope": (lambda w: w.add_string("wan.rope.scaling.type", "linear"), ""),
    "matrix of importance": (lambda w: w.add_string("quantize.imatrix.file", "x"), ""),
    "by": (lambda w: w.add_string("general.quantized_by", "someone"), ""),
    "off": (lambda w: w.add_bool("comfy.gguf.convrot", False), ""),
}


@pytest.mark.parametrize("kind", GGUF_KEYS)
def test_key_of_gguf_is_known_or_refused(kind: str, tmp_path: Path) -> None:
    add, named = GGUF_KEYS[kind]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "wan")
    add(writer)
    writer.add_tensor("m.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not named:
        assert set(load_state(tmp_path / "m.gguf")) == {"m.weight"}
        return
    with pytest.raises(CheckpointError) as caught:
        load_state(tmp_path / "m.gguf")
    assert named in caught.value.message


@pytest.mark.parametrize(
    "told",
    [{"format_version": "2.0", "layers": {}}, {"layers": {}, "rotation": "hadamard"}],
)
def test_header_of_comfyui_says_nothing_unknown(told: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not know how to honour"):
        load_state(saved(parts(), tmp_path, {"_quantization_metadata": json.dumps(told)}))


NOTED: dict[str, dict[str, Any]] = {
    "dtype": {"orig_dtype": "torch.bfloat16"},
    "shape": {"orig_shape": [2, WEIGHT.shape[1]]},
    "rows": {"per_row": True},
    "block": {"block_size": 128},
    "group": {"group_size": 128},
    "all": {"orig_dtype": "x", "orig_shape": list(WEIGHT.shape), "per_row": True, "block_size": 64},
}

CONTRADICTED: dict[str, dict[str, Any]] = {
    "shape": {"orig_shape": [2, 99]},
    "rows": {"per_row": False},
    "rule": {"zero_point": 3},
    "rotation": {"hadamard": True},
}


@pytest.mark.parametrize("kind", NOTED)
def test_note_beside_a_layer_is_harmless(kind: str, tmp_path: Path) -> None:
    told = marker(**FORMAT, **NOTED[kind])
    assert set(load_state(saved(parts(comfy_quant=told), tmp_path))) == {"m.weight", "m.bias"}


@pytest.mark.parametrize("kind", CONTRADICTED)
def test_note_that_the_tensors_contradict_is_refused(kind: str, tmp_path: Path) -> None:
    told = marker(**FORMAT, **CONTRADICTED[kind])
    with pytest.raises(CheckpointError) as caught:
        load_state(saved(parts(comfy_quant=told), tmp_path))
    assert next(iter(CONTRADICTED[kind])) in caught.value.message


def test_size_of_blocks_is_compared_with_the_scales(tmp_path: Path) -> None:
    weight, scale = torch.ones(4, 4, dtype=torch.int8), torch.ones(2, 2)
    for size, fits in ((2, True), ([2, 2], True), (64, False)):
        told = marker(format="int8_blockwise", block_size=size)
        path = saved(layer(weight=weight, weight_scale=scale, comfy_quant=told), tmp_path)
        if fits:
            load_state(path)
            continue
        with pytest.raises(CheckpointError, match="block_size is 64"):
            load_state(path)


NUL = torch.zeros(64, dtype=torch.uint8)


@pytest.mark.parametrize("size", [0, 1, 64])
def test_marker_without_a_letter_declares_nothing(size: int, tmp_path: Path) -> None:
    plain = layer("n", weight=WEIGHT.float(), comfy_quant=NUL[:size])
    state = load_state(saved(parts() | plain, tmp_path))
    assert torch.equal(state["n.weight"], WEIGHT.float())


def test_marker_without_a_letter_does_not_make_numbers_of_bytes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_state(saved(layer(weight=WEIGHT, comfy_quant=NUL), tmp_path))
    beside = layer("n", weight=FP8, weight_scale=torch.ones(2, 1), comfy_quant=NUL)
    with pytest.raises(CheckpointError, match="nothing declares"):
        load_state(saved(parts() | beside, tmp_path))


def test_scales_that_are_told_twice_must_agree(tmp_path: Path) -> None:
    style = tiny.STYLES["lightx2v_nvfp4"]
    packed = tiny.pack(style)
    name = "model.blocks.0.ffn.0.alpha"
    packed.tensors[name] = packed.tensors[name] * np.float32(2)
    path = packed.write(tmp_path / "twice.safetensors")
    network = open_generator(path)
    with pytest.raises(CheckpointError, match="weight_global_scale and its alpha differ"):
        network.read("blocks.0.ffn.0.weight")


def test_torchaos_attributes_are_known(tmp_path: Path) -> None:
    packed = tiny.pack(tiny.STYLES["torchao_int8"])
    name = "blocks.0.ffn.0.weight"
    for change, reason in (({"block_size": [1, 64]}, "block_size"), ({"order": "C"}, "order")):
        told = json.loads(packed.metadata[name])
        told["_data"] |= change
        metadata = packed.metadata | {name: json.dumps(told)}
        path = packing.write_safetensors(tmp_path / "m.safetensors", packed.tensors, metadata)
        with pytest.raises(CheckpointError, match=reason):
            open_generator(path)
