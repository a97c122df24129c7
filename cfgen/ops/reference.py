"""Every op in plain PyTorch: the truth that other backends are tested against.

Axis letters: B batch, L query tokens, S key tokens, N heads, D head dim, P tokens per latent frame,
E rotary pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rope:
    """Three-axis rotary embedding over adjacent pairs: time first, then height, then width.

    Of the head's D/2 pairs, height and width take a third each (rounded down) and time the rest.
    Angles are computed for the positions asked for, so no position is too large.
    Source: Wan2.1 wan/modules/model.py @ 9737cba (`rope_params`, `rope_apply`).
    """

    head_dim: int
    theta: float = 10000.0

    def temporal(self, positions: Sequence[int]) -> Tensor:
        """Angles of temporal positions: [len(positions), E] float64, zero for the spatial pairs."""
        pairs = self.head_dim // 2
        spatial = pairs // 3
        angles = torch.zeros(len(positions), pairs, dtype=torch.float64)
        angles[:, : pairs - 2 * spatial] = self._axis(torch.tensor(positions), pairs - 2 * spatial)
        return angles

    def spatial(self, grid: tuple[int, int]) -> Tensor:
        """Angles of a frame's tokens, row by row: [height * width, E] float64, zero in time."""
        height, width = grid
        pairs = self.head_dim // 2
        third = pairs // 3
        angles = torch.zeros(height, width, pairs, dtype=torch.float64)
        start = pairs - 2 * third
        angles[..., start : start + third] = self._axis(torch.arange(height), third)[:, None]
        angles[..., start + third :] = self._axis(torch.arange(width), third)[None]
        return angles.flatten(0, 1)

    def _axis(self, positions: Tensor, pairs: int) -> Tensor:
        exponent = torch.arange(pairs, dtype=torch.float64) / max(1, pairs)
        return positions.to(torch.float64)[:, None] / torch.pow(
            torch.tensor(self.theta, dtype=torch.float64), exponent
        )


def turns(angles: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Unit complex numbers of angles: complex128 where `dtype` is float64, else complex64."""
    precision = torch.complex128 if dtype == torch.float64 else torch.complex64
    return torch.polar(torch.ones_like(angles), angles).to(device=device, dtype=precision)


def rotate(x_BLND: Tensor, turns_LE: Tensor) -> Tensor:
    """Rotate adjacent channel pairs [B, L, N, D] by complex numbers [L, D/2]; keeps the dtype."""
    real = torch.float64 if turns_LE.dtype == torch.complex128 else torch.float32
    pairs = torch.view_as_complex(torch.unflatten(x_BLND.to(real), -1, (-1, 2)))
    return torch.view_as_real(pairs * turns_LE[None, :, None]).flatten(-2).to(x_BLND.dtype)


def attend(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    """Softmax attention without a mask: [B, L, N, D], computed in float32 (float64 for float64)."""
    exact = torch.float64 if q_BLND.dtype == torch.float64 else torch.float32
    q, k, v = (x.to(exact).transpose(1, 2) for x in (q_BLND, k_BSND, v_BSND))
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v).transpose(1, 2).to(q_BLND.dtype)
