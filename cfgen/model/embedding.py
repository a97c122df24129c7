"""Numbers that a generator reads instead of a timestep, or of many equal keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logarithms(count: int, dtype: torch.dtype) -> Tensor:
    """Numbers of a `dtype` whose exponentials add up to `count`, to 1e-7 of it; largest first."""
    found: list[Tensor] = []
    left = float(count)
    while left > 1e-7 * count:
        share = torch.tensor(math.log(left), dtype=dtype)
        if share.double().exp() > left:
            share = share.nextafter(share.new_tensor(-math.inf))
        found.append(share)
        left -= float(share.double().exp())
    return torch.stack(found) if found else torch.zeros(0, dtype=dtype)


def sinusoid(timestep: Tensor, channels: int) -> Tensor:
    """Embedding of timesteps in [0, 1000]: [..., channels] float64, cosines before sines."""
    half = channels // 2
    frequency = torch.pow(
        10000.0, -torch.arange(half, dtype=torch.float64, device=timestep.device) / half
    )
    angle = timestep.to(torch.float64)[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)
