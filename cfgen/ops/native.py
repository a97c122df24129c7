"""What a device computes by instructions of its own."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself.

    A CPU that does not emulates it, and is then about ten times as slow as in float32.
    """
    if device.type == "cuda":
        return True
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
