"""Models in another layout: any file that can be read becomes one clean safetensors file."""

from __future__ import annotations

from typing import Literal

import torch

from cfgen.checkpoint.convert.conversion_plan import ConversionPlan, carried, in_file_order
from cfgen.checkpoint.convert.input import ENCODER, Source
from cfgen.checkpoint.naming import to_diffusers, unchanged
from cfgen.errors import UsageError

Names = Literal["wan", "diffusers"]


def plan_convert(
    source: Source, *, to: Names | None = None, dtype: torch.dtype | None = None
) -> ConversionPlan:
    """The source under other names, with the same values or all in one dtype.

    Args:
        source: what is converted.
        to: whose names a generator's tensors get, Wan's by default; a text encoder's are always
            those of Hugging Face, which diffusers reads.
        dtype: of everything; None leaves plain tensors as they are, and quantized layers
            quantized, in ComfyUI's native layout.

    Raises:
        CheckpointError: a layer is quantized in a way that the layout has no word for.
        UsageError: names that such a network cannot get.
    """
    if source.geometry is None and to == "wan":
        raise UsageError(
            f"{source.path} holds a {ENCODER}, which is written in Hugging Face's names only",
            "leave --to out",
        )
    turned = source.geometry is not None and to == "diffusers"
    rename = to_diffusers if turned else unchanged
    pieces = [carried(source, name, dtype, rename) for name in source.network.layers]
    return ConversionPlan(source, in_file_order(source, pieces))
