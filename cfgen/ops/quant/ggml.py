"""GGML block formats in plain PyTorch, so that they run where the weights lie.

Each row of a matrix is a run of blocks; a block holds 32 or 256 numbers with their scales. A new
format is a function and a line in `FORMATS`.

Axis letters: n blocks.
Source: the layout of ggml's quantized blocks, as documented by gguf-py's quants.py (0.19), which
the tests compare with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 16 codes of the IQ4 formats stand for."""


@dataclass(frozen=True, slots=True)
class Format:
    """A block format.

    Attributes:
        numbers: numbers in a block.
        nbytes: bytes of a block.
        decode: blocks uint8 [n, nbytes] to float32 [n, numbers].
    """

    numbers: int
    nbytes: int
    decode: Callable[[Tensor], Tensor]


def _cut(blocks: Tensor, *sizes: int) -> list[Tensor]:
    """Blocks [n, nbytes] cut into fields of these sizes; the last takes what is left."""
    rest = blocks.shape[1] - sum(sizes)
    return list(torch.split(blocks, [*sizes, rest], 1))


def _half(field: Tensor) -> Tensor:
    """A field of float16 numbers as float32 [n, numbers]."""
    return field.contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[n, b] bytes to [n, 2 b] codes: all low halves, then all high ones."""
    return torch.cat([packed & 15, packed >> 4], 1)


def _bits(packed: Tensor) -> Tensor:
    """[n, b] bytes to [n, 8 b] bits, lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] >> shifts & 1).flatten(1)


def _crumbs(packed: Tensor, run: int) -> Tensor:
    """[n, b] bytes to [n, 4 b] two-bit codes; runs of `run` bytes give four runs, lowest first."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)[:, None]
    runs = torch.unflatten(packed, 1, (-1, 1, run))
    return (runs >> shifts & 3).flatten(1)


def _q8_0(blocks: Tensor) -> Tensor:
    d, q = _cut(blocks, 2)
    return _half(d) * q.contiguous().view(torch.int8)


def _q4_0(blocks: Tensor) -> Tensor:
    d, q = _cut(blocks, 2)
    return _half(d) * (_nibbles(q).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    d, m, q = _cut(blocks, 2, 2)
    return _half(d) * _nibbles(q) + _half(m)


def _q5_0(blocks: Tensor) -> Tensor:
    d, high, q = _cut(blocks, 2, 4)
    return _half(d) * ((_nibbles(q) | _bits(high) << 4).float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    d, m, high, q = _cut(blocks, 2, 2, 4)
    return _half(d) * (_nibbles(q) | _bits(high) << 4) + _half(m)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, q, d, least = _cut(blocks, 16, 64, 2)
    codes = torch.unflatten(_crumbs(q, 32), 1, (16, 16))
    scale, low = _half(d) * (scales & 15), _half(least) * (scales >> 4)
    return (scale[..., None] * codes - low[..., None]).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    high, q, scales, d = _cut(blocks, 32, 64, 12)
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    unset = (~high[:, None] >> shifts & 1).flatten(1)  # run i of 32 numbers has bit i of every byte
    codes = _crumbs(q, 32).float() - 4.0 * unset
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
    upper = (scales[:, None, 8:] >> pairs & 3).flatten(1)
    scale = (_nibbles(scales[:, :8]) | upper << 4).float() - 32
    return ((_half(d) * scale)[..., None] * torch.unflatten(codes, 1, (16, 16))).flatten(1)


def _scales_of_k4(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Eight six-bit scales and minima from 12 bytes: [n, 8] each."""
    first, second, third = torch.split(scales, 4, 1)
    scale = torch.cat([first & 63, third & 15 | first >> 6 << 4], 1)
    low = torch.cat([second & 63, third >> 4 | second >> 6 << 4], 1)
    return scale, low


def _q4_k(blocks: Tensor) -> Tensor:
    d, least, scales, q = _cut(blocks, 2, 2, 12)
    scale, low = _scales_of_k4(scales)
    codes = _nibbles(q.reshape(-1, 32)).view(-1, 8, 32)
    return ((_half(d) * scale)[..., None] * codes - (_half(least) * low)[..., None]).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    d, least, scales, high, q = _cut(blocks, 2, 2, 12, 32)
    scale, low = _scales_of_k4(scales)
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    codes = _nibbles(q.reshape(-1, 32)).view(-1, 8, 32) | (high[:, None] >> shifts & 1) << 4
    return ((_half(d) * scale)[..., None] * codes - (_half(least) * low)[..., None]).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    low, high, scales, d = _cut(blocks, 128, 64, 16)
    codes = _nibbles(low.reshape(-1, 64)).view(-1, 256) | _crumbs(high, 32) << 4
    scale = _half(d) * scales.contiguous().view(torch.int8)
    return (scale[..., None] * torch.unflatten(codes.float() - 32, 1, (16, 16))).flatten(1)


@functools.lru_cache(maxsize=8)
def _iq4_table(device: torch.device) -> Tensor:
    """The levels where they are looked up; to send them anew would make the host wait."""
    return torch.tensor(IQ4_LEVELS, dtype=torch.float32, device=device)


def _iq4_levels(codes: Tensor) -> Tensor:
    return _iq4_table(codes.device)[codes.int()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    d, q = _cut(blocks, 2)
    return _half(d) * _iq4_levels(_nibbles(q))


def _iq4_xs(blocks: Tensor) -> Tensor:
    d, high, low, q = _cut(blocks, 2, 2, 4)
    lower = torch.stack([low & 15, low >> 4], 2).flatten(1)
    scale = (lower | _crumbs(high, 1) << 4).float() - 32
    codes = _nibbles(q.reshape(-1, 16)).view(-1, 8, 32)
    return ((_half(d) * scale)[..., None] * _iq4_levels(codes)).flatten(1)


FORMATS: Mapping[str, Format] = {
    "Q8_0": Format(32, 34, _q8_0),
    "Q4_0": Format(32, 18, _q4_0),
    "Q4_1": Format(32, 20, _q4_1),
    "Q5_0": Format(32, 22, _q5_0),
    "Q5_1": Format(32, 24, _q5_1),
    "Q2_K": Format(256, 84, _q2_k),
    "Q3_K": Format(256, 110, _q3_k),
    "Q4_K": Format(256, 144, _q4_k),
    "Q5_K": Format(256, 176, _q5_k),
    "Q6_K": Format(256, 210, _q6_k),
    "IQ4_NL": Format(32, 18, _iq4_nl),
    "IQ4_XS": Format(256, 136, _iq4_xs),
}
"""The formats that can be computed with, by GGML's names."""
