"""Products with quantized weights in the weights' own small numbers, where the device can.

The inputs are quantized too, anew each time and token by token, which costs precision and saves
time. Dequantizing is the rule; this is what `model.matmul: native` asks for.

Axis letters: L tokens, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cfgen.ops.quant.weights import AnyQuantized, ScaledWeight, hadamard

FP8_MAX = 448.0
"""Largest number of float8_e4m3fn."""


def unsupported(weight: AnyQuantized, device: torch.device) -> str | None:
    """Why a weight cannot be multiplied as it is stored; None if it can."""
    if not isinstance(weight, ScaledWeight) or len(weight.shape) != 2:
        return f"{weight.format} has no product of its own"
    if weight.scale.shape[1] != 1 or weight.scale.shape[0] not in (1, weight.shape[0]):
        return "its scales are not one for the weight or one for each row"
    if weight.format == "int8":
        return None if not any(n % 8 for n in weight.shape) else "its sides are no multiples of 8"
    if weight.format != "float8_e4m3fn":
        return f"{weight.format} has no product of its own"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return "fp8 products need a GPU of compute capability 8.9 or newer"
    if weight.scale.numel() != 1 or any(n % 16 for n in weight.shape):
        return "fp8 products need one scale, and sides that are multiples of 16"
    return None


def linear(x: Tensor, weight: ScaledWeight) -> Tensor:
    """Product of inputs [..., K] and a weight [N, K] that is not `unsupported`.

    Returns:
        [..., N] float32.
    """
    flat = x.reshape(-1, x.shape[-1]).float()
    if weight.rotation:
        turn = hadamard(weight.rotation, x.device)
        flat = (torch.unflatten(flat, 1, (-1, weight.rotation)) @ turn.T).flatten(1)
    product = _int8(flat, weight) if weight.format == "int8" else _fp8(flat, weight)
    return product.view(*x.shape[:-1], -1)


def _int8(x: Tensor, weight: ScaledWeight) -> Tensor:
    """[L, K] float32 to [L, N]; a GPU's integer product wants more than 16 tokens."""
    short = max(0, 17 - x.shape[0]) if x.is_cuda else 0
    x = torch.nn.functional.pad(x, (0, 0, 0, short))
    step = (x.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    small = (x / step).round().to(torch.int8)
    sums = torch._int_mm(small, weight.values.T)
    return (sums * step * weight.scale.float().T)[: x.shape[0] - short]


def _fp8(x: Tensor, weight: ScaledWeight) -> Tensor:
    """[L, K] float32 to [L, N]; a GPU's fp8 product wants a multiple of 16 tokens."""
    short = -x.shape[0] % 16
    x = torch.nn.functional.pad(x, (0, 0, 0, short))
    step = (x.abs().amax() / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    small = (x / step).to(torch.float8_e4m3fn)
    scale = weight.scale.float().reshape(())
    product = torch._scaled_mm(
        small, weight.values.T, scale_a=step, scale_b=scale, out_dtype=torch.bfloat16
    )
    return product.float()[: x.shape[0] - short]
