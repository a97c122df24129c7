"""Tensors that show what a kernel should not have touched: NaN wherever nothing was written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """New uninitialised tensors are full of NaN, so that an unwritten output cannot pass."""
    make = torch.empty

    def empty(*args, **kwargs) -> Tensor:
        tensor = make(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", empty)


def draw(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, the same for the same shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def surrounded(*parts: Tensor) -> list[Tensor]:
    """The same tensors as slices of one buffer along its last axis, with NaN on every side."""
    rank, first = parts[0].dim(), parts[0]
    widths = [part.shape[-1] for part in parts]
    shape = [size + 2 for size in first.shape[:-1]]
    buffer = torch.full((*shape, sum(widths) + 32), torch.nan, dtype=first.dtype)
    inner = buffer.to(first.device)[(slice(1, -1),) * (rank - 1)][..., 16:-16]
    return [
        place.copy_(part) for place, part in zip(inner.split(widths, dim=-1), parts, strict=True)
    ]


def error(found: Tensor, truth: Tensor) -> float:
    """Length of the difference in lengths of the truth; NaN if anything is."""
    return float((found.double() - truth.double()).norm() / truth.double().norm())
