"""Triton's kernels as ops, and why they cannot run where they cannot.

Attention to a prompt stays with PyTorch, whose fused kernels are made for dense keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cfgen.kernels.device import unsupported_device


class Request(NamedTuple):
    """What ops must be able to do.

    Attributes:
        device: Where they run.
        dtype: What they compute in.
        head_dim: Channels of a head.
        keys: What pages keep keys in.
        values: What pages keep values in.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    keys: torch.dtype
    values: torch.dtype


def refusals(wanted: Request) -> list[str]:
    """Every op that cannot do what is wanted, with its reason; the reason alone if it is one."""
    if reason := unsupported_device(wanted.device):
        return [reason.rstrip(".")]
    from cfgen.kernels import attend, cache_write, modulate, similarity

    device, dtype = wanted.device, wanted.dtype
    page = {"head_dim": wanted.head_dim, "keys": wanted.keys, "values": wanted.values}
    reasons = {
        "attention": attend.unsupported(device, dtype=dtype, **page),
        "writing pages": cache_write.unsupported(device, dtype, **page),
        "modulation": modulate.unsupported(device, torch.float32, dtype),
        "admitting key frames": similarity.unsupported(device),
    }
    return [f"{name}: {reason.rstrip('.')}" for name, reason in reasons.items() if reason]
