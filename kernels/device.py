"""What a device can do for Triton kernels: asked by every kernel file, and answered here alone."""

from __future__ import annotations

import os

import torch

OLDEST = 80
"""The oldest compute capability that kernels are written for: bfloat16 in tensor cores."""


def capability(device: torch.device) -> int:
    """Compute capability of a CUDA device as one number (90 for 9.0); 0 for any other device."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 132 (an H200's) for any other."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def unsupported_device(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device, in a sentence; None if they can.

    Where TRITON_INTERPRET=1 is set they run on a CPU, slowly: tests do that.
    """
    if device.type == "cuda" or "TRITON_INTERPRET" in os.environ:  # importing Triton takes a while
        try:
            from triton import knobs
        except ImportError:
            return "Triton is not installed; it is available on Linux only."
        if device.type == "cpu" and knobs.runtime.interpret:
            return None
    if device.type != "cuda":
        return f"Triton kernels need a CUDA device, not {device.type}."
    if torch.version.hip is not None:
        return "Triton kernels are written for NVIDIA GPUs, and this PyTorch is built for AMD ones."
    if (found := capability(device)) < OLDEST:
        return (
            f"Triton kernels need compute capability {OLDEST / 10} or newer, "
            f"and {torch.cuda.get_device_name(device)} has {found / 10}."
        )
    return None
