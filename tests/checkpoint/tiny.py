"""A one-block Wan generator in the layouts that people have on disk, written without cfgen.

The files that `write` makes know what a reader must get from them; `packing` says how.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from tests.checkpoint import packing
from tests.checkpoint.packing import (
    BF16,
    E4M3,
    E5M2,
    Array,
    Arrays,
    Header,
    Pack,
    comfy_header,
    f32,
    no_header,
    quanto_header,
    torchao_header,
    with_scale,
    write_safetensors,
)

DIM, FFN, TEXT, FREQ = 256, 512, 24, 16
"""Sizes of the generator; K-quants want rows of whole multiples of 256."""


@functools.cache
def source() -> Arrays:
    """The weights before anything is packed, float32 by Wan's names."""
    noise = np.random.default_rng(0)
    weights: Arrays = {}

    def linear(name: str, rows: int, columns: int) -> None:
        weights[name + ".weight"] = f32(noise.standard_normal((rows, columns)) / math.sqrt(columns))
        small(name + ".bias", rows)

    def small(name: str, *shape: int) -> None:
        weights[name] = f32(noise.standard_normal(shape) * 0.02)

    small("patch_embedding.weight", DIM, 16, 1, 2, 2)
    small("patch_embedding.bias", DIM)
    linear("text_embedding.0", DIM, TEXT)
    linear("text_embedding.2", DIM, DIM)
    linear("time_embedding.0", DIM, FREQ)
    linear("time_embedding.2", DIM, DIM)
    linear("time_projection.1", 6 * DIM, DIM)
    small("blocks.0.modulation", 1, 6, DIM)
    for attention in ("blocks.0.self_attn", "blocks.0.cross_attn"):
        for matrix in "qkvo":
            linear(f"{attention}.{matrix}", DIM, DIM)
        small(f"{attention}.norm_q.weight", DIM)
        small(f"{attention}.norm_k.weight", DIM)
    small("blocks.0.norm3.weight", DIM)
    small("blocks.0.norm3.bias", DIM)
    linear("blocks.0.ffn.0", FFN, DIM)
    linear("blocks.0.ffn.2", DIM, FFN)
    small("head.modulation", 1, 2, DIM)
    linear("head.head", 64, DIM)
    return weights


def is_packed(name: str) -> bool:
    """Whether tools quantize a weight: matrices inside the blocks, nothing else."""
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name


@dataclass(frozen=True)
class Style:
    """How a tool writes a generator.

    Attributes:
        layout: what cfgen must call it.
        format: likewise.
        pack: packs a weight.
        error: how far a weight may be from its source, over the largest of its matrix.
        prefix: what stands before every name.
        extra: tensors that belong to no layer.
        header: makes the metadata.
    """

    layout: str
    format: str
    pack: Pack
    error: float
    prefix: str = ""
    extra: Arrays = field(default_factory=dict)
    header: Header = no_header


@dataclass(frozen=True)
class Packed:
    """Tensors and metadata of a file, and the weights by Wan's names that a reader must get."""

    tensors: Arrays
    metadata: dict[str, str]
    weights: Arrays

    def write(self, path: Path) -> Path:
        return write_safetensors(path, self.tensors, self.metadata)


@functools.cache
def _packed(pack: Pack, name: str) -> tuple[Arrays, Array]:
    return pack(source()[name])


def pack(style: Style, rename: Callable[[str], str] = str) -> Packed:
    """The generator in a style, each name (also those in the header) turned by `rename`."""

    def named(name: str) -> str:
        return style.prefix + rename(name)

    tensors = {named(name): array for name, array in style.extra.items()}
    weights: Arrays = {}
    layers: list[str] = []
    for name, weight in source().items():
        if is_packed(name):
            layer = name.removesuffix(".weight")
            parts, weights[name] = _packed(style.pack, name)
            tensors |= {named(f"{layer}.{end}"): part for end, part in parts.items()}
            layers.append(named(name).removesuffix(".weight"))
        else:
            wide = weight.ndim == 3 or "norm" in name
            tensors[named(name)] = weight if wide else weight.astype(BF16)
            weights[name] = f32(tensors[named(name)])
    others = [named(name) for name in source() if not is_packed(name)]
    return Packed(tensors, style.header(layers, others), weights)


COMFY, LIGHT, E4, E5 = "ComfyUI native", "LightX2V", "float8_e4m3fn", "float8_e5m2"
INT8: dict[str, object] = {"format": "int8_tensorwise"}
ROTATED = INT8 | {"convrot": True, "convrot_groupsize": 256}

NATIVE = Style("plain", "bfloat16", packing.plain(BF16), 0.01)
ONE_FP8 = with_scale(E4M3, "weight_scale", rows=None, shape=())
LEGACY = Style(
    "fp8_scaled",
    E4,
    with_scale(E4M3, "scale_weight", rows=None, shape=()),
    0.05,
    extra={"scaled_fp8": np.zeros(0, E4M3)},
)


def comfy(kind: str, pack: Pack, error: float, settings: dict[str, object] | str) -> Style:
    """A style with a `comfy_quant` beside each layer."""
    told = {"format": settings} if isinstance(settings, str) else settings
    return Style(COMFY, kind, packing.with_marker(pack, told), error)


def rows(dtype: type, shape: tuple[int, ...] | None = None) -> Pack:
    return with_scale(dtype, "weight_scale", shape=shape)


def tiles(dtype: type) -> Pack:
    return with_scale(dtype, "weight_scale", rows=64, columns=64)


STYLES: dict[str, Style] = {
    "native_bf16": NATIVE,
    "native_fp16": replace(NATIVE, format="float16", pack=packing.plain(np.float16)),
    "native_fp32": replace(NATIVE, format="float32", pack=packing.plain(np.float32), error=0),
    "prefix_model_diffusion_model": replace(NATIVE, prefix="model.diffusion_model."),
    "prefix_model": replace(NATIVE, prefix="model."),
    "prefix_diffusion_model": replace(NATIVE, prefix="diffusion_model."),
    "prefix_generator_model": replace(NATIVE, prefix="generator.model."),
    "prefix_fsdp": replace(NATIVE, prefix="model._fsdp_wrapped_module."),
    "fp8_plain_e4m3": Style("plain fp8", E4, packing.plain(E4M3), 0.1),
    "fp8_plain_e5m2": Style("plain fp8", E5, packing.plain(E5M2), 0.2),
    "fp8_scaled_kijai": LEGACY,
    "fp8_scaled_nomarker": replace(LEGACY, extra={}),
    "fp8_scaled_full_precision": replace(LEGACY, extra={"scaled_fp8": np.zeros(2, np.float32)}),
    "fp8_scaled_musubi_block64": Style("musubi", E4, packing.musubi, 0.05),
    "comfyquant_fp8": comfy(E4, ONE_FP8, 0.05, E4),
    "comfyquant_fp8_e5m2": comfy(
        E5, with_scale(E5M2, "weight_scale", rows=None, shape=(1,)), 0.1, E5
    ),
    "comfyquant_fp8_headeronly": Style(
        COMFY, E4, ONE_FP8, 0.05, header=comfy_header({"format": E4})
    ),
    "comfyquant_fp8_rowwise": comfy(E4, rows(E4M3, (-1,)), 0.05, "float8_e4m3fn_rowwise"),
    "comfyquant_fp8_blockwise": comfy(
        E4, tiles(E4M3), 0.05, {"format": "float8_e4m3fn_blockwise", "group_size": 64}
    ),
    "comfyquant_nvfp4": comfy("nvfp4", packing.nvfp4, 0.2, "nvfp4"),
    "comfyquant_mxfp8": comfy("mxfp8", packing.mxfp8, 0.08, "mxfp8"),
    "comfyquant_int8": comfy(
        "int8", with_scale(np.int8, "weight_scale", rows=None, shape=()), 0.01, INT8
    ),
    "comfyquant_int8_convrot": comfy("int8", packing.rotated(256), 0.02, ROTATED),
    "comfyquant_int8_convrot_64": comfy(
        "int8", packing.rotated(64), 0.02, {"params": ROTATED | {"convrot_groupsize": 64}}
    ),
    "comfyquant_int8_convrot_headeronly": Style(
        COMFY, "int8", packing.rotated(256), 0.02, header=comfy_header(ROTATED)
    ),
    "comfyquant_int8_blockwise": comfy(
        "int8", tiles(np.int8), 0.01, {"format": "int8_blockwise", "group_size": 64}
    ),
    "lightx2v_fp8": Style(LIGHT, E4, rows(E4M3), 0.05, prefix="model."),
    "lightx2v_int8": Style(LIGHT, "int8", rows(np.int8), 0.01, prefix="model."),
    "lightx2v_nvfp4": Style(LIGHT, "nvfp4", packing.lightx2v_nvfp4, 0.2, prefix="model."),
    "lightx2v_nvfp4_alpha": Style(
        LIGHT, "nvfp4", packing.without(packing.lightx2v_nvfp4, "weight_global_scale"), 0.2
    ),
    "quanto_int8": Style(
        "quanto", "int8", packing.quanto(np.int8), 0.02, header=quanto_header("qint8")
    ),
    "quanto_fp8": Style("quanto", E4, packing.quanto(E4M3), 0.05, header=quanto_header("qfloat8")),
    "torchao_int8": Style(
        "torchao", "int8", packing.torchao(np.int8), 0.01, header=torchao_header("Int8Tensor")
    ),
    "torchao_fp8": Style(
        "torchao", E4, packing.torchao(E4M3), 0.05, header=torchao_header("Float8Tensor")
    ),
}
"""Safetensors files by their names without the ending."""

MADE = (Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)
"""GGML's formats that gguf-py can write."""

HALVES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_NL: (0,),
    Kind.IQ4_XS: (0,),
}
"""Formats that it can only read: where the float16 numbers are in a block; the rest is free."""


def random_blocks(rows: int, columns: int, kind: Kind, seed: int = 1) -> Array:
    """Rows of blocks of random bits, with scales of about one thousandth: uint8 [rows, bytes]."""
    numbers, nbytes = gguf.GGML_QUANT_SIZES[kind]
    noise = np.random.default_rng(seed)
    blocks = noise.integers(0, 256, (rows * columns // numbers, nbytes), dtype=np.uint8)
    for place in HALVES[kind]:
        half = noise.uniform(5e-4, 2e-3, (len(blocks), 1)).astype(np.float16)
        blocks[:, place : place + 2] = half.view(np.uint8)
    return blocks.reshape(rows, -1)


GgufTensors = Mapping[str, tuple[Array, Kind]]


def pack_gguf(kind: Kind) -> tuple[GgufTensors, Arrays]:
    """Tensors of a GGUF file with their types, and the weights that a reader must get."""
    tensors: dict[str, tuple[Array, Kind]] = {}
    weights: Arrays = {}
    for name, weight in source().items():
        used = kind if is_packed(name) else Kind.F32
        if used in HALVES:
            found = random_blocks(*weight.shape, used)
        else:
            found = gguf.quants.quantize(weight, used)
        tensors[name] = (found, used)
        weights[name] = gguf.quants.dequantize(found, used).reshape(weight.shape)
    return tensors, weights


def write_gguf(
    path: Path,
    tensors: GgufTensors,
    *,
    architecture: str = "wan",
    arrays: Mapping[str, list[int]] | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)  # which writes no such key for ""
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q8_0))
    for key, numbers in (arrays or {}).items():
        writer.add_array(key, numbers)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@dataclass(frozen=True)
class Tiny:
    """A file: where it lies, what a reader must get from it and what cfgen must call it."""

    path: Path
    weights: Arrays
    layout: str
    format: str
    error: float | None


NAMES = (*STYLES, *(f"gguf_{kind.name}" for kind in (*MADE, *HALVES)))
"""Every file that `write` makes."""


def write(name: str, folder: Path) -> Tiny:
    """Write one of the files in `NAMES`."""
    if name in STYLES:
        style = STYLES[name]
        packed = pack(style)
        path = packed.write(folder / f"{name}.safetensors")
        return Tiny(path, packed.weights, style.layout, style.format, style.error)
    kind = Kind[name.removeprefix("gguf_")]
    tensors, weights = pack_gguf(kind)
    path = write_gguf(folder / f"{name}.gguf", tensors)
    plain = {Kind.F16: "float16", Kind.BF16: "bfloat16"}.get(kind)
    error = 0.25 if kind in MADE else None
    return Tiny(path, weights, "plain" if plain else "GGUF", plain or kind.name, error)


def write_hostile(folder: Path) -> dict[str, Path]:
    """Files that a loader must refuse, by what is wrong with them."""
    native, legacy = pack(NATIVE).tensors, pack(LEGACY).tensors
    made = {
        "missing scale": {k: v for k, v in legacy.items() if k != "blocks.0.ffn.2.scale_weight"},
        "orphan scale": native | {"blocks.0.ffn.0.scale_weight": np.array(1.0, np.float32)},
        "no patch embedding": {k: v for k, v in native.items() if "patch_embedding" not in k},
    }
    paths = {
        what: write_safetensors(folder / f"{what}.safetensors", tensors)
        for what, tensors in made.items()
    }
    whole = write_safetensors(folder / "whole.safetensors", native).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64
    contents = {
        "truncated": whole[: len(whole) // 2],
        "huge header": (1 << 60).to_bytes(8, "little") + b"{}",
        "LFS pointer": pointer + b"\nsize 5676070424\n",
        "web page": b"<!DOCTYPE html><html>Access to model is restricted</html>",
    }
    for what, content in contents.items():
        paths[what] = folder / f"{what}.safetensors"
        paths[what].write_bytes(content)
    return paths
