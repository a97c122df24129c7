"""The layouts of quantized layers: each recognised, checked and put into `Layer`'s words.

A new layout is a function, and a line where it is recognised.
Sources (layouts only): ComfyUI comfy/quant_ops.py and comfy/ops.py @ a125cd8; comfy-kitchen
float_utils.py, int8_utils.py; LightX2V tools/convert; musubi-tuner fp8_optimization_utils.py;
optimum-quanto; torchao prototype/safetensors (0.18).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from cfgen.checkpoint.formats.base import Entry
from cfgen.checkpoint.quant.declared import Quantizer
from cfgen.checkpoint.quant.layer import ACTIVATIONS, FLOAT8, SMALL, Layer, LayerParts, plain_layer
from cfgen.checkpoint.quant.noted import check_noted, check_torchao, torchao_type
from cfgen.ops.quant.weights import FP4_BLOCK


def recognise(found: LayerParts, *, declared: bool, quantizer: Quantizer | None = None) -> Layer:
    """The layer, by what is declared of it and by what stands beside its weight.

    Args:
        found: what stands in the file under it.
        declared: whether the file declares it in ComfyUI's words.
        quantizer: who quantized the file, where that is declared.

    Raises:
        CheckpointError: no layout has these parts, or one is missing, left over or of a
            wrong shape.
    """
    parts = found.names
    modelopt = quantizer is not None and quantizer.layout == "ModelOpt"
    if declared and modelopt:
        assert quantizer is not None
        raise found.error(
            f"it is declared twice, in ComfyUI's words and as ModelOpt's {quantizer.algorithm} by "
            f"{quantizer.where}, and the two lay out 4-bit weights differently"
        )
    if declared:
        return _comfy(found)
    if quantizer is not None and modelopt and "weight_scale" in parts:
        return _modelopt(found, quantizer)
    if "data" in parts or "data_scale" in parts:
        return _scaled(found, "quanto", values="data", scale="data_scale")
    if "qdata" in parts or "qdata_scale" in parts:
        return _torchao(found)
    if "global_scale" in parts or "alpha" in parts:
        return _lightx2v_fp4(found)
    if "weight_scale_2" in parts:
        raise found.error(
            "its 4-bit weight fits two layouts that nothing in the file tells apart: ComfyUI's "
            "nvfp4 (first column in the high half of a byte, scales in tiles) and NVIDIA "
            "ModelOpt's NVFP4 (first column in the low half, scales in rows)",
            "take a file with comfy_quant markers, or put the config.json of ModelOpt's export "
            "(with its quantization_config) beside this one",
        )
    if "scale_weight" in parts:
        entry = found.entry("scale_weight")
        blocks = len(entry.shape) == 3
        return _scaled(found, "musubi" if blocks else "fp8_scaled", scale="scale_weight")
    if "weight_scale" in parts:
        return _scaled(found, "LightX2V", scale="weight_scale")
    return _bare(found)


def _bare(found: LayerParts) -> Layer:
    """A weight without a scale."""
    entry = found.entry("weight")
    if extra := sorted(set(found.names) - {"weight", *ACTIVATIONS}):
        raise found.error(f"{found.names[extra[0]]} stands beside a weight without a scale")
    matrix = entry.kind in FLOAT8 and len(entry.shape) > 1
    if entry.kind in SMALL and found.strict:
        raise found.error(f"its weight is {entry.kind} and its scale is missing")
    if matrix:
        return found.layer("plain fp8", "scaled", {"values": "weight"})
    return plain_layer(found.file, f"{found.module}.weight", found.names["weight"])


def _scaled(
    found: LayerParts, layout: str, *, scale: str, values: str = "weight", **more: object
) -> Layer:
    """Small values times a scale."""
    entry, beside = found.entry(values), found.entry(scale)
    allowed = more.pop("kinds", SMALL)
    assert isinstance(allowed, tuple)
    if entry.kind not in allowed or len(entry.shape) < 2:
        raise found.error(
            f"its weight must be a matrix of {' or '.join(allowed)}, got {entry.kind} "
            f"{list(entry.shape)}"
        )
    if not beside.is_float:
        raise found.error(f"its scale must be floats, got {beside.kind} {list(beside.shape)}")
    _check_scale(found, entry.shape, beside.shape)
    return found.layer(layout, "scaled", {"values": values, "scale": scale}, **more)


def _check_scale(found: LayerParts, shape: tuple[int, ...], scale: tuple[int, ...]) -> None:
    """Refuse scales that are not one for all, for each row or for each block of a weight."""
    rows, columns = shape[0], shape[1]
    if math.prod(scale) == 1 or (scale[0] == rows and math.prod(scale) == rows):
        return
    grid = scale[:2] if len(scale) == 2 or (len(scale) == 3 and scale[2] == 1) else (0, 0)
    if len(shape) == 2 and all(grid) and not rows % grid[0] and not columns % grid[1]:
        return
    raise found.error(
        f"its scale must be of shape [], [{rows}], [{rows}, 1] or one for each block of its "
        f"weight {list(shape)}, got {list(scale)}"
    )


def _comfy(found: LayerParts) -> Layer:
    """A layer that the file declares in ComfyUI's words."""
    settings = dict(found.settings)
    told = settings.pop("format", None)
    full = bool(settings.pop("full_precision_matrix_mult", False))
    known = ", ".join(COMFY)
    if told in COMFY_REFUSED:
        raise found.error(
            f"its format {told} is one that cfgen does not compute with; it reads {known}"
        )
    read = COMFY.get(str(told))
    if read is None:
        raise found.error(f"unknown format {told!r}; known: {known}")
    return read(found, settings, full)


def _comfy_scaled(kinds: tuple[str, ...]) -> Callable[[LayerParts, dict[str, object], bool], Layer]:
    def read(found: LayerParts, settings: dict[str, object], full: bool) -> Layer:
        rotated = bool(settings.pop("convrot", False))
        size = settings.pop("convrot_groupsize", 256)
        columns = math.prod(found.entry("weight").shape[1:])
        if rotated and not (isinstance(size, int) and _power_of_4(size) and columns % size == 0):
            raise found.error(
                f"its rotation by {size!r} columns must be a power of 4 that divides {columns}"
            )
        layer = _scaled(
            found,
            "ComfyUI native",
            scale="weight_scale",
            kinds=kinds,
            rotation=int(str(size)) if rotated else 0,
            full_precision=full,
        )
        check_noted(found, settings, layer.shape)
        return layer

    return read


def _power_of_4(size: int) -> bool:
    return size >= 4 and size & (size - 1) == 0 and size.bit_length() % 2 == 1


def _comfy_mx(found: LayerParts, settings: dict[str, object], full: bool) -> Layer:
    weight, scale = found.entry("weight"), found.entry("weight_scale")
    if weight.kind != "float8_e4m3fn" or len(weight.shape) != 2 or weight.shape[1] % 32:
        raise found.error(
            f"its weight must be fp8 in blocks of 32, got {weight.kind} {list(weight.shape)}"
        )
    if scale.kind not in ("uint8", "float8_e8m0fnu"):
        raise found.error(f"its weight_scale must be exponents in bytes, got {scale.kind}")
    _need_blocked(found, scale, weight.shape[0], weight.shape[1] // 32)
    check_noted(found, settings, weight.shape, block=32)
    used = {"values": "weight", "scale": "weight_scale"}
    return found.layer("ComfyUI native", "mx", used, format="mxfp8", full_precision=full)


def _comfy_fp4(found: LayerParts, settings: dict[str, object], full: bool) -> Layer:
    layer = _fp4(found, "ComfyUI native", full_precision=full)
    check_noted(found, settings, layer.shape, block=FP4_BLOCK)
    return layer


def _fp4(found: LayerParts, layout: str, **more: object) -> Layer:
    _check_fp4(found)
    _need_numbers(found, ["weight_scale_2"])
    shape = found.entry("weight").shape
    return found.layer(
        layout,
        "fp4",
        {"values": "weight", "scale": "weight_scale", "scale_2": "weight_scale_2"},
        format="nvfp4",
        shape=(shape[0], 2 * shape[1]),
        **more,
    )


def _modelopt(found: LayerParts, quantizer: Quantizer) -> Layer:
    """A layer of NVIDIA ModelOpt's export: scales of blocks lie row by row, low halves first."""
    algorithm = quantizer.of(found.module)
    fp4 = found.entry("weight").kind == "uint8"
    if not algorithm or fp4 != algorithm.endswith("NVFP4"):
        told = algorithm or "left plain"
        raise found.error(
            f"its weight is {found.entry('weight').kind}, and {quantizer.where} says {told}"
        )
    if not fp4:
        return _scaled(found, "ModelOpt", scale="weight_scale", kinds=("float8_e4m3fn",))
    if quantizer.processed:
        raise found.error(
            "its scales fit two layouts that nothing tells apart: ModelOpt went over the file "
            f"after its export ({quantizer.where}) and may have put them in tiles",
            "take ModelOpt's export as it is, with its config.json",
        )
    weight, scale = found.entry("weight"), found.entry("weight_scale")
    _need_numbers(found, ["weight_scale_2"])
    rows, columns = weight.shape[0], 2 * math.prod(weight.shape[1:])
    flat = (rows, columns // FP4_BLOCK)
    if len(weight.shape) != 2 or columns % FP4_BLOCK or scale.shape != flat:
        raise found.error(
            f"its weight_scale must be of shape {list(flat)} for ModelOpt's NVFP4 weight "
            f"{list(weight.shape)}, got {list(scale.shape)}"
        )
    if scale.kind != "float8_e4m3fn":
        raise found.error(f"its weight_scale must be fp8, got {scale.kind}")
    return found.layer(
        "ModelOpt",
        "fp4",
        {"values": "weight", "scale": "weight_scale", "scale_2": "weight_scale_2"},
        format="nvfp4",
        shape=(rows, columns),
        low_first=True,
        flat=True,
    )


def _lightx2v_fp4(found: LayerParts) -> Layer:
    _check_fp4(found)
    shape = found.entry("weight").shape
    used = {"values": "weight", "scale": "weight_scale"}
    if "global_scale" in found.names:
        used["global_scale"] = "global_scale"
    for part in ("alpha", "input_global_scale"):
        if part in found.names:
            used[part] = part
    if "global_scale" not in used and not {"alpha", "input_global_scale"} <= set(used):
        raise found.error("it has neither weight_global_scale nor alpha with input_global_scale")
    _need_numbers(found, [part for part in used if part not in ("values", "scale")])
    return found.layer(
        "LightX2V",
        "fp4",
        used,
        format="nvfp4",
        shape=(shape[0], 2 * shape[1]),
        low_first=True,
    )


def _check_fp4(found: LayerParts) -> None:
    weight, scale = found.entry("weight"), found.entry("weight_scale")
    if weight.kind != "uint8" or len(weight.shape) != 2 or weight.shape[1] % (FP4_BLOCK // 2):
        raise found.error(
            f"its weight must be pairs of 4-bit floats in blocks of {FP4_BLOCK}, got "
            f"{weight.kind} {list(weight.shape)}"
        )
    if scale.kind not in ("float8_e4m3fn", "uint8"):
        raise found.error(f"its weight_scale must be fp8, got {scale.kind}")
    _need_blocked(found, scale, weight.shape[0], weight.shape[1] * 2 // FP4_BLOCK)


def _need_numbers(found: LayerParts, parts: Sequence[str]) -> None:
    """Refuse scales of a whole weight that are not one float each."""
    for part in parts:
        entry = found.entry(part)
        if not entry.is_float or math.prod(entry.shape) != 1:
            raise found.error(f"its {part} must be one float, got {entry.kind} {list(entry.shape)}")


def _need_blocked(found: LayerParts, scale: Entry, rows: int, columns: int) -> None:
    """Refuse scales that are not padded to whole tiles of 128 x 4."""
    wanted = (-(-rows // 128) * 128, -(-columns // 4) * 4)
    if scale.nbytes != wanted[0] * wanted[1]:
        raise found.error(
            f"its weight_scale must have {list(wanted)} values, got {list(scale.shape)}"
        )


COMFY: Mapping[str, Callable[[LayerParts, dict[str, object], bool], Layer]] = {
    "float8_e4m3fn": _comfy_scaled(("float8_e4m3fn",)),
    "float8_e5m2": _comfy_scaled(("float8_e5m2",)),
    "float8_e4m3fn_rowwise": _comfy_scaled(("float8_e4m3fn",)),
    "float8_e4m3fn_blockwise": _comfy_scaled(("float8_e4m3fn",)),
    "int8_tensorwise": _comfy_scaled(("int8",)),
    "int8_blockwise": _comfy_scaled(("int8",)),
    "mxfp8": _comfy_mx,
    "nvfp4": _comfy_fp4,
}
"""How each format of ComfyUI's native layout is read."""

COMFY_REFUSED = ("convrot_w4a4", "asym_w4a8_int8", "awq_w4a16", "svdquant_w4a4")

TORCHAO = ("Int8Tensor", "Float8Tensor")
"""Tensor subclasses of torchao that are read."""


def _torchao(found: LayerParts) -> Layer:
    told, settings = torchao_type(found)
    if told not in TORCHAO:
        raise found.error(f"torchao's {told} is not read; {' and '.join(TORCHAO)} are")
    entry, scale = found.entry("qdata"), found.entry("qdata_scale")
    if entry.kind not in SMALL or len(entry.shape) != 2 or not scale.is_float:
        raise found.error(
            f"its values are {entry.kind} {list(entry.shape)}, its scale is {scale.kind}"
        )
    _check_scale(found, entry.shape, scale.shape)
    check_torchao(found, settings, entry.shape, scale.shape)
    used = {"values": "qdata", "scale": "qdata_scale"}
    if "zero_point" in found.names:
        used["zero_point"] = "zero_point"
    return found.layer("torchao", "scaled", used)
