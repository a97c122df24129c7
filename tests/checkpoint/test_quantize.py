"""A quantized model is what its encoder made of it, in ComfyUI's layout, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfgen.checkpoint.convert.input import open_source
from cfgen.checkpoint.convert.quantize import LayerLoss, plan_quantize
from cfgen.checkpoint.formats.safetensors import open_safetensors
from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.checkpoint.networks.text_encoder import open_text_encoder
from cfgen.checkpoint.quant.layer import HEADER
from cfgen.errors import CheckpointError, UsageError
from cfgen.ops.quant.encode import ENCODINGS, loss_of
from tests.checkpoint import packing, tiny
from tests.checkpoint.encoders import encoder

TinyFile = Callable[[str], tiny.Tiny]

MATRICES = [name for name in tiny.source() if tiny.is_packed(name)]
FORMATS = list(ENCODINGS)

WORDS = {
    "int8": {"format": "int8_tensorwise"},
    "int8-convrot": {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256},
    "fp8": {"format": "float8_e4m3fn"},
    "fp8-e5m2": {"format": "float8_e5m2"},
    "mxfp8": {"format": "mxfp8"},
    "nvfp4": {"format": "nvfp4"},
}
"""What ComfyUI calls each format."""

PACKS = {
    "int8": packing.with_scale(np.int8, "weight_scale"),
    "int8-convrot": packing.rotated(256),
    "fp8": packing.with_scale(packing.E4M3, "weight_scale", rows=None, shape=()),
    "fp8-e5m2": packing.with_scale(packing.E5M2, "weight_scale", rows=None, shape=()),
    "mxfp8": packing.mxfp8,
    "nvfp4": packing.nvfp4,
}
"""The same formats written in NumPy, without cfgen."""


def quantized(
    path: Path,
    target: Path,
    format: str = "int8",
    *,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    requantize: bool = False,
) -> list[LayerLoss]:
    rewrite, losses = plan_quantize(
        open_source(path), format, keep=keep, only=only, dtype=dtype, requantize=requantize
    )
    rewrite.write(target)
    return losses


@pytest.fixture
def plain(tiny_file: TinyFile) -> Path:
    return tiny_file("native_fp32").path


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_read_back_is_what_was_encoded_bit_for_bit(
    format: str, plain: Path, tmp_path: Path
) -> None:
    target = tmp_path / "q.safetensors"
    quantized(plain, target, format)
    before, after = load_file(plain), open_generator(target)
    assert after.layers.keys() == before.keys()
    for name, weight in before.items():
        found = after.read(name)
        if name in MATRICES:
            assert not isinstance(found, Tensor)
            wanted = ENCODINGS[format].encode(weight).dequantize(torch.float32)
            assert torch.equal(found.dequantize(torch.float32), wanted), name
        else:
            assert isinstance(found, Tensor)
            assert torch.equal(found, weight), name
            assert found.dtype == weight.dtype
    load_generator(target)


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_is_the_one_that_other_tools_write(
    format: str, plain: Path, tmp_path: Path
) -> None:
    target = tmp_path / "q.safetensors"
    quantized(plain, target, format)
    tensors = load_file(target)
    wanted: packing.Arrays = {}
    for name in MATRICES:
        parts, _ = PACKS[format](tiny.source()[name])
        wanted |= {f"{name.removesuffix('weight')}{part}": array for part, array in parts.items()}
    rest = load_file(plain).keys() - set(MATRICES)
    markers = {name.removesuffix("weight") + "comfy_quant" for name in MATRICES}
    assert tensors.keys() == wanted.keys() | rest | markers
    for name, array in wanted.items():
        tensor = tensors[name]
        assert (packing.CODES[array.dtype], array.shape) == (code(target, name), tensor.shape)
        if format == "int8-convrot":
            apart = (tensor.float() - torch.from_numpy(array.astype(np.float32))).abs()
            assert apart.max() <= (1 if tensor.dtype == torch.int8 else 1e-6), name
            assert (apart > 1e-6).float().mean() < 0.001, name
        else:
            assert bits(tensor).numpy().tobytes() == array.tobytes(), name


def code(path: Path, name: str) -> str:
    with safe_open(path, "pt") as file:
        return str(file.get_slice(name).get_dtype())


@pytest.mark.parametrize("format", FORMATS)
def test_layers_are_declared_beside_them_and_in_the_header(
    format: str, plain: Path, tmp_path: Path
) -> None:
    target = tmp_path / "q.safetensors"
    quantized(plain, target, format)
    layers = [name.removesuffix(".weight") for name in MATRICES]
    with safe_open(target, "pt") as file:
        header = json.loads(file.metadata()[HEADER])
        assert header == {"format_version": "1.0", "layers": dict.fromkeys(layers, WORDS[format])}
        for layer in layers:
            text = bytes(file.get_tensor(f"{layer}.comfy_quant").tolist())
            assert json.loads(text) == WORDS[format]


@pytest.mark.parametrize("format", FORMATS)
def test_numbers_begin_where_their_size_divides(format: str, plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.safetensors"
    quantized(plain, target, format)
    file = open_safetensors(target)
    for name, entry in file.entries.items():
        assert entry.dtype is not None
        assert file.offsets[name] % entry.dtype.itemsize == 0, name


@pytest.mark.parametrize("format", FORMATS)
def test_losses_are_those_of_each_layer(format: str, plain: Path, tmp_path: Path) -> None:
    losses = quantized(plain, tmp_path / "q.safetensors", format)
    before = load_file(plain)
    assert [f"{item.layer}.weight" for item in losses] == MATRICES
    for item in losses:
        weight = before[f"{item.layer}.weight"]
        assert (item.format, item.shape) == (format, tuple(weight.shape))
        assert item.loss == loss_of(weight, ENCODINGS[format].encode(weight))


def test_layers_are_chosen_by_patterns(plain: Path, tmp_path: Path) -> None:
    def chosen(**patterns: Sequence[str]) -> set[str]:
        return {
            item.layer.removeprefix("blocks.0.")
            for item in quantized(plain, tmp_path / "q.safetensors", **patterns)
        }

    attention = {f"{a}_attn.{m}" for a in ("self", "cross") for m in "qkvo"}
    assert chosen() == attention | {"ffn.0", "ffn.2"}
    assert chosen(only=["ffn"]) == {"ffn.0", "ffn.2"}
    assert chosen(keep=[r"ffn\.2$", "_attn"]) == {"ffn.0"}
    assert chosen(only=["ffn", "self_attn"], keep=["[qkv]$"]) == {"ffn.0", "ffn.2", "self_attn.o"}


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        ({"keep": ["fnn"]}, "--keep 'fnn' fits no layer"),
        ({"only": ["norm_q"]}, "--only 'norm_q' fits no layer"),
        ({"only": ["ffn", "("]}, r"--only '\(' is no regular expression"),
        ({"keep": ["."]}, "no layer is left"),
        ({"only": ["ffn"], "keep": ["ffn"]}, "no layer is left"),
    ],
)
def test_patterns_that_do_nothing_are_refused(
    patterns: dict[str, list[str]], reason: str, plain: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        quantized(plain, tmp_path / "q.safetensors", **patterns)
    assert not list(tmp_path.iterdir())


def test_the_rest_may_get_a_dtype(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.safetensors"
    quantized(plain, target, "fp8", keep=["ffn"], dtype=torch.bfloat16)
    before, after = load_file(plain), load_file(target)
    for name, tensor in before.items():
        if name not in MATRICES or "ffn" in name:
            assert torch.equal(after[name], tensor.bfloat16()), name


@pytest.mark.parametrize("name", ["comfyquant_int8", "fp8_plain_e4m3", "gguf_Q4_K", "quanto_fp8"])
def test_a_quantized_source_is_refused_unless_asked_for(
    name: str, tiny_file: TinyFile, tmp_path: Path
) -> None:
    source, target = tiny_file(name).path, tmp_path / "q.safetensors"
    with pytest.raises(CheckpointError, match=r"quantized already .* in 10 of 10 layers") as caught:
        quantized(source, target)
    assert "--requantize" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())
    losses = quantized(source, target, requantize=True)
    before, after = open_generator(source), open_generator(target)
    for item in losses:
        stored, found = before.read(f"{item.layer}.weight"), after.read(f"{item.layer}.weight")
        assert not isinstance(stored, Tensor)
        assert not isinstance(found, Tensor)
        wanted = ENCODINGS["int8"].encode(stored.dequantize(torch.float32))
        assert torch.equal(found.dequantize(torch.float32), wanted.dequantize(torch.float32))


def test_two_formats_in_one_file_take_two_runs(plain: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    quantized(plain, first, "nvfp4", only=["ffn"])
    quantized(first, second, "fp8", only=["attn"])
    before, after = load_file(first), load_file(second)
    formats = {n: layer.format for n, layer in open_generator(second).layers.items()}
    assert {formats[name] for name in MATRICES if "ffn" in name} == {"nvfp4"}
    assert {formats[name] for name in MATRICES if "attn" in name} == {"float8_e4m3fn"}
    kept = [name for name in before if ".ffn." in name]
    assert len(kept) == 10
    assert all(torch.equal(bits(before[name]), bits(after[name])) for name in kept)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(
    bad: float, plain: Path, tmp_path: Path
) -> None:
    tensors = load_file(plain)
    tensors["blocks.0.ffn.2.weight"][7, 3] = bad
    save_file(tensors, tmp_path / "bad.safetensors")
    target = tmp_path / "q.safetensors"
    with pytest.raises(
        CheckpointError, match=r"bad\.safetensors: blocks\.0\.ffn\.2\.weight holds numbers that"
    ):
        quantized(tmp_path / "bad.safetensors", target)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]
    quantized(tmp_path / "bad.safetensors", target, keep=[r"ffn\.2"])


def test_shapes_that_do_not_fit_are_refused_by_name(
    state: dict[str, Tensor], folder: Callable[..., Path]
) -> None:
    path = folder(state) / "diffusion_pytorch_model.safetensors"
    reason = r"blocks\.0\.\w+\.\w+ cannot be nvfp4: its sides must be multiples \(rows of 16"
    with pytest.raises(CheckpointError, match=reason) as caught:
        quantized(path, path.with_name("q.safetensors"), "nvfp4")
    assert "--keep" in (caught.value.hint or "")
    quantized(path, path.with_name("q.safetensors"), "fp8")


def test_a_text_encoder_can_be_quantized_as_well(tmp_path: Path) -> None:
    tensors = encoder() | {"spiece_model": torch.arange(5, dtype=torch.uint8)}
    save_file(tensors, tmp_path / "te.safetensors")
    target = tmp_path / "q.safetensors"
    losses = quantized(tmp_path / "te.safetensors", target, "nvfp4")
    block = "encoder.block.0.layer."
    dense = {f"{block}1.DenseReluDense.{m}" for m in ("wi_0", "wi_1", "wo")}
    attention = {f"{block}0.SelfAttention.{m}" for m in "qkvo"}
    assert {item.layer for item in losses} == dense | attention
    network = open_text_encoder(target)
    assert network.extras == {"spiece_model": "spiece_model"}
    for name, tensor in tensors.items():
        if name.removesuffix(".weight") in dense | attention:
            assert network.layers[name].format == "nvfp4"
        else:
            assert torch.equal(load_file(target)[name], tensor)
