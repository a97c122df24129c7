"""Moments of Wan2.1's raw latents: a generator makes normalised ones.

Axis letters: C channels, H W grid.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
"""Moments of the 16 channels of Wan2.1's raw latents.

Source: Wan-Video/Wan2.1 wan/modules/vae.py @ 9737cba.
"""


def normalised(raw_CHW: Tensor) -> Tensor:
    """Raw latents [..., 16, h, w] of Wan2.1 as a generator makes them, in float32 at least."""
    return (raw_CHW - _channels(LATENT_MEAN, raw_CHW)) / _channels(LATENT_STD, raw_CHW)


def denormalised(latents_CHW: Tensor) -> Tensor:
    """The raw latents [..., 16, h, w] of Wan2.1 that normalised ones mean, in float32 at least."""
    return latents_CHW * _channels(LATENT_STD, latents_CHW) + _channels(LATENT_MEAN, latents_CHW)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return _sent(values, torch.promote_types(like.dtype, torch.float32), like.device)


@functools.lru_cache(maxsize=8)
def _sent(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Moments where they are used; to send them with every chunk would make the host wait."""
    with torch.inference_mode(False):  # gradients may be wanted another time
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]
