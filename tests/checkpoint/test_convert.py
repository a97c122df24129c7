"""A converted model is the same model: every value, whatever it was stored as."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfgen.checkpoint.convert.convert import Names, plan_convert
from cfgen.checkpoint.convert.input import open_source
from cfgen.checkpoint.convert.output import check
from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.checkpoint.networks.text_encoder import open_text_encoder
from cfgen.checkpoint.quant.layer import HEADER
from cfgen.errors import CheckpointError, OutputRefused, UsageError
from cfgen.ops.quant.weights import AnyQuantized, ScaledWeight, parts
from tests.checkpoint import tiny
from tests.checkpoint.encoders import LLAMA_CPP, encoder

TinyFile = Callable[[str], tiny.Tiny]

UNSAID = {
    "fp8_scaled_musubi_block64": "float8_e4m3fn with scales as musubi has them",
    **{
        f"gguf_{kind.name}": f"is {kind.name}, and safetensors has no type for GGML's blocks"
        for kind in (*tiny.MADE, *tiny.HALVES)
        if kind.name not in ("F16", "BF16")
    },
}
"""Files whose layers ComfyUI's layout has no word for, and how that is said."""

SAID = [name for name in tiny.NAMES if name not in UNSAID]

WORDS = {
    "fp8_scaled_kijai": {"format": "float8_e4m3fn"},
    "fp8_scaled_full_precision": {"format": "float8_e4m3fn", "full_precision_matrix_mult": True},
    "comfyquant_fp8_e5m2": {"format": "float8_e5m2"},
    "comfyquant_fp8_blockwise": {"format": "float8_e4m3fn_blockwise", "group_size": 64},
    "comfyquant_int8_blockwise": {"format": "int8_blockwise", "group_size": 64},
    "comfyquant_int8_convrot_64": tiny.ROTATED | {"convrot_groupsize": 64},
    "comfyquant_mxfp8": {"format": "mxfp8"},
    "lightx2v_fp8": {"format": "float8_e4m3fn_rowwise"},
    "lightx2v_int8": {"format": "int8_tensorwise"},
    "lightx2v_nvfp4_alpha": {"format": "nvfp4"},
    "quanto_fp8": {"format": "float8_e4m3fn_rowwise"},
    "torchao_int8": {"format": "int8_tensorwise"},
}
"""Files and what their layers are declared to be after they were converted."""


def converted(
    path: Path,
    target: Path,
    *,
    to: Names | None = None,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
) -> list[str]:
    """Convert a file; returns what there is to say of it."""
    source = open_source(path, weights=weights)
    rewrite = plan_convert(source, to=to, dtype=dtype)
    check(source, target, nbytes=rewrite.nbytes, overwrite=False)
    rewrite.write(target)
    return list(rewrite.notes())


def same_bits(one: Tensor, other: Tensor) -> bool:
    flat = one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)


def same_weight(one: Tensor | AnyQuantized, other: Tensor | AnyQuantized) -> bool:
    """Whether two weights are stored in the same bits; scales may be wider in one of them."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and same_bits(one, other)
    if type(one) is not type(other) or one.format != other.format:
        return False
    if isinstance(one, ScaledWeight) and isinstance(other, ScaledWeight):
        if one.rotation != other.rotation:
            return False
        return same_bits(one.values, other.values) and torch.equal(
            one.scale.float(), other.scale.float()
        )
    return all(same_bits(part, parts(other)[name]) for name, part in parts(one).items())


NAMES: tuple[Names, ...] = ("wan", "diffusers")


@pytest.mark.parametrize(
    ("name", "to"),
    [
        *(("native_bf16", to) for to in NAMES),
        *zip(
            [name for name in SAID if name != "native_bf16"], itertools.cycle(NAMES), strict=False
        ),
    ],
)
def test_every_layout_keeps_every_bit(
    name: str, to: Names, tiny_file: TinyFile, tmp_path: Path
) -> None:
    source = tiny_file(name).path
    target = tmp_path / "converted.safetensors"
    converted(source, target, to=to)
    before, after = open_generator(source), open_generator(target)
    assert after.naming.layout.title == {"wan": "Wan's own", "diffusers": "diffusers'"}[to]
    assert after.naming.prefix == ""
    assert after.layers.keys() == before.layers.keys()
    for layer in before.layers:
        assert same_weight(before.read(layer), after.read(layer)), layer
        if before.layers[layer].is_quantized:
            assert after.layers[layer].full_precision == before.layers[layer].full_precision


@pytest.mark.parametrize("name", WORDS)
def test_layers_are_declared_beside_them_and_in_the_header(
    name: str, tiny_file: TinyFile, tmp_path: Path
) -> None:
    target = tmp_path / "converted.safetensors"
    converted(tiny_file(name).path, target)
    quantized = [n.removesuffix(".weight") for n in tiny.source() if tiny.is_packed(n)]
    with safe_open(target, "pt") as file:
        told = json.loads(file.metadata()[HEADER])
        assert told["format_version"] == "1.0"
        assert told["layers"] == dict.fromkeys(quantized, WORDS[name])
        for layer in quantized:
            text = bytes(file.get_tensor(f"{layer}.comfy_quant").tolist())
            assert json.loads(text) == WORDS[name]


def test_scales_have_the_shapes_that_readers_expect(tiny_file: TinyFile, tmp_path: Path) -> None:
    """ComfyUI's comfy/ops.py takes them as they are; 512 x 256 is the shape of the weight."""
    wanted = {
        "fp8_scaled_kijai": (torch.float32, []),
        "comfyquant_fp8_e5m2": (torch.float32, []),  # [1] before
        "lightx2v_int8": (torch.float32, [512, 1]),
        "quanto_int8": (torch.float32, [512, 1]),  # bfloat16 before
        "lightx2v_fp8": (torch.float32, [512]),
        "comfyquant_int8_blockwise": (torch.float32, [8, 4]),
        "comfyquant_mxfp8": (torch.uint8, [512, 8]),
        "lightx2v_nvfp4": (torch.float8_e4m3fn, [512, 16]),
    }
    for name, (dtype, shape) in wanted.items():
        target = tmp_path / f"{name}.safetensors"
        converted(tiny_file(name).path, target)
        scale = load_file(target)["blocks.0.ffn.0.weight_scale"]
        assert (scale.dtype, list(scale.shape)) == (dtype, shape), name
    assert load_file(target)["blocks.0.ffn.0.weight_scale_2"].shape == ()


@pytest.mark.parametrize("name", UNSAID)
def test_what_safetensors_cannot_say_asks_for_a_dtype(
    name: str, tiny_file: TinyFile, tmp_path: Path
) -> None:
    target = tmp_path / "converted.safetensors"
    with pytest.raises(CheckpointError, match=re.escape(UNSAID[name])) as caught:
        converted(tiny_file(name).path, target)
    assert caught.value.hint is not None
    assert "--dtype" in caught.value.hint
    assert not list(tmp_path.iterdir())


DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *itertools.product(["native_bf16", "comfyquant_int8_convrot"], DTYPES),
        *zip(
            ["fp8_plain_e4m3", "comfyquant_nvfp4", *UNSAID], itertools.cycle(DTYPES), strict=False
        ),
    ],
)
def test_everything_is_dequantized_to_a_dtype(
    name: str, dtype: torch.dtype, tiny_file: TinyFile, tmp_path: Path
) -> None:
    target = tmp_path / "converted.safetensors"
    converted(tiny_file(name).path, target, dtype=dtype)
    before, after = open_generator(tiny_file(name).path), load_file(target)
    assert after.keys() == tiny.source().keys()
    for layer, tensor in after.items():
        stored = before.read(layer)
        wanted = stored.to(dtype) if isinstance(stored, Tensor) else stored.dequantize(dtype)
        if isinstance(stored, ScaledWeight) and stored.rotation:  # a product, by other slabs
            assert torch.allclose(tensor.float(), wanted.float(), rtol=0.01, atol=1e-6)
        else:
            assert same_bits(tensor, wanted), layer
    load_generator(target)


def test_names_there_and_back_give_the_same_file(tiny_file: TinyFile, tmp_path: Path) -> None:
    paths = [tmp_path / f"{step}.safetensors" for step in range(3)]
    converted(tiny_file("native_bf16").path, paths[0])
    converted(paths[0], paths[1], to="diffusers")
    converted(paths[1], paths[2], to="wan")
    assert paths[2].read_bytes() == paths[0].read_bytes()
    theirs = load_file(paths[1])
    assert "condition_embedder.time_proj.weight" in theirs
    assert "blocks.0.attn2.to_out.0.weight" in theirs
    assert "scale_shift_table" in theirs
    assert not theirs.keys() & load_file(paths[0]).keys() - {
        "patch_embedding.weight",
        "patch_embedding.bias",
    }


def test_llama_cpps_encoder_gets_hugging_faces_names(tmp_path: Path) -> None:
    tensors = encoder()
    writer = gguf.GGUFWriter(tmp_path / "te.gguf", "t5encoder")
    writer.add_tokenizer_model("t5")
    for name, tensor in tensors.items():
        writer.add_tensor(LLAMA_CPP[name], tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target = tmp_path / "clean.safetensors"
    notes = converted(tmp_path / "te.gguf", target)
    assert notes == ["the tokenizer that the source brings is left out"]
    found = load_file(target)
    assert found.keys() == tensors.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())


@pytest.fixture
def training_state(state: dict[str, Tensor], folder: Callable[..., Path]) -> Path:
    """A .pt as trainers write it, in a folder with its config.json."""
    other = {f"model.{name}": tensor + 1 for name, tensor in state.items()}
    fsdp = {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in state.items()}
    path = folder({"x": torch.zeros(1)}) / "state.pt"
    torch.save({"generator": other, "generator_ema": fsdp, "critic": {"w": torch.ones(2)}}, path)
    return path


def test_a_training_state_loads_the_same_from_safetensors(
    training_state: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    target = tmp_path / "clean.safetensors"
    notes = converted(training_state, target)
    assert load_file(target).keys() == state.keys()
    for name, tensor in load_generator(target).state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert "taken from 'generator_ema/model.'; left out: 'generator/model.'" in notes


def test_the_weights_of_a_training_state_can_be_chosen(
    training_state: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    target = tmp_path / "live.safetensors"
    converted(training_state, target, weights="generator")
    assert torch.equal(load_file(target)["head.modulation"], state["head.modulation"] + 1)


def test_shards_become_one_file(tiny_file: TinyFile, tmp_path: Path) -> None:
    tensors = load_file(tiny_file("native_fp32").path)
    names = list(tensors)
    places = {}
    for number in (0, 1):
        shard = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in names[number::2]}, tmp_path / shard)
        places |= dict.fromkeys(names[number::2], shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    target = tmp_path / "one.safetensors"
    converted(index, target)
    found = load_file(target)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(OutputRefused, match="is the source itself"):
        converted(index, tmp_path / "model-1.safetensors")


def test_every_number_of_fp8_is_cast_also_where_no_matrix_holds_it(
    tiny_file: TinyFile, tmp_path: Path
) -> None:
    tensors = load_file(tiny_file("fp8_plain_e4m3").path)
    small = tensors["blocks.0.norm3.bias"].to(torch.float8_e4m3fn)
    save_file(tensors | {"blocks.0.norm3.bias": small}, tmp_path / "fp8.safetensors")
    converted(tmp_path / "fp8.safetensors", tmp_path / "a.safetensors", dtype=torch.bfloat16)
    found = load_file(tmp_path / "a.safetensors")["blocks.0.norm3.bias"]
    assert same_bits(found, small.bfloat16())
    converted(tmp_path / "fp8.safetensors", tmp_path / "b.safetensors")
    assert same_bits(load_file(tmp_path / "b.safetensors")["blocks.0.norm3.bias"], small)


def test_numbers_too_large_for_a_dtype_are_refused_by_name(
    tiny_file: TinyFile, tmp_path: Path
) -> None:
    tensors = load_file(tiny_file("native_fp32").path)
    tensors["head.head.weight"][3, 4] = 1e5
    save_file(tensors, tmp_path / "large.safetensors")
    target = tmp_path / "half.safetensors"
    with pytest.raises(CheckpointError, match=r"head\.head\.weight holds numbers that are too"):
        converted(tmp_path / "large.safetensors", target, dtype=torch.float16)
    assert not target.exists()
    converted(tmp_path / "large.safetensors", target, dtype=torch.bfloat16)


def test_scales_of_activations_stay_where_comfyui_reads_them(
    tiny_file: TinyFile, tmp_path: Path
) -> None:
    for name, part, kept in (
        ("comfyquant_fp8", "input_scale", True),
        ("fp8_scaled_kijai", "scale_input", True),
        ("lightx2v_fp8", "input_scale", False),
    ):
        tensors = load_file(tiny_file(name).path)
        prefix = tiny.STYLES[name].prefix
        tensors[f"{prefix}blocks.0.ffn.0.{part}"] = torch.tensor(0.25, dtype=torch.bfloat16)
        save_file(tensors, tmp_path / f"{name}.safetensors")
        target = tmp_path / f"{name}_new.safetensors"
        notes = converted(tmp_path / f"{name}.safetensors", target)
        found = load_file(target).get("blocks.0.ffn.0.input_scale")
        assert (found is not None) == kept
        assert any("1 scales of activations are left out" in note for note in notes) != kept
        if found is not None:
            assert (found.dtype, float(found)) == (torch.float32, 0.25)
        target.unlink()
        notes = converted(tmp_path / f"{name}.safetensors", target, dtype=torch.bfloat16)
        assert any("scales of activations are left out" in note for note in notes)


def test_formats_that_comfyui_reads_with_an_extension_only_are_told(
    tiny_file: TinyFile, tmp_path: Path
) -> None:
    told = "ComfyUI reads float8_e4m3fn_rowwise with an extension only"
    assert told in converted(tiny_file("lightx2v_fp8").path, tmp_path / "a.safetensors")
    assert converted(tiny_file("comfyquant_fp8").path, tmp_path / "b.safetensors") == []


def test_what_a_header_says_of_the_model_stays(tiny_file: TinyFile, tmp_path: Path) -> None:
    said = {"modelspec.title": "tiny", "license": "cc", "checkpoint_kind": "raw"}
    save_file(load_file(tiny_file("native_bf16").path), tmp_path / "a.safetensors", said)
    converted(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "modelspec.title": "tiny", "license": "cc"}


def test_a_text_encoder_gets_hugging_faces_names_and_keeps_its_tokenizer(tmp_path: Path) -> None:
    tensors = encoder() | {"spiece_model": torch.arange(9, dtype=torch.uint8)}
    save_file({f"te.{n}": t for n, t in tensors.items()}, tmp_path / "te.safetensors")
    target = tmp_path / "clean.safetensors"
    converted(tmp_path / "te.safetensors", target)
    found = load_file(target)
    assert found.keys() == tensors.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())
    assert open_text_encoder(target).extras == {"spiece_model": "spiece_model"}
    with pytest.raises(UsageError, match="Hugging Face's names only"):
        converted(tmp_path / "te.safetensors", tmp_path / "x.safetensors", to="wan")


def test_progress_ends_at_all_bytes(tiny_file: TinyFile, tmp_path: Path) -> None:
    rewrite = plan_convert(open_source(tiny_file("comfyquant_nvfp4").path))
    steps = []
    rewrite.write(tmp_path / "a.safetensors", steps.append)
    assert [step.nbytes for step in steps] == sorted(step.nbytes for step in steps)
    assert steps[-1].nbytes == rewrite.nbytes
    assert {step.name for step in steps} == tiny.source().keys()
