"""Layers of a network in a file: which layout each has, and whether it is complete.

What a file says is judged layer by layer, never for the file as a whole. A layer is recognised by
what stands beside its weight (`layouts`); whatever is left over afterwards is an error of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cfgen.checkpoint.formats.base import Container, Entry
from cfgen.errors import CheckpointError
from cfgen.ops.quant import ggml

HEADER = "_quantization_metadata"
CONVERT = "take another conversion of the model; cfgen quantize makes one of a plain file"

FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
SMALL = ("int8", *FLOAT8)
"""Kinds of values that a scale may stand beside."""

PARTS = {
    "weight": "weight",
    "weight._data": "data",
    "weight._scale": "data_scale",
    "_weight_qdata": "qdata",
    "_weight_scale": "qdata_scale",
    "_weight_zero_point": "zero_point",
    "comfy_quant": "marker",
    "weight_scale": "weight_scale",
    "weight_scale_2": "weight_scale_2",
    "scale_weight": "scale_weight",
    "weight_global_scale": "global_scale",
    "alpha": "alpha",
    "input_global_scale": "input_global_scale",
    "input_absmax": "input_absmax",
    "input_scale": "input_scale",
    "scale_input": "scale_input",
    "output_scale": "output_scale",
}
"""Last parts of the names of a layer's tensors, and the part that each plays."""

ACTIVATIONS = ("input_scale", "scale_input", "output_scale", "input_absmax")
"""Parts about activations, which cfgen keeps in high precision: known, and not needed."""

Store = Literal["plain", "scaled", "mx", "fp4", "ggml"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One tensor of a network as it lies in a file: plain, or in several parts.

    Attributes:
        name: its native name.
        layout: who writes it like this.
        format: number format of its values.
        shape: shape of what it stands for.
        store: how it is read.
        parts: names in the file by the part they play.
        rotation: columns rotated together, 0 for none.
        low_first: whether the even column is in the lower half of a byte.
        flat: whether scales of blocks lie row by row, not in tiles as tensor cores read them.
        full_precision: whether the file asks for multiplication in high precision.
    """

    name: str
    layout: str
    format: str
    shape: tuple[int, ...]
    store: Store = "plain"
    parts: Mapping[str, str] = field(default_factory=dict)
    rotation: int = 0
    low_first: bool = False
    flat: bool = False
    full_precision: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether it must be dequantized before it is a matrix of numbers."""
        return self.store != "plain"


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What stands in a file under one layer.

    Attributes:
        file: the file.
        module: the layer's native name.
        names: names in the file by the part they play.
        settings: what the file declares of it.
        strict: whether small values without a scale are certainly incomplete.
    """

    file: Container
    module: str
    names: Mapping[str, str]
    settings: Mapping[str, object]
    strict: bool

    @property
    def path(self) -> str:
        """The file, for messages."""
        return str(self.file.path)

    def entry(self, part: str) -> Entry:
        """What the header says of a part that must be there."""
        if part not in self.names:
            wanted = next(name for name, played in PARTS.items() if played == part)
            raise self.error(f"its {wanted} is missing")
        return self.file.entries[self.names[part]]

    def error(self, reason: str, hint: str = CONVERT) -> CheckpointError:
        """An error that names file and layer."""
        return CheckpointError(f"{self.file.path}: quantized layer {self.module}: {reason}", hint)

    def layer(self, layout: str, store: Store, used: Mapping[str, str], **more: object) -> Layer:
        """The layer, once every part is accounted for.

        Args:
            layout: who writes it like this.
            store: how it is read.
            used: part of this layer by the part it plays in reading.
            more: other fields of `Layer`.
        """
        known = {*used.values(), *ACTIVATIONS, "marker"}
        if extra := sorted(raw for part, raw in self.names.items() if part not in known):
            raise self.error(f"{extra[0]} has no meaning in the layout {layout}")
        value = self.entry(used["values"])
        facts: dict[str, object] = {"format": value.kind, "shape": value.shape, **more}
        return Layer(
            name=f"{self.module}.weight",
            layout=layout,
            store=store,
            parts={role: self.names[part] for role, part in used.items()},
            **facts,  # type: ignore[arg-type]
        )


def plain_layer(file: Container, name: str, raw: str, *, strict: bool = False) -> Layer:
    """A tensor that stands alone.

    Raises:
        CheckpointError: it holds numbers that mean nothing by themselves.
    """
    entry = file.entries[raw]
    store: Store = "ggml" if entry.kind in ggml.FORMATS else "plain"
    if store == "plain" and not entry.is_float and (strict or entry.kind not in FLOAT8):
        raise CheckpointError(
            f"{file.path}: {raw} is {entry.kind} and nothing says how it was quantized", CONVERT
        )
    return Layer(
        name=name,
        layout="GGUF" if store == "ggml" else "plain",
        format=entry.kind,
        shape=entry.shape,
        store=store,
        parts={"values": raw},
    )
