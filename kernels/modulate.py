"""What stands around attention and feed-forward: norm with modulation, and the gated residual.

Axis letters: B batch, F latent frames, L tokens of the chunk, E channels.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# The bodies of kernels are Triton's language, in which a tensor's type is not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cfgen.kernels.device import unsupported_device
from cfgen.kernels.rows import need_dense, row_block

GROUP = 8
"""Tokens of a program of `modulate`: together they read shift and scale once."""

GATED_TOKENS, GATED_CHANNELS = 16, 512
"""The same of `add_gated`, which need not have whole tokens."""

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def unsupported(device: torch.device, *dtypes: torch.dtype) -> str | None:
    """Why this file's functions cannot run on tensors of some types; None if they can."""
    reason: str | None = unsupported_device(device)
    if reason:
        return reason
    for dtype in dtypes:
        if dtype not in FLOATS:
            return f"Activations must be bfloat16, float16 or float32, not {dtype}."
    return None


@triton.jit
def _modulate(
    x, shift, scale, out, x_batch, x_token, shift_batch, shift_frame, scale_batch, scale_frame,
    tokens, width, eps,
    ROWS: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Some tokens of one latent frame."""
    frame, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, WIDTH)[None]
    inside = channel < width
    shift += batch * shift_batch + frame * shift_frame + channel
    scale += batch * scale_batch + frame * scale_frame + channel
    shifts = tl.load(shift, mask=inside, other=0).to(tl.float32)
    scales = 1 + tl.load(scale, mask=inside, other=0).to(tl.float32)
    for step in range(STEPS):
        within = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        token = frame.to(tl.int64) * tokens + within
        kept = inside & (within < tokens)
        row = tl.load(x + batch * x_batch + token * x_token + channel, mask=kept, other=0)
        row = row.to(tl.float32)
        row = tl.where(kept, row - tl.sum(row, 1, keep_dims=True) / width, 0)
        row *= tl.rsqrt(tl.sum(row * row, 1, keep_dims=True) / width + eps)
        at = out + (batch * tl.num_programs(1) * tokens + token) * width + channel
        tl.store(at, (row * scales + shifts).to(out.dtype.element_ty), mask=kept)


def modulate(
    x_BLE: Tensor, shift_BFE: Tensor, scale_BFE: Tensor, *, eps: float, dtype: torch.dtype
) -> Tensor:
    """Layer norm, then (1 + scale) x + shift, as `cfgen.ops.reference.modulate` defines it.

    Each token is read once, and its mean and variance are taken one after the other in registers.

    Raises:
        ValueError: A tensor does not lie as it must, or the tokens are no whole number of frames.
    """
    batch, length, width = x_BLE.shape
    frames, tokens = _frames(x_BLE, shift_BFE)
    if scale_BFE.shape != shift_BFE.shape:
        raise ValueError(f"shift is {list(shift_BFE.shape)} and scale {list(scale_BFE.shape)}")
    for name, x in (("x_BLE", x_BLE), ("shift_BFE", shift_BFE), ("scale_BFE", scale_BFE)):
        need_dense(name, x)
    block, rows, warps = row_block(width, GROUP)
    out = torch.empty(batch, length, width, dtype=dtype, device=x_BLE.device)
    strides = [stride for x in (x_BLE, shift_BFE, scale_BFE) for stride in x.stride()[:2]]
    _modulate[triton.cdiv(tokens, GROUP), frames, batch](
        x_BLE, shift_BFE, scale_BFE, out, *strides, tokens, width, eps,
        ROWS=rows, STEPS=GROUP // rows, WIDTH=block, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return out


@triton.jit
def _add_gated(
    x, y, gate, out, x_batch, x_token, y_batch, y_token, gate_batch, gate_frame, frames, tokens,
    width,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Some channels of some tokens of one latent frame."""
    frame, batch = tl.program_id(2) % frames, (tl.program_id(2) // frames).to(tl.int64)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None]
    within = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    token = frame.to(tl.int64) * tokens + within
    inside = channel < width
    kept = inside & (within < tokens)
    gates = tl.load(gate + batch * gate_batch + frame * gate_frame + channel, mask=inside, other=0)
    sums = tl.load(x + batch * x_batch + token * x_token + channel, mask=kept, other=0)
    added = tl.load(y + batch * y_batch + token * y_token + channel, mask=kept, other=0)
    sums = sums.to(tl.float32) + added.to(tl.float32) * gates.to(tl.float32)
    at = out + (batch * frames * tokens + token) * width + channel
    tl.store(at, sums.to(out.dtype.element_ty), mask=kept)


def add_gated(x_BLE: Tensor, y_BLE: Tensor, gate_BFE: Tensor) -> Tensor:
    """The sum x + y gate, as `cfgen.ops.reference.add_gated` defines it.

    Raises:
        ValueError: A tensor does not lie as it must, or the tokens are no whole number of frames.
    """
    if x_BLE.shape != y_BLE.shape:
        raise ValueError(f"{list(y_BLE.shape)} cannot be added to {list(x_BLE.shape)}")
    frames, tokens = _frames(x_BLE, gate_BFE)
    for name, x in (("x_BLE", x_BLE), ("y_BLE", y_BLE), ("gate_BFE", gate_BFE)):
        need_dense(name, x)
    batch, _, width = x_BLE.shape
    out = torch.empty(x_BLE.shape, dtype=x_BLE.dtype, device=x_BLE.device)
    strides = [stride for x in (x_BLE, y_BLE, gate_BFE) for stride in x.stride()[:2]]
    grid = (
        triton.cdiv(tokens, GATED_TOKENS),
        triton.cdiv(width, GATED_CHANNELS),
        frames * batch,
    )
    _add_gated[grid](
        x_BLE, y_BLE, gate_BFE, out, *strides, frames, tokens, width,
        ROWS=GATED_TOKENS, WIDTH=GATED_CHANNELS, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def _frames(x_BLE: Tensor, of_BFE: Tensor) -> tuple[int, int]:
    """Latent frames that have a modulation of their own, and the tokens of each."""
    batch, length, width = x_BLE.shape
    frames = of_BFE.shape[1]
    if of_BFE.shape != (batch, frames, width) or length % frames:
        raise ValueError(
            f"activations are {list(x_BLE.shape)} and their modulation {list(of_BFE.shape)}; "
            "allowed is one row for all tokens or for each of some equal parts of them"
        )
    return frames, length // frames
