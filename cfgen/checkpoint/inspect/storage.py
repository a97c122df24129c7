"""What the layers of a network are stored as, and whether their scales look sound.

Scales are read one layer at a time and values not at all, unless they are asked for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cfgen.checkpoint.formats.base import Container, Outline
from cfgen.checkpoint.networks.blank import blank
from cfgen.checkpoint.networks.memory_weights import memory_name
from cfgen.checkpoint.networks.network import Network
from cfgen.checkpoint.quant.decode import read_layer
from cfgen.checkpoint.quant.layer import Layer
from cfgen.errors import CheckpointError
from cfgen.ops.quant.weights import E2M1, AnyQuantized, Fp4Weight, ScaledWeight

PIECE = 1 << 20
"""Numbers that are looked at together."""

HUGE = 1000.0
"""Weights that a scale allows above this are no weights: such a scale is most likely inverted."""

TINY = torch.finfo(torch.float32).tiny

FLAWS = {
    "not_finite": "that are not finite",
    "negative": "below 0",
    "zero": "of 0",
    "denormal": f"so small that float32 holds them inexactly (below {TINY:.1e})",
    "huge": f"that allow weights above {HUGE:g}, as inverted ones do",
}
"""What may be wrong with scales, in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scales:
    """Scales of a layer, or of several: what its values are multiplied by.

    Attributes:
        count: how many there are.
        least: the smallest finite one, None if there is none.
        median: the one in the middle; over several layers, that of their medians.
        greatest: the largest finite one.
        flaws: how many scales have each of `FLAWS`, those with none left out.
    """

    count: int
    least: float | None
    median: float | None
    greatest: float | None
    flaws: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """One tensor of a network as it lies in its file.

    Attributes:
        name: its native name.
        layout: who writes it like this.
        format: number format of its values.
        shape: shape of what it stands for.
        nbytes: bytes in the file, scales included.
        quantized: whether it must be dequantized before it is used.
        full_precision: whether the file asks for multiplication in high precision.
        rotation: columns rotated together, 0 for none.
        scales: None if it has none, or none that stand apart from its values.
    """

    name: str
    layout: str
    format: str
    shape: tuple[int, ...]
    nbytes: int
    quantized: bool
    full_precision: bool = False
    rotation: int = 0
    scales: Scales | None = None

    @property
    def numbers(self) -> int:
        """How many numbers it stands for."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Tensors of a network that are stored alike.

    Attributes:
        layout: who writes them like this.
        format: number format of their values.
        quantized: whether they must be dequantized before they are used.
        tensors: how many they are.
        numbers: how many numbers they stand for.
        nbytes: bytes in the file, scales included.
        bits: bits that a number takes.
        full_precision: how many ask for multiplication in high precision.
        rotated: how many are rotated.
        scales: their scales together, None without any.
    """

    layout: str
    format: str
    quantized: bool
    tensors: int
    numbers: int
    nbytes: int
    bits: float
    full_precision: int
    rotated: int
    scales: Scales | None


def stored(network: Network) -> tuple[list[Stored], CheckpointError | None]:
    """Every tensor of a network with its scales, and the first error that reading scales met."""
    found: list[Stored] = []
    problem: CheckpointError | None = None
    for name, layer in network.layers.items():
        scales = None
        try:
            scales = _scales(layer, network.file)
        except CheckpointError as error:
            problem = problem or error
        found.append(
            Stored(
                name=name,
                layout=layer.layout,
                format=layer.format,
                shape=tuple(layer.shape),
                nbytes=sum(network.file.entries[raw].nbytes for raw in layer.parts.values()),
                quantized=layer.is_quantized,
                full_precision=layer.full_precision,
                rotation=layer.rotation,
                scales=scales,
            )
        )
    return found, problem


def grouped(tensors: Iterable[Stored]) -> list[Group]:
    """Tensors put together by how they are stored, quantized ones first, then the larger."""
    alike: dict[tuple[str, str, bool], list[Stored]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.layout, tensor.format, tensor.quantized), []).append(tensor)
    found = [_group(*key, members) for key, members in alike.items()]
    return sorted(found, key=lambda group: (not group.quantized, -group.nbytes))


def odd_values(network: Network) -> Iterator[str]:
    """Tensors with numbers that are not finite, or blank, in words; reads the whole file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    second = network.memory
    sets = [(name, name, network) for name in network.layers]
    sets += [(memory_name(name), name, second) for name in second.layers] if second else []
    for name, native, held in sets:
        weight = held.read(native)
        if count := count_not_finite(weight):
            yield f"{name} holds {count} numbers that are not finite"
        if reason := blank(native, weight):
            yield f"{name} {reason}; cfgen render refuses it"


def count_not_finite(weight: Tensor | AnyQuantized) -> int:
    """How many numbers of a weight are not finite."""
    wide = (p if p.element_size() > 1 else p.float() for p in _pieces(weight))
    return sum(int((~torch.isfinite(piece)).sum()) for piece in wide)


def _scales(layer: Layer, file: Container) -> Scales | None:
    if layer.store in ("plain", "ggml") or len(layer.parts) == 1:
        return None
    weight = read_layer(layer, Outline.of(file, layer.parts["values"]))
    if isinstance(weight, Fp4Weight):
        return _spread(weight.block_scale, float(weight.scale), max(E2M1))
    assert isinstance(weight, ScaledWeight)
    dtype = weight.values.dtype
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return _spread(weight.scale, 1.0, float(info.max))


def _spread(scale: Tensor, factor: float, largest: float) -> Scales:
    """Look at scales times a factor; `largest` is the largest value that they multiply."""
    values, counts = _distinct(scale)
    values = values * factor
    finite = torch.isfinite(values)
    flaws = {
        "not_finite": ~finite,
        "negative": finite & (values < 0),
        "zero": values == 0,
        "denormal": (values != 0) & (values.abs() < TINY),
        "huge": finite & (values.abs() * largest > HUGE),
    }
    numbers = {flaw: int(counts[found].sum()) for flaw, found in flaws.items()}
    kept, counts = values[finite], counts[finite]
    middle = int(torch.searchsorted(counts.cumsum(0), (counts.sum() + 1) // 2)) if len(kept) else 0
    return Scales(
        count=scale.numel(),
        least=float(kept[0]) if len(kept) else None,
        median=float(kept[middle]) if len(kept) else None,
        greatest=float(kept[-1]) if len(kept) else None,
        flaws={flaw: number for flaw, number in numbers.items() if number},
    )


def _distinct(scale: Tensor) -> tuple[Tensor, Tensor]:
    """The different values of a tensor in rising order, as float64, and how often each occurs."""
    if scale.element_size() > 1:
        values, counts = torch.unique(scale.double().flatten(), return_counts=True)
        return values, counts
    codes = scale.view(torch.uint8).flatten()
    counts = torch.zeros(256, dtype=torch.int64)
    for piece in torch.split(codes, PIECE):
        counts += torch.bincount(piece.int(), minlength=256)
    values = torch.arange(256, dtype=torch.uint8).view(scale.dtype).double()
    values, order = values.sort()
    counts = counts[order]
    return values[counts > 0], counts[counts > 0]


def _group(layout: str, format_: str, quantized: bool, members: list[Stored]) -> Group:
    numbers = sum(tensor.numbers for tensor in members)
    nbytes = sum(tensor.nbytes for tensor in members)
    return Group(
        layout=layout,
        format=format_,
        quantized=quantized,
        tensors=len(members),
        numbers=numbers,
        nbytes=nbytes,
        bits=8 * nbytes / max(1, numbers),
        full_precision=sum(tensor.full_precision for tensor in members),
        rotated=sum(bool(tensor.rotation) for tensor in members),
        scales=_together([tensor.scales for tensor in members if tensor.scales]),
    )


def _together(scales: list[Scales]) -> Scales | None:
    if not scales:
        return None
    medians = [s.median for s in scales if s.median is not None]
    flaws = {flaw: sum(s.flaws.get(flaw, 0) for s in scales) for flaw in FLAWS}
    return Scales(
        count=sum(s.count for s in scales),
        least=min((s.least for s in scales if s.least is not None), default=None),
        median=statistics.median_low(medians) if medians else None,
        greatest=max((s.greatest for s in scales if s.greatest is not None), default=None),
        flaws={flaw: number for flaw, number in flaws.items() if number},
    )


def _pieces(weight: Tensor | AnyQuantized) -> Iterator[Tensor]:
    """Its numbers, some rows at a time."""
    rows = weight.shape[0] if weight.shape else 1
    step = max(1, PIECE * rows // max(1, math.prod(weight.shape)))
    if isinstance(weight, Tensor):
        yield from torch.split(weight.reshape(rows, -1), step)
        return
    for start in range(0, rows, step):
        index = torch.arange(start, min(rows, start + step))
        yield weight.rows(index).dequantize(torch.float32)
