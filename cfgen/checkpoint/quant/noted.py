"""What tools note down beside each layer: known, compared with its tensors, or refused by name.

Sources: silveroxides/convert_to_quant 1.3.4 and INT8-Fast (`comfy_quant`); torchao 0.18
prototype/safetensors (attributes of its tensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from cfgen.checkpoint.quant.layer import LayerParts

TORCHAO_HARMLESS = ("act_quant_kwargs", "dtype", "kernel_preference", "mm_config", "reduce_range")
"""Attributes of torchao's tensors about activations and kernels, which weights do not depend on."""


def check_noted(
    found: LayerParts, settings: dict[str, object], shape: tuple[int, ...], *, block: int = 0
) -> None:
    """Refuse settings that are not known, and known ones that the tensors contradict.

    Args:
        found: what stands in the file.
        settings: those that are left; what convert_to_quant and INT8-Fast note down is taken out.
        shape: shape of the weight.
        block: numbers under one scale, if the format has always as many.
    """
    settings.pop("orig_dtype", None)  # of the model that was quantized
    told = settings.pop("orig_shape", None)
    if told is not None and told != list(shape):
        raise found.error(f"its orig_shape is {told}, and its weight is {list(shape)}")
    scale = found.entry("weight_scale").shape
    one = math.prod(scale) == 1
    rows = math.prod(scale) == shape[0] == (scale or (1,))[0]
    by_row = settings.pop("per_row", None)
    if by_row is not None and shape[0] > 1 and (bool(by_row) != rows):
        raise found.error(f"its per_row is {by_row}, and its scales are {list(scale)}")
    for key in ("group_size", "block_size"):
        size = settings.pop(key, None)
        if size is None or not (block or not (one or rows)):
            continue
        sides = [block] if block else [shape[0] // scale[0], math.prod(shape[1:]) // scale[1]]
        if any(side not in sides for side in (size if isinstance(size, list) else [size])):
            raise found.error(f"its {key} is {size}, and its scales are {list(scale)}")
    if settings:
        told = found.settings.get("format")
        raise found.error(f"{told} does not know the setting {sorted(settings)[0]!r}")


def check_torchao(
    found: LayerParts,
    settings: Mapping[str, object],
    shape: tuple[int, ...],
    scale: tuple[int, ...],
) -> None:
    """Refuse attributes of torchao's tensors that are not known or contradict the scales."""
    for key, value in settings.items():
        if key in TORCHAO_HARMLESS or value in (None, False):
            continue
        if key != "block_size":
            raise found.error(f"torchao's attribute {key} is {value!r}, which cfgen does not know")
        if not isinstance(value, list) or len(value) != len(shape) or 0 in value:
            raise found.error(f"torchao's block_size is {value!r} for a weight {list(shape)}")
        blocks = math.prod(-(-n // side) for n, side in zip(shape, value, strict=True))
        if blocks != math.prod(scale):
            raise found.error(f"torchao's block_size is {value}, and its scales are {list(scale)}")


def torchao_type(found: LayerParts) -> tuple[str, Mapping[str, object]]:
    """The subclass that the header names for this weight, and its attributes."""
    raw = found.names.get("qdata") or found.names["qdata_scale"]
    text = found.file.metadata.get(raw.rpartition("._weight_")[0] + ".weight")
    try:
        told = json.loads(str(text))
    except ValueError:
        told = None
    if not isinstance(told, dict) or "_type" not in told:
        raise found.error("the header does not say which of torchao's types it is")
    attributes = told.get("_data")
    return str(told["_type"]), attributes if isinstance(attributes, dict) else {}
