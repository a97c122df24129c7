"""How other tools pack a matrix and declare it, and what a reader must get back.

Written in NumPy without cfgen. Sources (layouts only): comfy-kitchen float_utils.py, int8_utils.py
and backends/eager (nvfp4, mxfp8, blocked scales, rotation); WanVideoWrapper fp8_optimization.py
(`scale_weight`); LightX2V tools/convert; musubi-tuner fp8_optimization_utils.py; mmgp
safetensors2.py (quanto); torchao prototype/safetensors (0.18); silveroxides convert_to_quant.
"""

from __future__ import annotations

import base64
import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

Array = np.ndarray
Arrays = dict[str, Array]

BF16, E4M3, E5M2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
TOP = {np.int8: 127.0, E4M3: 448.0, E5M2: 57344.0}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
BETWEEN = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)

Pack = Callable[[Array], tuple[Arrays, Array]]
"""A weight to the tensors that stand for it, by the ends of their names, and what they mean."""


def f32(array: Array) -> Array:
    return array.astype(np.float32)


def to_e2m1(numbers: Array) -> Array:
    """Codes of the nearest 4-bit floats; ties go to the even mantissa."""
    size = np.minimum(np.abs(numbers), 6.0)
    low = np.searchsorted(BETWEEN, size, side="left")
    high = np.searchsorted(BETWEEN, size, side="right")
    code = np.where((low == high) | (low % 2 == 0), low, high).astype(np.uint8)
    return code | np.signbit(numbers).astype(np.uint8) << 3


def from_e2m1(codes: Array) -> Array:
    return f32(np.where(codes & 8, -E2M1[codes & 7], E2M1[codes & 7]))


def to_blocked(scales: Array) -> Array:
    """Scales in the order in which tensor cores read them, padded to 128 x 4."""
    rows, columns = scales.shape
    tall, wide = -(-rows // 128), -(-columns // 4)
    padded = np.zeros((tall * 128, wide * 4), scales.dtype)
    padded[:rows, :columns] = scales
    tiles = padded.reshape(tall, 128, wide, 4).transpose(0, 2, 1, 3).reshape(-1, 4, 32, 4)
    return np.ascontiguousarray(tiles.swapaxes(1, 2)).reshape(tall * 128, wide * 4)


@functools.cache
def hadamard(size: int) -> Array:
    first = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], np.float32)
    matrix = first
    while len(matrix) < size:
        matrix = np.kron(matrix, first)
    return f32(matrix / math.sqrt(size))


def turned(weight: Array, size: int) -> Array:
    """Groups of columns turned by a Hadamard matrix."""
    return (weight.reshape(len(weight), -1, size) @ hadamard(size).T).reshape(weight.shape)


def marker(**settings: object) -> Array:
    """A `comfy_quant` tensor."""
    return np.frombuffer(json.dumps(settings).encode(), np.uint8)


def amax(weight: Array, n: int, k: int) -> Array:
    """The largest number of each of n x k blocks."""
    rows, columns = weight.shape
    return np.abs(weight).reshape(n, rows // n, k, columns // k).max((1, 3))


def spread(scale: Array, shape: tuple[int, ...]) -> Array:
    """A scale [n, k] for every number of a weight."""
    n, k = scale.shape
    return np.repeat(np.repeat(f32(scale), shape[0] // n, 0), shape[1] // k, 1)


def divided(weight: Array, scale: Array, dtype: type) -> Array:
    """A weight over its scale [n, k] in a small dtype."""
    small = np.clip(weight / spread(scale, weight.shape), -TOP[dtype], TOP[dtype])
    return (np.rint(small) if dtype == np.int8 else small).astype(dtype)


def scaled(
    weight: Array, dtype: type, n: int, k: int, scale_dtype: type = np.float32
) -> tuple[Array, Array, Array]:
    """Values, their scales [n, k] and what they stand for."""
    scale = f32(amax(weight, n, k) / TOP[dtype]).astype(scale_dtype)
    small = divided(weight, f32(scale), dtype)
    return small, scale, f32(small) * spread(scale, weight.shape)


def plain(dtype: type) -> Pack:
    def pack(weight: Array) -> tuple[Arrays, Array]:
        return {"weight": weight.astype(dtype)}, f32(weight.astype(dtype))

    return pack


def with_scale(
    dtype: type,
    end: str,
    *,
    rows: int | None = 1,
    columns: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> Pack:
    """Values and scales under `end`, one for `rows` x `columns` numbers (None: for all of them)."""

    def pack(weight: Array) -> tuple[Arrays, Array]:
        n = weight.shape[0] // (rows or weight.shape[0])
        k = weight.shape[1] // (columns or weight.shape[1])
        small, scale, back = scaled(weight, dtype, n, k)
        return {"weight": small, end: scale if shape is None else scale.reshape(shape)}, back

    return pack


def with_marker(pack: Pack, settings: dict[str, object]) -> Pack:
    """As ComfyUI's files: each layer beside what declares it."""

    def packed(weight: Array) -> tuple[Arrays, Array]:
        parts, back = pack(weight)
        return parts | {"comfy_quant": marker(**settings)}, back

    return packed


def musubi(weight: Array) -> tuple[Arrays, Array]:
    parts, back = with_scale(E4M3, "scale_weight", columns=64)(weight)
    return parts | {"scale_weight": parts["scale_weight"][..., None]}, back


def rotated(size: int) -> Pack:
    """int8 with a scale a row, of a weight whose groups of columns were turned."""

    def pack(weight: Array) -> tuple[Arrays, Array]:
        small, scale, back = scaled(turned(weight, size), np.int8, len(weight), 1)
        return {"weight": small, "weight_scale": scale}, turned(back, size)

    return pack


def mxfp8(weight: Array) -> tuple[Arrays, Array]:
    rows, columns = weight.shape
    largest = np.maximum(amax(weight, rows, columns // 32) / 448, 2.0**-127)
    power = np.clip(np.ceil(np.log2(largest)), -127, 127)
    scale = f32(2.0**power)
    small = divided(weight, scale, E4M3)
    exponents = to_blocked((power + 127).astype(np.uint8))
    return {"weight": small, "weight_scale": exponents}, f32(small) * spread(scale, weight.shape)


def fp4(weight: Array, one: np.float32) -> tuple[Array, Array, Array]:
    """Codes, scales of blocks in tensor cores' order and what both mean under a scale for all."""
    rows, columns = weight.shape
    blocks = np.clip(amax(weight, rows, columns // 16) / 6 / one, 0, 448).astype(E4M3)
    total = np.repeat(f32(blocks) * one, 16, 1)
    codes = to_e2m1(np.divide(weight, total, out=np.zeros_like(weight), where=total > 0))
    return codes, to_blocked(blocks), from_e2m1(codes) * total


def nvfp4(weight: Array) -> tuple[Arrays, Array]:
    one = np.float32(np.abs(weight).max() / 2688)
    codes, blocks, back = fp4(weight, one)
    pairs = codes[:, ::2] << 4 | codes[:, 1::2]
    return {"weight": pairs, "weight_scale": blocks, "weight_scale_2": np.array(one)}, back


def lightx2v_nvfp4(weight: Array) -> tuple[Arrays, Array]:
    """Halves of bytes and the scale for all are the other way round than ComfyUI's."""
    inverse = np.float32(2688 / np.abs(weight).max())
    codes, blocks, back = fp4(weight, 1 / inverse)
    parts = {
        "weight": codes[:, 1::2] << 4 | codes[:, ::2],
        "weight_scale": blocks,
        "weight_global_scale": np.array(inverse),
        "input_global_scale": np.array(2.0, np.float32),
        "alpha": np.array(np.float32(0.5) / inverse),
    }
    return parts, back


def modelopt_nvfp4(weight: Array) -> tuple[Arrays, Array]:
    """NVIDIA ModelOpt 0.47's (qtensor/nvfp4_tensor.py): low halves first, scales row by row."""
    one = np.float32(np.abs(weight).max() / 2688)
    rows, columns = weight.shape
    blocks = np.clip(amax(weight, rows, columns // 16) / 6 / one, 0, 448).astype(E4M3)
    codes, _, back = fp4(weight, one)
    parts = {
        "weight": codes[:, 1::2] << 4 | codes[:, ::2],
        "weight_scale": blocks,
        "weight_scale_2": np.array(one),
        "input_scale": np.array(1.0, np.float32),
    }
    return parts, back


def without(pack: Pack, end: str) -> Pack:
    """A style that leaves one of its tensors out."""

    def packed(weight: Array) -> tuple[Arrays, Array]:
        parts, back = pack(weight)
        return {name: part for name, part in parts.items() if name != end}, back

    return packed


def quanto(dtype: type) -> Pack:
    def pack(weight: Array) -> tuple[Arrays, Array]:
        small, scale, back = scaled(weight, dtype, len(weight), 1, BF16)
        one = np.array(1.0, np.float32)
        parts = {"weight._data": small, "weight._scale": scale}
        return parts | {"input_scale": one, "output_scale": one}, back

    return pack


def torchao(dtype: type) -> Pack:
    def pack(weight: Array) -> tuple[Arrays, Array]:
        small, scale, back = scaled(weight, dtype, len(weight), 1)
        parts = {"_weight_qdata": small, "_weight_scale": scale}
        if dtype == np.int8:
            parts["_weight_zero_point"] = np.zeros((len(weight), 1), np.int8)
        return parts, back

    return pack


Header = Callable[[list[str], list[str]], dict[str, str]]
"""Names of the packed layers and of all other tensors to the metadata of a file."""


def no_header(_layers: list[str], _others: list[str]) -> dict[str, str]:
    return {}


def comfy_header(settings: Mapping[str, object]) -> Header:
    def header(layers: list[str], _others: list[str]) -> dict[str, str]:
        told = {"format_version": "1.0", "layers": dict.fromkeys(layers, settings)}
        return {"_quantization_metadata": json.dumps(told)}

    return header


def quanto_header(kind: str) -> Header:
    def header(layers: list[str], _others: list[str]) -> dict[str, str]:
        told = json.dumps(dict.fromkeys(layers, {"weights": kind, "activations": "none"}))
        packed = base64.b64encode(told.encode()).decode()
        return {"quantization_format": "quanto", "quantization_map_base64": packed}

    return header


TORCHAO = {
    "Int8Tensor": {"act_quant_kwargs": None, "reduce_range": False},
    "Float8Tensor": {
        "mm_config": None,
        "act_quant_kwargs": None,
        "kernel_preference": {"_type": "KernelPreference", "_data": "AUTO"},
    },
}
"""Attributes of torchao's tensors, as its release 0.18 writes them."""


def torchao_header(kind: str) -> Header:
    def header(layers: list[str], others: list[str]) -> dict[str, str]:
        dtype = {"_type": "torch.dtype", "_data": "bfloat16"}
        names = ["zero_point", "qdata", "scale"] if kind == "Int8Tensor" else ["qdata", "scale"]
        told: dict[str, dict[str, object]] = dict.fromkeys(others, {"_type": "Tensor"})
        for layer in layers:
            columns = 512 if layer.endswith((".ffn.2", ".ffn.net.2")) else 256
            data = {**TORCHAO.get(kind, {}), "block_size": [1, columns], "dtype": dtype}
            facts = {"_type": kind, "_data": data, "_tensor_data_names": names}
            told[f"{layer}.weight"] = facts
        header = {name: json.dumps(facts) for name, facts in told.items()}
        return header | {"tensor_names": json.dumps(list(told))}

    return header


CODES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(BF16): "BF16",
    np.dtype(E4M3): "F8_E4M3",
    np.dtype(E5M2): "F8_E5M2",
    np.dtype(ml_dtypes.float8_e8m0fnu): "F8_E8M0",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
}


def write_safetensors(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> Path:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place, data = 0, []
    for name, array in tensors.items():
        raw = array.tobytes()
        facts = {"dtype": CODES[array.dtype], "shape": list(array.shape)}
        header[name] = facts | {"data_offsets": [place, place + len(raw)]}
        place += len(raw)
        data.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))
    return path
