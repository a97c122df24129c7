"""Layers read from their files: values and scales in the order that `ops.quantized` takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.formats.base import Container
from cfgen.checkpoint.quant.layer import CONVERT, Layer
from cfgen.errors import CheckpointError
from cfgen.ops.quant.weights import FP4_BLOCK, AnyQuantized, Fp4Weight, GgmlWeight, ScaledWeight


def read_layer(layer: Layer, file: Container) -> Tensor | AnyQuantized:
    """Read a tensor: as it stands if it is plain, else with its values and scales in order.

    Raises:
        CheckpointError: the file cannot be read, or a scale is not finite.
    """
    parts = {role: file.read(raw) for role, raw in layer.parts.items()}
    values = parts["values"]
    match layer.store:
        case "plain":
            return values
        case "ggml":
            stored = GgmlWeight(values, layer.format)
            matrix = len(layer.shape) == 2
            return stored if matrix else stored.dequantize(torch.float32).view(layer.shape)
        case "scaled":
            return _read_scaled(layer, parts, file.path)
        case "mx":
            rows, columns = layer.shape[0], layer.shape[1] // 32
            exponents = from_blocked(parts["scale"].view(torch.uint8), rows, columns)
            scale = exponents.view(torch.float8_e8m0fnu)
            _finite(layer, file.path, scale)
            return ScaledWeight(values, scale)
        case "fp4":
            return _read_fp4(layer, parts, file.path)


def _read_scaled(layer: Layer, parts: Mapping[str, Tensor], path: Path) -> ScaledWeight:
    values = parts["values"]
    scale = parts.get("scale")
    if scale is None:
        return ScaledWeight(values, torch.ones(1, 1))
    if "zero_point" in parts and bool(parts["zero_point"].any()):
        raise _bad(layer, path, "its zero point is not 0; asymmetric int8 is not read")
    _finite(layer, path, scale)
    rows = values.shape[0]
    if scale.numel() == 1:
        grid = (1, 1)
    elif scale.numel() == rows and scale.shape[0] == rows:
        grid = (rows, 1)
    else:
        grid = (scale.shape[0], scale.shape[1])
    return ScaledWeight(values, scale.reshape(grid), layer.rotation)


def _read_fp4(layer: Layer, parts: Mapping[str, Tensor], path: Path) -> Fp4Weight:
    packed = parts["values"]
    if layer.low_first:
        packed = packed << 4 | packed >> 4
    rows, columns = layer.shape[0], layer.shape[1] // FP4_BLOCK
    blocks = parts["scale"].view(torch.uint8)
    if not layer.flat:
        blocks = from_blocked(blocks, rows, columns)
    block_scale = blocks.view(torch.float8_e4m3fn)
    _finite(layer, path, block_scale)
    _agree(layer, parts, path)
    if "scale_2" in parts:
        scale = parts["scale_2"].float()
    elif "global_scale" in parts:
        scale = 1 / parts["global_scale"].float()
    else:
        scale = parts["alpha"].float() * parts["input_global_scale"].float()
    _finite(layer, path, scale)
    return Fp4Weight(packed, block_scale, scale.reshape(1))


def _agree(layer: Layer, parts: Mapping[str, Tensor], path: Path) -> None:
    """Refuse scales that a layer says twice and differently."""
    told = [parts.get(part) for part in ("global_scale", "alpha", "input_global_scale")]
    if all(scale is not None for scale in told):
        product = float(math.prod(scale.double() for scale in told if scale is not None))
        if abs(product - 1) > 0.01:
            raise _bad(
                layer,
                path,
                f"its weight_global_scale and its alpha differ: their product with "
                f"input_global_scale is {product:g}, not 1",
            )


def _finite(layer: Layer, path: Path, scale: Tensor) -> None:
    if not bool(torch.isfinite(scale.float()).all()):
        raise _bad(layer, path, "its scale is not finite")


def _bad(layer: Layer, path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: quantized layer {layer.name}: {reason}", CONVERT)


def from_blocked(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Scales [rows, columns] out of the order in which tensor cores read them, padded to 128 x 4.

    Source: comfy-kitchen float_utils.py (cuBLAS's block-scaling layout), turned around.
    """
    tall, wide = -(-rows // 128), -(-columns // 4)
    tiles = scales.reshape(-1, 32, 4, 4).transpose(1, 2).reshape(tall, wide, 128, 4)
    return tiles.permute(0, 2, 1, 3).reshape(tall * 128, wide * 4)[:rows, :columns].contiguous()


def to_blocked(scales: Tensor) -> Tensor:
    """The other way of `from_blocked`: [rows, columns] to the padded order, same rank."""
    rows, columns = scales.shape
    tall, wide = -(-rows // 128), -(-columns // 4)
    padded = scales.new_zeros(tall * 128, wide * 4)
    padded[:rows, :columns] = scales
    tiles = padded.reshape(tall, 128, wide, 4).permute(0, 2, 1, 3).reshape(-1, 4, 32, 4)
    return tiles.transpose(1, 2).reshape(tall * 128, wide * 4)
