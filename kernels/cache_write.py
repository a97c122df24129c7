"""From projections to pages: norm and rotation of queries and keys, and the writing of pages.

Axis letters: B batch, F latent frames, P tokens per latent frame, L = F * P, N heads, D head dim,
C = N * D, E = D / 2 rotary pairs, n groups of tokens.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# The bodies of kernels are Triton's language, in which a tensor's type is not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cfgen.kernels.device import capability, unsupported_device
from cfgen.kernels.pages import Pages, Slots
from cfgen.kernels.rows import need_dense, row_block

GROUP = 16
"""Tokens of a group, which one program of `norm_rotate` works through: enough to make the sums over
groups small beside the keys, few enough to give every multiprocessor several programs."""

PAGE_TILE, PAGE_STEPS = 8192, 4
"""Numbers that a program of `write_pages` holds at once, and how often."""

LOG2E = tl.constexpr(1.4426950408889634)

TINY = tl.constexpr(1e-20)
"""The least that is divided by: a page of zeros stays one."""

ROUND = tl.constexpr(1.5 * 2**23)
"""A float32 of this size has no room for a fraction, and its last bits are those of an integer."""

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def unsupported(
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int,
    keys: torch.dtype | None = None,
    values: torch.dtype | None = None,
) -> str | None:
    """Why this file's functions cannot run, in a sentence; None if they can.

    Args:
        device: Where the tensors are.
        dtype: What keys and values are computed in.
        head_dim: Channels of a head.
        keys: What pages keep keys in; by default `dtype`.
        values: What pages keep values in; by default `dtype`.
    """
    reason: str | None = unsupported_device(device)
    if reason:
        return reason
    if dtype not in FLOATS:
        return f"Queries and keys must be bfloat16, float16 or float32, not {dtype}."
    if head_dim % 2 or not 2 <= head_dim <= 256:
        return f"Heads must have an even number of channels from 2 to 256, not {head_dim}."
    if keys not in (None, torch.int8, *FLOATS):
        return f"Pages can keep keys in bfloat16, float16, float32 or int8, not {keys}."
    if values not in (None, torch.float8_e4m3fn, *FLOATS):
        return (
            f"Pages can keep values in bfloat16, float16, float32 or float8_e4m3fn, not {values}."
        )
    if values == torch.float8_e4m3fn and device.type == "cuda" and capability(device) < 89:
        return "Pages of float8_e4m3fn need compute capability 8.9 or newer; keep them in bfloat16."
    return None


@triton.jit
def _times(a, b, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Product of complex numbers whose parts stand side by side in the last axis."""
    a_re, a_im = tl.split(tl.reshape(a, (ROWS, WIDTH // 2, 2)))
    b_re, b_im = tl.split(tl.reshape(b, (ROWS, WIDTH // 2, 2)))
    product = tl.join(a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re)
    return tl.reshape(product, (ROWS, WIDTH))


@triton.jit
def _norm_rotate_half(
    x, gain, rates, out, sums, spatial, turns, here, batch_stride, token_stride, length, tokens,
    width, eps,
    D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Queries of a group of tokens, or, if there are no turns, keys and their sums."""
    group, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, WIDTH)[None]
    x += batch * batch_stride + channel
    out += batch * length * width + channel
    gains = tl.load(gain + channel, mask=channel < width, other=0).to(tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    for step in range(STEPS):
        token = (group * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        kept = (token < length) & (channel < width)
        row = tl.load(x + token * token_stride, mask=kept, other=0).to(tl.float32)
        turn = tl.load(spatial + token % tokens * D + channel % D, mask=kept, other=0)
        if turns is not None:
            frame = tl.load(here + token // tokens, mask=token < length, other=0)
            time = tl.load(turns + frame * D + channel % D, mask=kept, other=0)
            turn = _times(turn, time, ROWS, WIDTH)
        if rates is not None:
            rate = tl.load(rates + batch * length + token, mask=token < length, other=0)
        else:
            square = tl.sum(row * row, 1, keep_dims=True) / width
            rate = tl.rsqrt(square + eps)
        if turns is not None:
            rate *= LOG2E * D**-0.5
        row *= rate * gains
        if sums is not None:
            total += tl.sum(row, 0)
        row = _times(row, turn, ROWS, WIDTH).to(out.dtype.element_ty)
        tl.store(out + token * width, row, mask=kept)
    if sums is not None:
        at = (batch * tl.num_programs(0) + group) * width + tl.arange(0, WIDTH)
        tl.store(sums + at, total, mask=tl.arange(0, WIDTH) < width)


@triton.jit(do_not_specialize_on_alignment=["here"])
def _norm_rotate(
    q, k, q_gain, k_gain, q_rates, k_rates, q_out, k_out, sums, spatial, turns, here, q_batch,
    q_token, k_batch, k_token, length, tokens, width, eps,
    D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One group of tokens: its queries in one program, its keys in another."""
    if tl.program_id(2) == 0:
        _norm_rotate_half(
            q, q_gain, q_rates, q_out, None, spatial, turns, here, q_batch, q_token, length, tokens,
            width, eps, D, ROWS, STEPS, WIDTH,
        )  # fmt: skip
    else:
        _norm_rotate_half(
            k, k_gain, k_rates, k_out, sums, spatial, None, None, k_batch, k_token, length, tokens,
            width, eps, D, ROWS, STEPS, WIDTH,
        )  # fmt: skip


def norm_rotate(
    q_BLC: Tensor,
    k_BLC: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    *,
    eps: float,
    spatial: Tensor,
    slots: Slots,
    key_sums: bool,
    rates: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Projections of a chunk to queries and keys, as in `cfgen.ops.reference.norm_rotate`.

    Both are read once and written once; the sums of a group are taken in the program that has its
    keys in registers, in a fixed order. Queries and keys may be slices of one projection.

    Raises:
        ValueError: A tensor does not lie as it must, or the chunk is not made of whole frames.
    """
    _check_chunk(q_BLC, k_BLC, spatial, slots)
    batch, length, width = q_BLC.shape
    tokens, head_dim = spatial.shape[0], 2 * spatial.shape[1]
    block, rows, warps = row_block(width, GROUP)
    groups = triton.cdiv(length, GROUP)
    shape, device = (batch, length, width // head_dim, head_dim), q_BLC.device
    q, k = (torch.empty(shape, dtype=x.dtype, device=device) for x in (q_BLC, k_BLC))
    sums = (
        torch.empty(batch, groups, width, dtype=torch.float32, device=device) if key_sums else None
    )
    _norm_rotate[groups, batch, 2](
        q_BLC, k_BLC, q_gain, k_gain, *(rates or (None, None)), q, k, sums, spatial, slots.turns,
        slots.here, *q_BLC.stride()[:2], *k_BLC.stride()[:2], length, tokens, width, eps,
        D=head_dim, ROWS=rows, STEPS=GROUP // rows, WIDTH=block,
        num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return q, k, sums


def _check_chunk(q_BLC: Tensor, k_BLC: Tensor, spatial: Tensor, slots: Slots) -> None:
    tokens, head_dim, frames = spatial.shape[0], 2 * spatial.shape[1], len(slots.here)
    for name, x in (("q_BLC", q_BLC), ("k_BLC", k_BLC)):
        need_dense(name, x)
        if x.shape[1] != tokens * frames or x.shape[2] % head_dim or x.shape != q_BLC.shape:
            raise ValueError(
                f"{name} is {list(x.shape)}; allowed are {frames} frames of {tokens} tokens and "
                f"heads of {head_dim} channels, as many queries as keys"
            )
    need_dense("spatial", spatial, 3)
    need_dense("slots.turns", slots.turns, 3)


@triton.jit
def _first_of(x, batch_stride, token_stride, head_stride, batches, heads, tokens):
    """Where the frame, batch item and head of a program begin in the projections."""
    item = tl.program_id(1)
    head, batch, frame = item % heads, item // heads % batches, item // (heads * batches)
    offset = batch.to(tl.int64) * batch_stride + frame.to(tl.int64) * tokens * token_stride
    return x + offset + head * head_stride


@triton.jit(do_not_specialize_on_alignment=["only_if"])
def _measure(
    x, extent, only_if, batch_stride, token_stride, head_stride, batches, heads, tokens,
    D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sum, least and greatest number of each channel over some tokens of a frame's head."""
    if only_if is not None and tl.load(only_if) == 0:
        return
    first = _first_of(x, batch_stride, token_stride, head_stride, batches, heads, tokens)
    channel = tl.arange(0, WIDTH)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    low = tl.full((ROWS, WIDTH), float("inf"), tl.float32)
    high = tl.full((ROWS, WIDTH), float("-inf"), tl.float32)
    for step in range(STEPS):
        token = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        kept = (token < tokens) & (channel < D)[None]
        tile = tl.load(first + token.to(tl.int64) * token_stride + channel, mask=kept, other=0)
        tile = tile.to(tl.float32)
        total += tile
        low = tl.where(kept, tl.minimum(low, tile), low)
        high = tl.where(kept, tl.maximum(high, tile), high)
    parts = tl.num_programs(0)
    at = extent + (tl.program_id(1) * 3 * parts + tl.program_id(0)) * D + channel
    tl.store(at, tl.sum(total, 0), mask=channel < D)
    tl.store(at + parts * D, tl.min(low, 0), mask=channel < D)
    tl.store(at + 2 * parts * D, tl.max(high, 0), mask=channel < D)


@triton.jit(do_not_specialize_on_alignment=["into", "only_if"])
def _store(
    x, out, scale, mean, extent, into, only_if, batch_stride, token_stride, head_stride, batches,
    heads, tokens,
    D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Some tokens of a frame's head: as int8 if there is a mean, as fp8 if only a scale."""
    if only_if is not None and tl.load(only_if) == 0:
        return
    first = _first_of(x, batch_stride, token_stride, head_stride, batches, heads, tokens)
    item, pages = tl.program_id(1), batches * heads
    page = tl.load(into + item // pages).to(tl.int64) * pages + item % pages
    channel = tl.arange(0, WIDTH)
    out += page * tokens * D
    if scale is not None:
        parts, part = tl.num_programs(0), tl.arange(0, PARTS)[:, None]
        valid = (part < parts) & (channel < D)[None]
        at = extent + (item * 3 * parts + part) * D + channel
        low = tl.min(tl.load(at + parts * D, mask=valid, other=float("inf")), 0)
        high = tl.max(tl.load(at + 2 * parts * D, mask=valid, other=float("-inf")), 0)
        if mean is not None:
            centre = tl.sum(tl.load(at, mask=valid, other=0), 0) / tokens
            unit = tl.maximum(tl.max(tl.maximum(high - centre, centre - low), 0), TINY) / 127
        else:
            unit = tl.maximum(tl.maximum(high, -low), TINY) / 448
        rate = 1 / unit
        if tl.program_id(0) == 0:
            if mean is not None:
                tl.store(scale + page, unit)
                tl.store(mean + page * D + channel, centre, mask=channel < D)
            else:
                tl.store(scale + page * D + channel, unit, mask=channel < D)
    for step in range(STEPS):
        token = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        kept = (token < tokens) & (channel < D)[None]
        tile = tl.load(first + token.to(tl.int64) * token_stride + channel, mask=kept, other=0)
        if mean is not None:
            units = (tile.to(tl.float32) - centre) * rate + ROUND
            stored = units.to(tl.int32, bitcast=True).to(tl.int8)
        elif scale is not None:
            stored = (tile.to(tl.float32) * rate).to(out.dtype.element_ty)
        else:
            stored = tile.to(out.dtype.element_ty)
        tl.store(out + token * D + channel, stored, mask=kept)


def write_pages(
    k_BLND: Tensor, v_BLND: Tensor, pages: Pages, into: Tensor, *, only_if: Tensor | None = None
) -> None:
    """Store frames as pages, as `cfgen.ops.reference.write_pages` defines it.

    A page that is quantized is read twice, by as many programs each time as fill a GPU: one launch
    for the extent of its numbers, one to store it. The device alone looks into `into`, which must
    name pages that exist, and into `only_if`.

    Raises:
        ValueError: A tensor does not lie as it must, or a page has another shape than the frames.
    """
    _write(k_BLND, pages.k, into, only_if, scale=pages.k_scale, mean=pages.k_mean)
    _write(v_BLND, pages.v, into, only_if, scale=pages.v_scale, mean=None)


def _write(
    x_BLND: Tensor,
    out: Tensor,
    into: Tensor,
    only_if: Tensor | None,
    *,
    scale: Tensor | None,
    mean: Tensor | None,
) -> None:
    batch, length, heads, head_dim = x_BLND.shape
    tokens = length // len(into)
    if out.shape[1:] != (batch, heads, tokens, head_dim) or length % len(into):
        raise ValueError(
            f"{len(into)} frames of {list(x_BLND.shape)} do not fit pages of {list(out.shape[1:])}"
        )
    need_dense("keys or values", x_BLND)
    for name, pool in (("pages", out), ("their scales", scale), ("their means", mean)):
        if pool is not None:
            need_dense(name, pool, pool.dim())
    block = max(16, triton.next_power_of_2(head_dim))
    rows, steps = PAGE_TILE // block, PAGE_STEPS
    parts = triton.cdiv(tokens, rows * steps)
    grid = (parts, len(into) * batch * heads)
    place = (*x_BLND.stride()[:3], batch, heads, tokens)
    table = {"D": head_dim, "ROWS": rows, "STEPS": steps, "WIDTH": block}
    table |= {"num_warps": 8, "enable_fp_fusion": True}
    extent = None
    if scale is not None:
        extent = torch.empty(grid[1], 3, parts, head_dim, dtype=torch.float32, device=out.device)
        _measure[grid](x_BLND, extent, only_if, *place, **table)
    table["PARTS"] = triton.next_power_of_2(parts)
    _store[grid](x_BLND, out, scale, mean, extent, into, only_if, *place, **table)
