"""Weights as files store them, and how they become numbers again when they are used.

Whatever a file's layout, a quantized weight is one of three kinds here; the bits of its values are
never changed, only put in this order.

Axis letters: N rows (outputs), K columns (inputs).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from cfgen.ops.quant import ggml

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the 8 magnitudes of a 4-bit float stand for; the fourth bit is the sign."""

FP4_BLOCK = 16
"""Numbers that share a scale in NVFP4."""


class Quantized(Protocol):
    """A weight that is not stored as plain numbers."""

    @property
    def format(self) -> str:
        """Name of the number format, such as `int8` or `Q4_K`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it stands for."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight, rounded once from float32 to `dtype`."""

    def rows(self, index: Tensor | slice) -> Quantized:
        """The weight of some rows only: `index` int64 [n], or a slice of rows."""


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """Small numbers times scales: W = values * scale, then rotated back if it was rotated.

    Attributes:
        values: int8 or 8-bit floats, [N, K] or [N, ...].
        scale: [n, k] of any float dtype, n a divisor of N and k of K: one scale for N/n x K/k
            numbers. [1, 1] scales the whole weight, [N, 1] each row.
        rotation: columns that were rotated together by a Hadamard matrix, 0 for none.
    """

    values: Tensor
    scale: Tensor
    rotation: int = 0

    @property
    def format(self) -> str:
        """See `Quantized`."""
        return str(self.values.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Quantized`."""
        return tuple(self.values.shape)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """See `Quantized`."""
        return _in_bands(self, dtype)

    def at_once(self) -> Tensor:
        """The weight in float32, with temporary copies of its whole size."""
        values, scale = self.values.float().flatten(1), self.scale.float()
        if scale.shape[1] == 1 and scale.shape[0] in (1, values.shape[0]):
            weight = values.mul_(scale)
        else:
            n, k = scale.shape
            blocks = values.reshape(n, values.shape[0] // n, k, values.shape[1] // k)
            weight = (blocks * scale[:, None, :, None]).reshape(values.shape)
        if self.rotation:
            turn = hadamard(self.rotation, weight.device)
            weight = (torch.unflatten(weight, 1, (-1, self.rotation)) @ turn).flatten(1)
        return weight.reshape(self.values.shape)

    def rows(self, index: Tensor | slice) -> ScaledWeight:
        """See `Quantized`."""
        n, rows = self.scale.shape[0], self.values.shape[0]
        scale = self.scale
        if n == rows:
            scale = scale[index]
        elif n > 1:
            numbers = torch.arange(rows, device=scale.device)[index]
            scale = scale[numbers // (rows // n)]
        return replace(self, values=self.values[index], scale=scale)


@dataclass(frozen=True, slots=True)
class Fp4Weight:
    """NVFP4: 4-bit floats with an 8-bit float scale for 16 of them and one scale for all.

    Attributes:
        packed: uint8 [N, K / 2], the even column in the upper half of each byte.
        block_scale: float8_e4m3fn [N, K / 16].
        scale: float32 [1].
    """

    packed: Tensor
    block_scale: Tensor
    scale: Tensor

    @property
    def format(self) -> str:
        """See `Quantized`."""
        return "nvfp4"

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Quantized`."""
        return (self.packed.shape[0], 2 * self.packed.shape[1])

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """See `Quantized`."""
        return _in_bands(self, dtype)

    def at_once(self) -> Tensor:
        """The weight in float32, with temporary copies of its whole size."""
        pairs = _pairs(self.packed.device)
        values = torch.nn.functional.embedding(self.packed.int(), pairs).flatten(1)
        scale = self.block_scale.float() * self.scale.float()
        weight = torch.unflatten(values, 1, (-1, FP4_BLOCK)) * scale[..., None]
        return weight.flatten(1)

    def rows(self, index: Tensor | slice) -> Fp4Weight:
        """See `Quantized`."""
        return replace(self, packed=self.packed[index], block_scale=self.block_scale[index])


@dataclass(frozen=True, slots=True)
class GgmlWeight:
    """Rows of blocks in one of GGML's formats.

    Attributes:
        blocks: uint8 [N, bytes of a row].
        kind: a key of `ggml.FORMATS`.
    """

    blocks: Tensor
    kind: str

    @property
    def format(self) -> str:
        """See `Quantized`."""
        return self.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Quantized`."""
        layout = ggml.FORMATS[self.kind]
        return (self.blocks.shape[0], self.blocks.shape[1] // layout.nbytes * layout.numbers)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """See `Quantized`."""
        return _in_bands(self, dtype)

    def at_once(self) -> Tensor:
        """The weight in float32, with temporary copies of its whole size."""
        layout = ggml.FORMATS[self.kind]
        blocks = self.blocks.reshape(-1, layout.nbytes)
        return layout.decode(blocks).view(self.shape)

    def rows(self, index: Tensor | slice) -> GgmlWeight:
        """See `Quantized`."""
        return replace(self, blocks=self.blocks[index])


BAND = 128
"""Rows that are dequantized together on a CPU."""

AnyQuantized = ScaledWeight | Fp4Weight | GgmlWeight


def _in_bands(weight: AnyQuantized, dtype: torch.dtype) -> Tensor:
    """Dequantize; on a CPU a few rows at a time, so that what lies between stays in its cache.

    An int8 weight [8960, 1536] to bf16 takes 7 ms in bands and 67 ms at once (two cores of an AMD
    EPYC, torch 2.13).
    """
    first = next(iter(parts(weight).values()))
    if first.device.type != "cpu":
        return weight.at_once().to(dtype)
    out = torch.empty(weight.shape, dtype=dtype)
    for start in range(0, weight.shape[0], BAND):
        band = slice(start, min(start + BAND, weight.shape[0]))
        out[band] = weight.rows(band).at_once()
    return out


def parts(weight: AnyQuantized) -> dict[str, Tensor]:
    """The tensors of a quantized weight by the names of its attributes."""
    named = {item.name: getattr(weight, item.name) for item in fields(weight)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def with_parts(weight: AnyQuantized, held: Mapping[str, Tensor]) -> AnyQuantized:
    """The same kind of weight with other tensors in the places of its own."""
    return replace(weight, **dict(held))  # type: ignore[arg-type]


def nbytes(weight: Tensor | AnyQuantized) -> int:
    """Bytes that a weight takes as it is stored."""
    if isinstance(weight, Tensor):
        return weight.nbytes
    return sum(part.nbytes for part in parts(weight).values())


@functools.lru_cache(maxsize=8)
def hadamard(size: int, device: torch.device) -> Tensor:
    """The regular Hadamard matrix [size, size] over sqrt(size), its own inverse; size a power of 4.

    Source: comfy-kitchen tensor/int8_utils.py (the 4 x 4 matrix that it starts from).
    """
    first = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    first = first.float()
    matrix = first
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, first)
    if matrix.shape[0] != size:
        raise ValueError(f"a Hadamard matrix of {size} columns is not a power of 4")
    return (matrix / math.sqrt(size)).to(device)


@functools.lru_cache(maxsize=8)
def _pairs(device: torch.device) -> Tensor:
    """What each byte of two 4-bit floats stands for: float32 [256, 2], upper half first."""
    levels = torch.tensor([*E2M1, *(-level for level in E2M1)])
    codes = torch.arange(256)
    return torch.stack([levels[codes >> 4], levels[codes & 15]], 1).to(device)
