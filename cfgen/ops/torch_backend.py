"""The fast path in stock PyTorch, for CPUs and for GPUs without Triton; gradients flow through it.

Axis letters: B batch, F latent frames, L tokens, S key tokens, N heads, D head dim, E model width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cfgen.kernels.pages import Pages
from cfgen.ops.reference import rotate, step_of_keys, step_of_values


def attend(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor, bias_BS: Tensor | None = None) -> Tensor:
    """Softmax attention: [B, L, N, D] in the dtype of the queries.

    Where gradients are wanted on a CPU, two matrix products stand in for the fused kernel, whose
    backward pass is slow there: forward and backward of `attend(q, k, v).sum()` in bf16, with q
    [24, 180, 4, 64], k and v [24, 64, 4, 64], take 5 ms instead of 19 ms (two cores of an AMD EPYC
    with avx512_bf16, torch 2.13).

    Args:
        q_BLND: Queries.
        k_BSND: Keys.
        v_BSND: Values.
        bias_BS: Added to the scores of each key.
    """
    dtype = q_BLND.dtype
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q_BLND, k_BSND, v_BSND))
    bias = None if bias_BS is None else bias_BS[:, None, None].to(dtype)
    if q.requires_grad and q.device.type == "cpu":
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weights = torch.softmax(scores if bias is None else scores + bias, -1)
        return (weights.to(dtype) @ v).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def norm(
    x_BLC: Tensor, gain: Tensor, eps: float, head_dim: int, rate_BL: Tensor | None = None
) -> Tensor:
    """Root-mean-square norm over all heads: [B, L, N, D] in float32 at least.

    A rate that is given is what `reference.norm_rate` makes of all heads, of which these are some.
    """
    wide = x_BLC if x_BLC.dtype == torch.float64 else x_BLC.float()
    if rate_BL is None:
        normed = F.rms_norm(wide, gain.shape, gain.to(wide.dtype), eps)
    else:
        normed = wide * rate_BL[..., None] * gain.to(wide.dtype)
    return torch.unflatten(normed, -1, (-1, head_dim))


def modulate(
    x_BLE: Tensor, shift_BFE: Tensor, scale_BFE: Tensor, *, eps: float, dtype: torch.dtype
) -> Tensor:
    """See `reference.modulate`."""
    normed = F.layer_norm(x_BLE, x_BLE.shape[-1:], eps=eps)
    x = torch.unflatten(normed, 1, (shift_BFE.shape[1], -1))
    moved = torch.addcmul(shift_BFE[:, :, None], x, 1 + scale_BFE[:, :, None])
    return moved.flatten(1, 2).to(dtype)


def add_gated(x_BLE: Tensor, y_BLE: Tensor, gate_BFE: Tensor) -> Tensor:
    """See `reference.add_gated`."""
    frames = gate_BFE.shape[1]
    x, y = (torch.unflatten(t, 1, (frames, -1)) for t in (x_BLE, y_BLE))
    return torch.addcmul(x, y, gate_BFE[:, :, None]).flatten(1, 2)


def write_pages(
    k_BLND: Tensor, v_BLND: Tensor, pages: Pages, into: Tensor, *, only_if: Tensor | None = None
) -> None:
    """See `reference.write_pages`; frames together instead of one after another.

    A GPU decides for itself: the host does not wait to learn whether something is stored.
    """
    if only_if is not None and only_if.device.type == "cpu":
        if not int(only_if):
            return
        only_if = None
    k, v = (torch.unflatten(x, 1, (len(into), -1)).permute(1, 0, 3, 2, 4) for x in (k_BLND, v_BLND))
    where = into.long()

    def store(pool: Tensor, frames: Tensor) -> None:
        new, bits = frames.to(pool.dtype), pool
        if only_if is not None:
            if pool.dtype.is_floating_point and pool.itemsize == 1:  # `where` takes no float8
                new, bits = new.view(torch.uint8), pool.view(torch.uint8)
            new = torch.where(only_if.bool(), new, bits[where])
        bits[where] = new

    if pages.k_scale is not None and pages.k_mean is not None:
        k, mean, scale = step_of_keys(k)
        store(pages.k_mean, mean)
        store(pages.k_scale, scale)
    if pages.v_scale is not None:
        v, scale = step_of_values(v, pages.v.dtype)
        store(pages.v_scale, scale)
    store(pages.k, k)
    store(pages.v, v)


__all__ = ["add_gated", "attend", "modulate", "norm", "rotate", "write_pages"]
