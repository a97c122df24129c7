"""What every measurement shares: time of a device, its memory, and how far results are apart.

Imports nothing but torch, so that `tests/bench/gpu.py` measures by it where nothing is installed.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked to; its errors show here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds, when the device has done what it was asked to."""
    synchronize(device)
    return time.perf_counter()


def allocated_nbytes(device: torch.device) -> int:
    """Bytes of a GPU's memory that tensors take; 0 of any other device."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def distance(found: Tensor, truth: Tensor) -> float:
    """Norm of the difference over that of the truth, in float64."""
    wide, true = found.double(), truth.double()
    return float((wide - true).norm() / true.norm().clamp_min(1e-300))
