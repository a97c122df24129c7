"""Quantized weights in ComfyUI's native layout: what its files call them, and how they lie there.

Sources: ComfyUI QUANTIZATION.md and comfy/ops.py @ 0271a46 (`_load_quantized_module`); the formats
by row and by block: silveroxides/convert_to_quant, whose extension of ComfyUI reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from cfgen.checkpoint.quant.decode import to_blocked
from cfgen.ops.quant.encode import MX_BLOCK
from cfgen.ops.quant.weights import AnyQuantized, Fp4Weight, GgmlWeight, ScaledWeight

MARKER = "comfy_quant"
VERSION = "1.0"

Settings = Mapping[str, object]

NAMES = {
    (torch.int8, "all"): "int8_tensorwise",
    (torch.int8, "rows"): "int8_tensorwise",
    (torch.int8, "blocks"): "int8_blockwise",
    (torch.float8_e4m3fn, "all"): "float8_e4m3fn",
    (torch.float8_e4m3fn, "rows"): "float8_e4m3fn_rowwise",
    (torch.float8_e4m3fn, "blocks"): "float8_e4m3fn_blockwise",
    (torch.float8_e5m2, "all"): "float8_e5m2",
}
"""Formats by what is stored and what a scale is for."""

BEYOND = ("int8_blockwise", "float8_e4m3fn_rowwise", "float8_e4m3fn_blockwise")
"""Formats that ComfyUI reads with an extension only."""


def settings_of(weight: AnyQuantized, *, full_precision: bool = False) -> Settings | None:
    """What a layer's marker says of its weight; None if the layout has no word for it.

    Args:
        weight: the weight.
        full_precision: whether products with it are to be worked out in high precision.
    """
    found = _word(weight)
    if found is None or not full_precision:
        return found
    return {**found, "full_precision_matrix_mult": True}


def _word(weight: AnyQuantized) -> Settings | None:
    if isinstance(weight, GgmlWeight):
        return None
    if isinstance(weight, Fp4Weight):
        return {"format": "nvfp4"}
    if weight.scale.dtype == torch.float8_e8m0fnu:
        blocks = weight.shape[1] == MX_BLOCK * weight.scale.shape[1]
        mx = weight.values.dtype == torch.float8_e4m3fn and blocks and not weight.rotation
        return {"format": "mxfp8"} if mx else None
    kind, side = _scaling(weight)
    name = NAMES.get((weight.values.dtype, kind))
    if not weight.rotation:
        more = {"group_size": side} if side else {}
        return None if name is None else {"format": name, **more}
    if name != "int8_tensorwise":
        return None
    return {"format": name, "convrot": True, "convrot_groupsize": weight.rotation}


def _scaling(weight: ScaledWeight) -> tuple[str, int]:
    """What a scale is for (all numbers, a row, a square block) and the side of such a block."""
    rows, columns = weight.shape[:2]
    n, k = weight.scale.shape
    if (n, k) == (1, 1):
        return "all", 0
    if (n, k) == (rows, 1):
        return "rows", 0
    square = rows // n == columns // k
    return ("blocks", rows // n) if square else ("", 0)


def parts_of(weight: AnyQuantized, settings: Settings) -> dict[str, Tensor]:
    """The tensors of a layer by the last part of their names, its marker the last of them.

    Args:
        weight: one that the layout has a word for.
        settings: that word, with what else the marker is to say.
    """
    assert not isinstance(weight, GgmlWeight)
    if isinstance(weight, Fp4Weight):
        parts = {
            "weight": weight.packed,
            "weight_scale": _swizzled(weight.block_scale).view(torch.float8_e4m3fn),
            "weight_scale_2": weight.scale.float().reshape(()),
        }
    elif settings["format"] == "mxfp8":
        parts = {"weight": weight.values, "weight_scale": _swizzled(weight.scale)}
    else:
        parts = {"weight": weight.values, "weight_scale": _shaped(weight.scale.float(), settings)}
    return {**parts, MARKER: marker(settings)}


def _swizzled(scale: Tensor) -> Tensor:
    """Scales of one byte in the order in which tensor cores read them, uint8."""
    return to_blocked(scale.contiguous().view(torch.uint8))


def _shaped(scale: Tensor, settings: Settings) -> Tensor:
    """Scales in the shape that a format's readers expect: [], [N], [N, 1] or [n, k]."""
    if settings["format"] == "float8_e4m3fn_rowwise":
        return scale.reshape(-1)
    return scale.reshape(()) if scale.numel() == 1 else scale


def marker(settings: Settings) -> Tensor:
    """The tensor that declares a layer: JSON, with spaces up to whole words of 8 bytes.

    The spaces keep the tensors that follow in the file where numbers of any size may begin.
    """
    text = json.dumps(settings).encode()
    return torch.tensor(list(text + b" " * (-len(text) % 8)), dtype=torch.uint8)


def header(layers: Mapping[str, Settings]) -> str:
    """The text of `_quantization_metadata` for these layers."""
    return json.dumps({"format_version": VERSION, "layers": layers})
