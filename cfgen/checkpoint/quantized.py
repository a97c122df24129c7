"""Quantized layers: decoded one by one on reading, encoded in ComfyUI's native layout on writing.

A file says layer by layer how it was quantized: by a tensor `<layer>.comfy_quant` (UTF-8 JSON in
bytes) or in its header (`_quantization_metadata`). A new format is a function and a line in
`DECODERS`.
Source: ComfyUI comfy/quant_ops.py and comfy/ops.py @ a125cd8 (layout only).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.container import is_float, write
from cfgen.errors import CheckpointError

MARKER = "comfy_quant"
HEADER = "_quantization_metadata"
SCALES = ("weight_scale", "weight_scale_2", "scale_weight")
"""Last parts of names that mean nothing without a quantized weight beside them."""

CONVERT = "convert the file to plain safetensors, or take another one"


@dataclass(frozen=True, slots=True)
class Layer:
    """A quantized layer: a decoder takes every tensor it uses, so that what stays is seen."""

    name: str
    settings: Mapping[str, object]
    tensors: dict[str, Tensor]
    path: Path

    def take(self, part: str) -> Tensor:
        """The tensor `<layer>.<part>`, removed from what is left."""
        tensor = self.tensors.pop(f"{self.name}.{part}", None)
        if tensor is None:
            raise self.error(f"its {part} is missing")
        return tensor

    def error(self, reason: str, hint: str = CONVERT) -> CheckpointError:
        """An error that names file and layer."""
        return CheckpointError(f"{self.path}: quantized layer {self.name}: {reason}", hint)


def _int8_tensorwise(layer: Layer) -> Tensor:
    """W = weight * scale, with one scale for the layer or one a row."""
    allowed = {"format", "full_precision_matrix_mult", "convrot", "convrot_groupsize"}
    unknown = sorted(set(layer.settings) - allowed)
    if unknown:
        raise layer.error(f"int8_tensorwise does not know the setting {unknown[0]!r}")
    if layer.settings.get("convrot"):
        raise layer.error("its weight is rotated (convrot), which is not supported")
    weight, scale = layer.take("weight"), layer.take("weight_scale")
    if weight.dtype != torch.int8 or weight.ndim < 2:
        shape = list(weight.shape)
        raise layer.error(f"its weight must be an int8 matrix, got {weight.dtype} {shape}")
    rows = weight.shape[0]
    if scale.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)) or not is_float(scale):
        shape = list(scale.shape)
        raise layer.error(
            f"its weight_scale must be floats of shape [], [{rows}] or [{rows}, 1], got "
            f"{scale.dtype} {shape}"
        )
    if not bool(torch.isfinite(scale).all()):
        raise layer.error("its weight_scale is not finite")
    return weight.float() * scale.float().reshape(-1, *[1] * (weight.ndim - 1))


DECODERS: Mapping[str, Callable[[Layer], Tensor]] = {"int8_tensorwise": _int8_tensorwise}
"""How each format is decoded to float32."""


def decode(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    path: Path,
    *,
    native: Callable[[str], str],
    dtype_of: Callable[[str], torch.dtype],
) -> dict[str, Tensor]:
    """Plain tensors of a file.

    Args:
        tensors: what stands in the file, under native names.
        metadata: what its header says.
        path: the file, for messages.
        native: native name of a tensor, for the names in the header.
        dtype_of: dtype of a decoded weight, by its native name.

    Returns:
        every tensor by name: decoded where it was quantized, else as it stands.

    Raises:
        CheckpointError: a format is unknown, a part of a layer is missing or left over, or an
            integer tensor is not declared to be quantized.
    """
    rest = dict(tensors)
    decoded: dict[str, Tensor] = {}
    for name, settings in _declared(rest, metadata, native, path).items():
        layer = Layer(name, settings, rest, path)
        decoder = DECODERS.get(str(settings.get("format")))
        if decoder is None:
            known = ", ".join(DECODERS)
            raise layer.error(f"unknown format {settings.get('format')!r}; known: {known}")
        decoded[f"{name}.weight"] = decoder(layer).to(dtype_of(f"{name}.weight"))
    for name, tensor in rest.items():
        if name.rpartition(".")[2] in SCALES:
            raise CheckpointError(
                f"{path}: {name} belongs to no layer that is declared to be quantized", CONVERT
            )
        if not is_float(tensor):
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype} and nothing says how it was quantized", CONVERT
            )
    return rest | decoded


def _declared(
    tensors: dict[str, Tensor],
    metadata: Mapping[str, str],
    native: Callable[[str], str],
    path: Path,
) -> dict[str, dict[str, object]]:
    """Settings of every quantized layer; takes the markers out of `tensors`."""
    found: dict[str, dict[str, object]] = {}
    header = _object(metadata.get(HEADER, "{}"), f"{path}: {HEADER}").get("layers", {})
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: {HEADER} does not list layers", CONVERT)
    for name, settings in header.items():
        layer = native(f"{name}.weight").removesuffix(".weight")
        found[layer] = _flat(settings, f"{path}: {HEADER} of {name}")
    for key in [key for key in tensors if key.rpartition(".")[2] == MARKER]:
        name, marker = key.rpartition(".")[0], tensors.pop(key)
        if marker.dtype != torch.uint8:
            raise CheckpointError(f"{path}: {key} must hold bytes, got {marker.dtype}", CONVERT)
        text = bytes(marker.flatten().tolist()).decode("utf-8", errors="replace")
        settings = _flat(_object(text, f"{path}: {key}"), f"{path}: {key}")
        if found.setdefault(name, settings) != settings:
            raise CheckpointError(f"{path}: {key} contradicts {HEADER}", CONVERT)
    return found


def _object(text: str, what: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{what} is not JSON: {error}", CONVERT) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{what} must be a JSON object", CONVERT)
    return found


def _flat(settings: object, what: str) -> dict[str, object]:
    """Settings with those that some tools nest in `params` lifted out."""
    if not isinstance(settings, dict):
        raise CheckpointError(f"{what} must be a JSON object", CONVERT)
    nested = settings.get("params", {})
    if not isinstance(nested, dict):
        raise CheckpointError(f"{what}: params must be a JSON object", CONVERT)
    return {**{key: value for key, value in settings.items() if key != "params"}, **nested}


def save_quantized(
    state: Mapping[str, Tensor],
    path: Path,
    quantize: Callable[[str, Tensor], bool],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights with some of them as int8, one scale a row (`int8_tensorwise`), atomically.

    Args:
        state: tensors by name.
        path: the file, replaced if it is there.
        quantize: which tensors become int8; only `<layer>.weight` of at least two axes can.
        metadata: text for the header.

    Raises:
        ValueError: `quantize` chose a tensor that cannot be quantized, or a weight is not finite.
        OutputRefused: the file cannot be written.
    """
    marker = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not quantize(name, tensor):
            stored[name] = tensor
            continue
        layer, _, part = name.rpartition(".")
        if not layer or part != "weight" or tensor.ndim < 2 or not is_float(tensor):
            raise ValueError(f"{name} {list(tensor.shape)} cannot be stored as int8")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds values that are not finite")
        weight, scale = _to_int8(tensor)
        stored |= {
            name: weight,
            f"{layer}.weight_scale": scale,
            f"{layer}.{MARKER}": marker.clone(),
        }
    write(stored, path, metadata or {})


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 values in [-127, 127] like `weight` [N, ...] and their float32 scales [N, 1]."""
    rows = weight.detach().float().flatten(1)
    scale = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scale).round().clamp(-127, 127).to(torch.int8).view(weight.shape), scale
