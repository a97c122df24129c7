"""Plain weights quantized, in ComfyUI's native layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.convert.conversion_plan import (
    ConversionPlan,
    OutputTensor,
    carried,
    in_file_order,
)
from cfgen.checkpoint.convert.input import Source
from cfgen.checkpoint.formats.base import Entry
from cfgen.checkpoint.formats.safetensors import write
from cfgen.checkpoint.naming import unchanged
from cfgen.checkpoint.quant import comfy
from cfgen.checkpoint.quant.layer import Layer
from cfgen.errors import CheckpointError, UsageError
from cfgen.ops.quant.encode import ENCODINGS, Loss, encode_int8, is_finite, loss_of
from cfgen.ops.quant.weights import AnyQuantized


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerLoss:
    """What a layer lost.

    Attributes:
        layer: its native name.
        format: format that it was put into.
        shape: shape of its weight.
        loss: how far that is from what it was.
    """

    layer: str
    format: str
    shape: tuple[int, ...]
    loss: Loss


def plan_quantize(
    source: Source,
    format: str,
    *,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    requantize: bool = False,
) -> tuple[ConversionPlan, list[LayerLoss]]:
    """The source with the matrices of its blocks in another number format, in Wan's own names.

    Args:
        source: what is quantized; a text encoder keeps Hugging Face's names.
        format: a key of `ENCODINGS`.
        keep: patterns of layers that stay as they are.
        only: patterns of the only layers that are quantized; without one, all are that can be.
        dtype: of what is not quantized; None leaves each tensor as it is.
        requantize: whether layers may be quantized that already were, which adds up errors.

    Returns:
        What can be written, and a list that is filled with what each layer loses meanwhile.

    Raises:
        CheckpointError: the source is quantized already, or a layer cannot be put into the format.
        UsageError: a pattern is none, or fits no layer; or no layer is left.
    """
    layers = source.network.layers
    chosen = _chosen([name for name in layers if source.is_matrix(name)], keep, only)
    _refuse_twice(source, chosen, requantize=requantize)
    losses: list[LayerLoss] = []
    pieces = [
        _encoded(source, layer, format, losses)
        if name in chosen
        else carried(source, name, dtype, unchanged)
        for name, layer in layers.items()
    ]
    return ConversionPlan(source, in_file_order(source, pieces)), losses


def _chosen(matrices: Sequence[str], keep: Sequence[str], only: Sequence[str]) -> set[str]:
    """The matrices that fit one of `only` (all, without one) and none of `keep`."""

    def fitting(flag: str, text: str) -> set[str]:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise UsageError(f"{flag} {text!r} is no regular expression: {error}") from error
        found = {name for name in matrices if pattern.search(name.removesuffix(".weight"))}
        if not found:
            some = matrices[0].removesuffix(".weight")
            raise UsageError(f"{flag} {text!r} fits no layer", f"layers are named like {some}")
        return found

    wanted = {name for text in only for name in fitting("--only", text)} or set(matrices)
    wanted -= {name for text in keep for name in fitting("--keep", text)}
    if not wanted:
        raise UsageError("no layer is left to quantize", "let --keep fit fewer layers")
    return wanted


def _refuse_twice(source: Source, chosen: Collection[str], *, requantize: bool) -> None:
    layers = [source.network.layers[name] for name in chosen]
    before = [layer.format for layer in layers if layer.is_quantized]
    if before and not requantize:
        raise CheckpointError(
            f"{source.path} is quantized already ({', '.join(sorted(set(before)))} in "
            f"{len(before)} of {len(layers)} layers), and the errors of both would add up",
            "take the file that it was made of, or say --requantize",
        )


def _encoded(source: Source, layer: Layer, format: str, losses: list[LayerLoss]) -> OutputTensor:
    """A weight put into another number format."""
    encoding, module = ENCODINGS[format], layer.name.removesuffix(".weight")
    if reason := encoding.unfit(layer.shape):
        raise CheckpointError(
            f"{source.path}: {module} cannot be {format}: {reason}",
            "leave it as it is with --keep, or choose another format",
        )
    outline = encoding.encode(torch.empty(layer.shape, device="meta"))
    settings = comfy.settings_of(outline, full_precision=layer.full_precision)
    assert settings is not None

    def tensors(weight: AnyQuantized) -> dict[str, Tensor]:
        parts = comfy.parts_of(weight, settings)
        return {f"{module}.{part}": tensor for part, tensor in parts.items()}

    def make() -> dict[str, Tensor]:
        stored = source.network.read(layer.name)
        weight = stored if isinstance(stored, Tensor) else stored.dequantize(torch.float32)
        if not is_finite(weight):
            raise CheckpointError(
                f"{source.path}: {layer.name} holds numbers that are not finite",
                "the file is damaged or its training diverged; take another",
            )
        encoded = encoding.encode(weight)
        loss = loss_of(weight, encoded)
        losses.append(LayerLoss(layer=module, format=format, shape=layer.shape, loss=loss))
        return tensors(encoded)

    entries = {name: Entry.of(tensor) for name, tensor in tensors(outline).items()}
    return OutputTensor(layer.name, layer.parts.values(), entries, make, module, settings)


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
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not quantize(name, tensor):
            stored[name] = tensor
            continue
        layer, _, part = name.rpartition(".")
        if not layer or part != "weight" or tensor.ndim < 2 or not tensor.is_floating_point():
            raise ValueError(f"{name} {list(tensor.shape)} cannot be stored as int8")
        if not is_finite(tensor):
            raise ValueError(f"{name} holds values that are not finite")
        weight = encode_int8(tensor.detach())
        settings = comfy.settings_of(weight)
        assert settings is not None
        parts = comfy.parts_of(weight, settings)
        stored |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
    write(stored, path, metadata or {})
