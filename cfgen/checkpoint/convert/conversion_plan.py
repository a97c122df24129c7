"""Networks written anew as one clean safetensors file, tensor by tensor.

What will be in the file is worked out first, from headers and scales alone; then each weight is
read, put into its new form and written before the next one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.convert.input import Source
from cfgen.checkpoint.convert.output import config_beside
from cfgen.checkpoint.formats.base import Container, Entry, Outline
from cfgen.checkpoint.formats.safetensors import write_stream
from cfgen.checkpoint.networks.network import Network
from cfgen.checkpoint.networks.tokenizer import EMBEDDED, has_tokenizer
from cfgen.checkpoint.quant import comfy
from cfgen.checkpoint.quant.decode import read_layer
from cfgen.checkpoint.quant.layer import FLOAT8, HEADER, Layer
from cfgen.errors import CheckpointError
from cfgen.ops.quant.encode import slabs
from cfgen.ops.quant.weights import AnyQuantized, GgmlWeight

CALIBRATED = {"ComfyUI native": "input_scale", "fp8_scaled": "scale_input"}
"""Layouts whose scales of activations ComfyUI reads, and what they call them."""

Rename = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """What becomes of one tensor of the source.

    Attributes:
        name: its native name.
        used: names in the source of all that it is made of.
        entries: what will be in the file, by the names there.
        make: reads it and makes these tensors.
        module: name in the file of the layer, for a quantized one.
        settings: what is declared of that layer.
    """

    name: str
    used: Collection[str]
    entries: Mapping[str, Entry]
    make: Callable[[], Mapping[str, Tensor]]
    module: str = ""
    settings: comfy.Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A tensor of the source got its new form and is written next.

    Attributes:
        name: its native name.
        nbytes: bytes of all tensors up to and with it.
    """

    name: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """A file that can be written.

    Attributes:
        source: where it comes from.
        pieces: what will be in it, in order.
    """

    source: Source
    pieces: Sequence[OutputTensor]

    @property
    def entries(self) -> dict[str, Entry]:
        """Every tensor of the file by name."""
        return {name: entry for piece in self.pieces for name, entry in piece.entries.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def formats(self) -> dict[str, int]:
        """Quantized layers by the name of their format."""
        names = [str(piece.settings["format"]) for piece in self.pieces if piece.settings]
        return {name: names.count(name) for name in sorted(set(names))}

    def notes(self) -> Iterator[str]:
        """What a user should know of the file, in sentences."""
        naming = self.source.network.naming
        if len(naming.choices) > 1:
            others = ", ".join(repr(choice) for choice in naming.choices if choice != naming.prefix)
            yield f"taken from {naming.prefix!r}; left out: {others}"
        elif naming.left_alone:
            what = "tensors of other networks are left out"
            yield f"{len(naming.left_alone)} {what}: {naming.left_alone[0]}, ..."
        used = {raw for piece in self.pieces for raw in piece.used} | set(naming.left_alone)
        rest = [
            raw
            for name, raw in naming.names.items()
            if raw not in used and not name.endswith((comfy.MARKER, "scaled_fp8"))
        ]
        if rest:
            yield f"{len(rest)} scales of activations are left out: {rest[0]}, ..."
        if self.source.geometry is None and _loses_tokenizer(self.source.network):
            yield "the tokenizer that the source brings is left out"
        if beyond := [name for name in self.formats if name in comfy.BEYOND]:
            yield f"ComfyUI reads {' and '.join(beyond)} with an extension only"

    def write(self, target: Path, told: Callable[[Step], None] | None = None) -> Path | None:
        """Write the file, so that `target` never holds half of one; see `output.check` first.

        Args:
            target: the file, replaced if it is there.
            told: is told of each step.

        Returns:
            The config.json that was put beside it, if it needs one.

        Raises:
            CheckpointError: the source cannot be read, or a weight cannot be stored like this.
            OutputRefused: the file cannot be written.
        """
        layers = {piece.module: piece.settings for piece in self.pieces if piece.settings}
        declared = {HEADER: comfy.header(layers)} if layers else {}
        metadata = {**self.source.metadata, **declared}
        with config_beside(self.source, target) as config:
            write_stream(self.entries, _in_turn(self.pieces, told), target, metadata)
        return config


def _loses_tokenizer(encoder: Network) -> bool:
    """Whether an encoder's file brings its tokenizer as something else than a tensor."""
    return has_tokenizer(encoder.file) and EMBEDDED not in encoder.extras


def _in_turn(
    pieces: Sequence[OutputTensor], told: Callable[[Step], None] | None
) -> Callable[[str], Tensor]:
    """Gives the tensors of all pieces one after another, by the names of whose turn it is."""

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nbytes = 0
        for piece in pieces:
            made = piece.make()
            nbytes += sum(entry.nbytes for entry in piece.entries.values())
            if told:
                told(Step(piece.name, nbytes))
            yield from made.items()
            del made  # before the next is read

    stream = tensors()

    def give(name: str) -> Tensor:
        found, tensor = next(stream)
        assert found == name, f"{found} came for {name}"
        return tensor

    return give


def in_file_order(source: Source, pieces: Iterable[OutputTensor]) -> list[OutputTensor]:
    """Pieces and what else belongs to the network, in the order in which the source holds them."""
    file = source.network.file
    extras = [_as_it_is(source, name, name, raw) for name, raw in source.network.extras.items()]
    place = {raw: number for number, raw in enumerate(file.entries)}
    return sorted([*pieces, *extras], key=lambda piece: min(place[raw] for raw in piece.used))


def _as_it_is(source: Source, name: str, here: str, raw: str) -> OutputTensor:
    """A tensor that is copied."""
    file = source.network.file
    return OutputTensor(name, [raw], {here: file.entries[raw]}, lambda: {here: file.read(raw)})


def carried(source: Source, name: str, dtype: torch.dtype | None, rename: Rename) -> OutputTensor:
    """A tensor that keeps its values: as it is, or rounded once to `dtype`.

    Quantized layers stay quantized, in ComfyUI's native layout, unless `dtype` is given.

    Raises:
        CheckpointError: it is quantized in a way that the layout has no word for.
    """
    layer = source.network.layers[name]
    bare = layer.format in FLOAT8 and "scale" not in layer.parts
    if dtype is not None:
        return _plain(source, layer, dtype, rename)
    if not layer.is_quantized or bare:
        return _as_it_is(source, name, rename(name), layer.parts["values"])
    return _declared(source, layer, rename)


def _plain(source: Source, layer: Layer, dtype: torch.dtype, rename: Rename) -> OutputTensor:
    """A tensor as plain numbers of one dtype."""
    here = rename(layer.name)

    def make() -> dict[str, Tensor]:
        made, fits = _cast(source.network.read(layer.name), dtype)
        if not fits:
            raise CheckpointError(
                f"{source.path}: {layer.name} holds numbers that are too large for {dtype}",
                "take another --dtype",
            )
        return {here: made.view(layer.shape)}

    outline = torch.empty(layer.shape, dtype=dtype, device="meta")
    return OutputTensor(layer.name, layer.parts.values(), {here: Entry.of(outline)}, make)


def _cast(stored: Tensor | AnyQuantized, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """A tensor in another dtype, and whether what was finite stayed so."""
    weight = stored
    if isinstance(stored, Tensor):
        weight = stored.reshape(stored.shape or (1,))
        weight = weight.float() if weight.itemsize == 1 else weight
    made, fits = torch.empty(weight.shape, dtype=dtype), True
    for rows in slabs(made):
        if isinstance(weight, Tensor):
            before = weight[rows]
        else:
            index = torch.arange(rows.start, rows.stop)
            before = weight.rows(index).dequantize(torch.float32)
        made[rows] = before.to(dtype)
        fits &= bool((torch.isfinite(made[rows]) | ~torch.isfinite(before)).all())
    return made, fits


def _declared(source: Source, layer: Layer, rename: Rename) -> OutputTensor:
    """A quantized layer with its very values, in ComfyUI's native layout."""
    module = rename(layer.name).removesuffix(".weight")
    file = source.network.file
    without_data = Outline.of(file, layer.parts["values"])
    outline = read_layer(layer, without_data)
    assert not isinstance(outline, Tensor)
    settings = comfy.settings_of(outline, full_precision=layer.full_precision)
    if settings is None:
        raise CheckpointError(_unsaid(source, layer, outline), "dequantize it with --dtype bf16")
    more = _calibration(source, layer)

    def tensors(file: Container) -> dict[str, Tensor]:
        weight = read_layer(layer, file)
        assert not isinstance(weight, Tensor)
        parts = {**comfy.parts_of(weight, settings), **{p: file.read(r).float() for p, r in more}}
        return {f"{module}.{part}": tensor for part, tensor in parts.items()}

    entries = {name: Entry.of(tensor) for name, tensor in tensors(without_data).items()}
    used = [*layer.parts.values(), *(raw for _, raw in more)]
    return OutputTensor(layer.name, used, entries, lambda: tensors(file), module, settings)


def _calibration(source: Source, layer: Layer) -> list[tuple[str, str]]:
    """Scales of activations that stay: part and name in the source."""
    part = CALIBRATED.get(layer.layout)
    raw = source.network.naming.names.get(f"{layer.name.removesuffix('weight')}{part}")
    return [("input_scale", raw)] if raw else []


def _unsaid(source: Source, layer: Layer, weight: object) -> str:
    what = f"{source.path}: {layer.name} is {layer.format}"
    if isinstance(weight, GgmlWeight):
        return f"{what}, and safetensors has no type for GGML's blocks"
    return f"{what} with scales as {layer.layout} has them, which ComfyUI's layout cannot say"
