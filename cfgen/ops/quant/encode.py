"""Weights put into the number formats of ComfyUI's native layout, in plain PyTorch.

An encoder takes finite weights and is pure arithmetic: on the meta device it tells what it would
make. It goes through a weight in slabs of rows, so that it needs little memory besides its result.
A scale is never 0: rows of zeros get the smallest normal float and come back as zeros.

Axis letters: N rows (outputs), K columns (inputs).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cfgen.ops.quant.weights import E2M1, FP4_BLOCK, Fp4Weight, ScaledWeight, hadamard

MX_BLOCK = 32
"""Numbers that share an exponent in MXFP8."""

ROTATION = 256
"""Columns that are rotated together (convrot); a power of 4 that divides Wan's widths."""

SLAB = 2**18
"""Numbers that are worked on at a time."""

TINY = torch.finfo(torch.float32).tiny
E4M3_MAX, E4M3_BITS = 448.0, 9
"""The largest float8_e4m3fn, which is 0.875 times 2 to the power of 9."""
E2M1_MAX = E2M1[-1]
E8M0_BIAS = 127

Encoded = ScaledWeight | Fp4Weight


@dataclass(frozen=True, slots=True)
class Encoding:
    """A number format that weights can be put into.

    Attributes:
        encode: finite weight [N, K] of any float dtype to what stands for it.
        rows: N must be a multiple of this, because other readers pad rows to it.
        columns: K must be a multiple of this.
    """

    encode: Callable[[Tensor], Encoded]
    rows: int = 1
    columns: int = 1

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        """Why a weight of this shape cannot be put into the format; None if it can."""
        if len(shape) != 2 or not math.prod(shape):
            return f"only matrices can be, and it is {list(shape)}"
        if shape[0] % self.rows or shape[1] % self.columns:
            sides = {"rows": self.rows, "columns": self.columns}
            wanted = " and ".join(f"{side} of {n}" for side, n in sides.items() if n > 1)
            return f"its sides must be multiples ({wanted}), and it is {list(shape)}"
        return None


def encode_int8(weight: Tensor, *, rotation: int = 0) -> ScaledWeight:
    """Int8 in [-127, 127], one float32 scale a row.

    Args:
        weight: [N, ...], any float dtype.
        rotation: columns to rotate together by a Hadamard matrix first, which spreads large
            values over their neighbours; 0 for none.

    Source: comfy-kitchen backends/eager/quantization.py (`int8_tensorwise`, per row, and convrot).
    """

    def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
        if rotation:
            turn = hadamard(rotation, rows.device)
            rows = (torch.unflatten(rows, 1, (-1, rotation)) @ turn).flatten(1)
        scale = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=TINY)
        return (rows / scale).round().clamp(-127, 127).to(torch.int8), scale

    values, scale = _by_slabs(weight, encode)
    return ScaledWeight(values.view(weight.shape), scale, rotation)


def encode_float8(weight: Tensor, dtype: torch.dtype) -> ScaledWeight:
    """8-bit floats with one scale for the whole weight, its largest number the format's largest.

    Source: ComfyUI QUANTIZATION.md (absolute maximum).
    """
    largest = torch.finfo(dtype).max
    scale = (_largest(weight) / largest).clamp(min=TINY).view(1, 1)

    def encode(rows: Tensor) -> tuple[Tensor]:
        return ((rows / scale).clamp(-largest, largest).to(dtype),)

    (values,) = _by_slabs(weight, encode)
    return ScaledWeight(values.view(weight.shape), scale)


def encode_mxfp8(weight: Tensor) -> ScaledWeight:
    """float8_e4m3fn with a power of two for each 32 columns, the smallest that holds them.

    Source: OCP Microscaling Formats 1.0; the exponent is rounded up as in comfy-kitchen.
    """

    def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
        blocks = torch.unflatten(rows, 1, (-1, MX_BLOCK))
        part, power = torch.frexp(blocks.abs().amax(2))
        power = power - E4M3_BITS + (part > E4M3_MAX / 2**E4M3_BITS)
        biased = torch.where(part == 0, 0, power + E8M0_BIAS).clamp(0, 254)
        scale = biased.to(torch.uint8).view(torch.float8_e8m0fnu)
        values = (blocks / scale.float()[..., None]).clamp(-E4M3_MAX, E4M3_MAX)
        return values.flatten(1).to(torch.float8_e4m3fn), scale

    values, scale = _by_slabs(weight, encode)
    return ScaledWeight(values, scale)


def encode_nvfp4(weight: Tensor) -> Fp4Weight:
    """4-bit floats (E2M1), a float8_e4m3fn scale for each 16 of them and one float32 for all.

    Source: comfy-kitchen backends/eager/quantization.py (amax / 2688; block amax / 6).
    """
    scale = (_largest(weight) / (E4M3_MAX * E2M1_MAX)).clamp(min=TINY)

    def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
        blocks = torch.unflatten(rows, 1, (-1, FP4_BLOCK))
        wanted = blocks.abs().amax(2) / E2M1_MAX / scale
        block_scale = wanted.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
        step = (block_scale.float() * scale)[..., None]
        codes = _to_e2m1(torch.where(step > 0, blocks / step, 0)).flatten(1)
        return codes[:, ::2] << 4 | codes[:, 1::2], block_scale

    packed, block_scale = _by_slabs(weight, encode)
    return Fp4Weight(packed, block_scale, scale.view(1))


ENCODINGS: Mapping[str, Encoding] = {
    "int8": Encoding(encode_int8),
    "int8-convrot": Encoding(functools.partial(encode_int8, rotation=ROTATION), 1, ROTATION),
    "fp8": Encoding(functools.partial(encode_float8, dtype=torch.float8_e4m3fn)),
    "fp8-e5m2": Encoding(functools.partial(encode_float8, dtype=torch.float8_e5m2)),
    "mxfp8": Encoding(encode_mxfp8, MX_BLOCK, MX_BLOCK),
    "nvfp4": Encoding(encode_nvfp4, FP4_BLOCK, FP4_BLOCK),
}
"""The formats by the names that `cfgen quantize --format` takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What a weight lost when it was encoded.

    Attributes:
        relative_rms: root of the mean square error over that of the weight; 0 for zeros.
        largest: largest error of a number, in the weight's own units.
    """

    relative_rms: float
    largest: float

    @property
    def snr_db(self) -> float | None:
        """Signal to noise in decibels; None where nothing was lost."""
        return -20 * math.log10(self.relative_rms) if self.relative_rms else None


def loss_of(weight: Tensor, encoded: Encoded) -> Loss:
    """Compare a weight with what its encoding stands for."""
    noise = signal = largest = 0.0
    for rows in slabs(weight):
        before = weight[rows].float()
        index = torch.arange(rows.start, rows.stop, device=weight.device)
        error = before - encoded.rows(index).dequantize(torch.float32)
        noise += float(error.double().square().sum())
        signal += float(before.double().square().sum())
        largest = max(largest, float(error.abs().amax()))
    return Loss(relative_rms=math.sqrt(noise / signal) if signal else 0.0, largest=largest)


def is_finite(weight: Tensor) -> bool:
    """Whether every number of a weight is a finite float32."""
    return all(bool(torch.isfinite(weight[rows].float()).all()) for rows in slabs(weight))


def slabs(weight: Tensor) -> Iterator[slice]:
    """Rows of a weight [N, ...] to be worked on together."""
    count = weight.shape[0]
    step = max(1, SLAB // max(1, weight[:1].numel()))
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


def _by_slabs(weight: Tensor, encode: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
    """What `encode` makes of the float32 rows of a weight [N, ...], put together again."""
    flat = weight.flatten(1)
    whole: list[Tensor] = []
    for rows in slabs(flat):
        parts = encode(flat[rows].float())
        whole = whole or [part.new_empty(flat.shape[0], *part.shape[1:]) for part in parts]
        for place, part in zip(whole, parts, strict=True):
            place[rows] = part
    return whole


def _largest(weight: Tensor) -> Tensor:
    """The largest magnitude of a weight, float32 []."""
    low, high = torch.aminmax(weight)
    return torch.maximum(-low, high).float()


def _to_e2m1(numbers: Tensor) -> Tensor:
    """Codes uint8 of the nearest 4-bit floats, of the even code where two are as near.

    What is beyond the largest becomes the largest; the sign stays, also that of what becomes 0.
    """
    magnitude = torch.bucketize(numbers.abs(), _edges(numbers.device), out_int32=True)
    return (magnitude | torch.signbit(numbers).int() << 3).to(torch.uint8)


@functools.lru_cache(maxsize=8)
def _edges(device: torch.device) -> Tensor:
    """Numbers up to and with which each magnitude of E2M1 is the nearest: float32 [7].

    A number midway between codes 2 n + 1 and 2 n + 2 belongs to the latter, so those edges are
    the next smaller floats.
    """
    levels = torch.tensor(E2M1)
    middle = (levels[1:] + levels[:-1]) / 2
    middle[1::2] = torch.nextafter(middle[1::2], torch.zeros(()))
    return middle.to(device)
