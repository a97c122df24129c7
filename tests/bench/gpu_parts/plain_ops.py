"""The fused ops in plain PyTorch, as one would write them to be compiled.

Signatures are those of `cfgen.ops.reference`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cfgen.kernels.pages import ADMITTED, ADMITTED_NOW, CAN_ADMIT, UPDATE_REFERENCE, Pages, Slots
from cfgen.ops.reference import LOG2E, TINY
from gpu_parts.attention_data import turned


def modulate(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm and modulation in the dtype of x, one shift and scale a frame."""
    normed = F.layer_norm(x, x.shape[-1:], eps=eps).unflatten(1, (shift.shape[1], -1))
    return (normed * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2).to(dtype)


def add_gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Return x + y gate, one gate a frame."""
    gated = y.unflatten(1, (gate.shape[1], -1)) * gate[:, :, None]
    return x + gated.flatten(1, 2)


def norm_rotate(
    q: Tensor,
    k: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    *,
    eps: float,
    spatial: Tensor,
    slots: Slots,
    key_sums: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Norms, then rotations in float32: of queries in space and time, of keys in space."""
    dim, time = 2 * spatial.shape[1], slots.turns[slots.here.long()]
    q, k = (F.rms_norm(x, x.shape[-1:], g, eps) for x, g in ((q, q_gain), (k, k_gain)))
    sums = k.float().sum(1, keepdim=True) if key_sums else None
    heads = [x.float().unflatten(1, (len(time), -1)).unflatten(-1, (-1, dim)) for x in (q, k)]
    turned_q, turned_k = (turned(x, spatial[None, None, :, None]) for x in heads)
    turned_q = turned(turned_q, time[None, :, None, None]) * (LOG2E / math.sqrt(dim))
    return turned_q.flatten(1, 2).to(q.dtype), turned_k.flatten(1, 2).to(k.dtype), sums


def write_pages(k: Tensor, v: Tensor, pages: Pages, into: Tensor) -> None:
    """Pages [F, B, N, P, D] by one indexed copy each, quantized before."""
    at = into.long()
    frames = [x.unflatten(1, (len(into), -1)).permute(1, 0, 3, 2, 4) for x in (k, v)]
    old_k, old_v = frames
    if pages.k_scale is not None and pages.k_mean is not None:
        mean = old_k.float().mean(3)
        off = old_k.float() - mean[:, :, :, None]
        step = off.abs().amax((3, 4)).clamp_min(TINY) / 127
        pages.k_mean.index_copy_(0, at, mean)
        pages.k_scale.index_copy_(0, at, step)
        old_k = (off / step[..., None, None]).round()
    if pages.v_scale is not None:
        step = old_v.float().abs().amax(3).clamp_min(TINY) / 448
        pages.v_scale.index_copy_(0, at, step)
        old_v = old_v.float() / step[:, :, :, None]
    pages.k[at] = old_k.to(pages.k.dtype)
    pages.v[at] = old_v.to(pages.v.dtype)


def admit(parts: Tensor, state: Tensor, decision: Tensor, *, tokens: int, tau: float) -> None:
    """The decision without asking the host."""
    keys = parts.sum(1) / tokens
    surprising = F.cosine_similarity(state, keys, dim=-1).mean() < tau
    fired = surprising & (decision[CAN_ADMIT] != 0) & (decision[ADMITTED] == 0)
    decision[ADMITTED_NOW] = fired.int()
    decision[ADMITTED] = decision[ADMITTED] | fired.int()
    state.copy_(torch.where(fired | (decision[UPDATE_REFERENCE] != 0), keys, state))
