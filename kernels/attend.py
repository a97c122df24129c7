"""Attention of a chunk to stored pages and to itself; pages are read where they lie, as they are.

All tokens of a page sit at one time, and turning its keys by that time equals turning the query the
other way: (R(s) q) . (R(t) k) = (R(-t) R(s) q) . k. So a tile of queries is turned once for each
page, and the keys, quantized or not, go from memory into the products untouched.

Axis letters: B batch, F latent frames of a chunk, P tokens per latent frame, L = F * P, N heads,
D head dim.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# The bodies of kernels are Triton's language, in which a tensor's type is not Python's.

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cfgen.kernels.attend_block import block, load_queries, sized_page, turn_back, with_bias
from cfgen.kernels.device import capability, processors, unsupported_device
from cfgen.kernels.pages import Pages, Slots
from cfgen.kernels.rows import need_dense

FLOATS = (torch.bfloat16, torch.float16, torch.float32)

TINY = tl.constexpr(1e-20)
"""The least that is divided by: queries of zeros stay zeros."""

ROUND = tl.constexpr(1.5 * 2**23)
"""A float32 of this size has no room for a fraction, and its last bits are those of an integer."""

MERGE = 0.05
"""What merging a run costs, in times that a program needs for all pages and frames."""

MERGED = 4096
"""Numbers that a program of `_merge` holds at once."""


class Tile(NamedTuple):
    """Queries and keys that a program holds at once, its warps, and stages of its loads."""

    queries: int
    keys: int
    warps: int = 8
    stages: int = 3


def unsupported(
    device: torch.device,
    *,
    dtype: torch.dtype,
    head_dim: int,
    keys: torch.dtype | None = None,
    values: torch.dtype | None = None,
) -> str | None:
    """Why `attend_pages` cannot run, in a sentence; None if it can.

    Args:
        device: Where the tensors are.
        dtype: What queries, and keys and values of the chunk, are computed in.
        head_dim: Channels of a head.
        keys: What pages keep keys in; by default `dtype`.
        values: What pages keep values in; by default `dtype`.
    """
    reason: str | None = unsupported_device(device)
    if reason:
        return reason
    if dtype not in FLOATS:
        return f"Queries must be bfloat16, float16 or float32, not {dtype}."
    if head_dim % 2 or not 32 <= head_dim <= 128:
        return f"Heads must have an even number of channels from 32 to 128, not {head_dim}."
    if keys not in (None, dtype, torch.int8):
        return f"Beside queries of {dtype}, pages can keep keys in that or in int8, not in {keys}."
    if values not in (None, dtype, torch.float8_e4m3fn):
        return (
            f"Beside queries of {dtype}, pages can keep values in that or in float8_e4m3fn, "
            f"not in {values}."
        )
    if values == torch.float8_e4m3fn and device.type == "cuda" and capability(device) < 89:
        return "Pages of float8_e4m3fn need compute capability 8.9 or newer; keep them in bfloat16."
    return None


@triton.jit(
    do_not_specialize_on_alignment=[
        "page",
        "row",
        "count",
        "here",
        "admitted",
        "bias",
        "place",
        "size",
    ]
)
def _attend(
    out,
    partial,
    stats,
    q,
    k,
    v,
    page_k,
    page_v,
    k_scale,
    k_mean,
    v_scale,
    page,
    row,
    count,
    here,
    admitted,
    turns,
    bias,
    place,
    size,
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    length,
    heads,
    slots,
    frames,
    tiles,
    P: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """A tile of queries of one head, and one of `SPLITS` runs of pages and frames.

    Of int8 keys the query becomes int8 too, and their mean adds the same to all scores of a row.
    """
    # One program: QUERIES queries of one head, over its share of the pages and, behind them, of the
    # chunk's own frames. It is attention with a running maximum (FlashAttention), page by page,
    # with one twist: pages hold keys without temporal rotation. Rotating a key by the angle of its
    # position gives the same score as rotating the query back by it, so each page costs one turn of
    # the query tile instead of one of P keys, and pages can change position without being touched.
    start, split = tl.program_id(0) % tiles * QUERIES, tl.program_id(0) // tiles
    lane, lanes = tl.program_id(1), tl.num_programs(1)
    batch, head = (lane // heads).to(tl.int64), (lane % heads).to(tl.int64)
    q += batch * q_batch + start.to(tl.int64) * q_token + head * q_head
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    which, left = tl.load(admitted), length - start
    pages = tl.load(count + which)
    page += which * slots
    row += which * slots
    first = split * (pages + frames) // SPLITS
    last = (split + 1) * (pages + frames) // SPLITS
    end = tl.minimum(last, pages)
    channel = tl.arange(0, WIDTH)
    inside = channel < D
    acc = tl.zeros((QUERIES, WIDTH), tl.float32)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    unit, shift = total, total
    for i in range(first, end):
        at = tl.load(page + i).to(tl.int64) * lanes + lane
        x = load_queries(q, left, q_token, D, WIDTH, QUERIES)
        x = turn_back(x, turns + tl.load(row + i) * D, D, WIDTH, QUERIES)
        # Keys in int8: the page's mean key was taken off before rounding. Its part of the score is
        # the same for all keys of the page, `shift`; the rest is an integer product in steps of
        # `unit`.
        if k_scale is None:
            ready = x.to(q.dtype.element_ty)
        else:
            most = tl.maximum(tl.max(tl.abs(x), 1), TINY)
            ready = (x * (127 / most)[:, None] + ROUND).to(tl.int32, bitcast=True).to(tl.int8)
            mean = tl.load(k_mean + at * D + channel, mask=inside, other=0)
            unit, shift = most / 127 * tl.load(k_scale + at), tl.sum(x * mean[None], 1)
        added = with_bias(shift, bias, which * slots + i)
        # Values in 8 bits have a step for each page and channel. The sum so far is kept in units of
        # the current page's step, so that its integers can be added as they are.
        if v_scale is not None:
            before = tl.load(page + tl.maximum(i - 1, first)).to(tl.int64) * lanes + lane
            old = tl.load(v_scale + before * D + channel, mask=inside, other=1)
            acc *= (old / tl.load(v_scale + at * D + channel, mask=inside, other=1))[None]
        if size is None:
            k_at, v_at = page_k + at * (P * D), page_v + at * (P * D)
            for begin in range(0, P, KEYS):
                # fmt: off
                acc, top, total = block(
                    ready, acc, top, total, k_at, v_at, D, D, begin, unit, added,
                    P, D, WIDTH, KEYS, bias is not None,
                )
                # fmt: on
        else:  # pages of several sizes lie behind one another, whatever their number
            tokens = tl.load(size + which * slots + i)
            rows = tl.load(place + which * slots + i).to(tl.int64) * lanes
            row_at = (rows + lane.to(tl.int64) * tokens) * D
            # fmt: off
            acc, top, total = sized_page(
                ready, acc, top, total, page_k + row_at, page_v + row_at, tokens, unit, added,
                D, WIDTH, KEYS, bias is not None,
            )
            # fmt: on
    if v_scale is not None:
        at = tl.load(page + end - 1, mask=first < end, other=0).to(tl.int64) * lanes + lane
        read = channel < tl.where(first < end, D, 0)
        acc *= tl.load(v_scale + at * D + channel, mask=read, other=1)[None]
    for i in range(tl.maximum(first - pages, 0), last - pages):
        x = load_queries(q, left, q_token, D, WIDTH, QUERIES)
        x = turn_back(x, turns + tl.load(here + i) * D, D, WIDTH, QUERIES)
        ready = x.to(q.dtype.element_ty)
        k_at, v_at = k + i * P * tl.cast(k_token, tl.int64), v + i * P * tl.cast(v_token, tl.int64)
        for begin in range(0, P, KEYS):
            # fmt: off
            acc, top, total = block(
                ready, acc, top, total, k_at, v_at, k_token, v_token, begin, unit, shift,
                P, D, WIDTH, KEYS, False,
            )
            # fmt: on
    token = tl.arange(0, QUERIES)
    at = (batch * length + start) * heads + head
    kept = (token < left)[:, None] & inside[None]
    if SPLITS == 1:
        out += at * D + token[:, None] * (heads * D) + channel[None]
        tl.store(out, (acc / total[:, None]).to(out.dtype.element_ty), mask=kept)
    else:
        rows = (lanes // heads).to(tl.int64) * length * heads
        at += split * rows
        tl.store(partial + at * D + token[:, None] * (heads * D) + channel[None], acc, mask=kept)
        tl.store(stats + at + token * heads, top, mask=token < left)
        tl.store(stats + SPLITS * rows + at + token * heads, total, mask=token < left)


@triton.jit
def _merge(
    out,
    partial,
    stats,
    rows,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Some rows of the result: the runs' sums, each in steps of the largest score of all runs."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)[None]
    there = row < rows
    kept = there[:, None] & (channel < D)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    for split in range(SPLITS):
        top = tl.maximum(top, tl.load(stats + split * rows + row, mask=there, other=0))
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for split in range(SPLITS):
        at = split * rows + row
        weight = tl.exp2(tl.load(stats + at, mask=there, other=0) - top)
        total += weight * tl.load(stats + SPLITS * rows + at, mask=there, other=1)
        acc += weight[:, None] * tl.load(partial + at[:, None] * D + channel, mask=kept, other=0)
    out += row[:, None] * D + channel
    tl.store(out, (acc / total[:, None]).to(out.dtype.element_ty), mask=kept)


def attend_pages(
    q_BLND: Tensor,
    k_BLND: Tensor,
    v_BLND: Tensor,
    pages: Pages,
    slots: Slots,
    *,
    splits: int | None = None,
) -> Tensor:
    """Attention of a chunk to pages and to itself, as `cfgen.ops.reference.attend_pages` has it.

    Nothing on the device is read by the host, and grids follow from shapes alone.

    Args:
        q_BLND: Queries; their last axis lies in one piece, as does that of keys and values.
        k_BLND: Keys of the chunk itself.
        v_BLND: Values of the chunk itself.
        pages: The layer's pages.
        slots: Which of them are read, and where everything sits.
        splits: Runs that pages and frames are divided into, each computed by programs of its own;
            by default what fills the device best.

    Raises:
        ValueError: A tensor does not lie as it must, or shapes do not fit together.
    """
    batch, length, heads, head_dim = q_BLND.shape
    frames = len(slots.here)
    tokens = length // frames
    _check(q_BLND, k_BLND, v_BLND, pages, slots)
    width = triton.next_power_of_2(head_dim)
    tile = _tile(capability(q_BLND.device), width, q_BLND.dtype)
    tiles, lanes = triton.cdiv(length, tile.queries), batch * heads
    units = slots.page.shape[1] + frames
    runs = splits or _splits(tiles * lanes, units, processors(q_BLND.device))
    out = torch.empty(q_BLND.shape, dtype=q_BLND.dtype, device=q_BLND.device)
    partial = stats = None
    if runs > 1:
        partial = torch.empty((runs, *q_BLND.shape), dtype=torch.float32, device=q_BLND.device)
        shape = (2, runs, batch, length, heads)
        stats = torch.empty(shape, dtype=torch.float32, device=q_BLND.device)
    strides = [stride for x in (q_BLND, k_BLND, v_BLND) for stride in x.stride()[:3]]
    # fmt: off
    _attend[tiles * runs, lanes](
        out, partial, stats, q_BLND, k_BLND, v_BLND, *pages, *slots, *strides,
        length, heads, units - frames, frames, tiles,
        P=tokens, D=head_dim, WIDTH=width, QUERIES=tile.queries,
        KEYS=min(tile.keys, max(16, triton.next_power_of_2(tokens))), SPLITS=runs,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )
    if runs > 1:
        rows = batch * length * heads
        _merge[triton.cdiv(rows * width, MERGED),](
            out, partial, stats, rows, D=head_dim, WIDTH=width, ROWS=MERGED // width, SPLITS=runs,
            num_warps=8, enable_fp_fusion=True,
        )
    # fmt: on
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, pages: Pages, slots: Slots) -> None:
    """Refuse what the kernels would misread."""
    batch, length, heads, head_dim = q.shape
    page: tuple[int, ...] = (batch, heads, length // len(slots.here), head_dim)
    if slots.tokens is not None:
        page = (head_dim,)
    if not q.shape == k.shape == v.shape or length % len(slots.here) or pages.k.shape[1:] != page:
        raise ValueError(
            f"queries {list(q.shape)}, keys {list(k.shape)}, values {list(v.shape)}, "
            f"{len(slots.here)} frames and pages {list(pages.k.shape)} do not fit together; "
            "they are [B, F * P, N, D] three times, F, and [pages, B, N, P, D], or [rows, D] "
            "where pages are of several sizes"
        )
    for name, x in (("q_BLND", q), ("k_BLND", k), ("v_BLND", v)):
        need_dense(name, x)
    for name, table in (*pages._asdict().items(), *slots._asdict().items()):
        if table is not None:
            need_dense(name, table, table.dim())


def _tile(found: int, width: int, dtype: torch.dtype) -> Tile:
    """The tile for a compute capability and heads padded to `width` channels.

    The largest that Triton 3.6.0 and 3.9.0 keep in registers whole; with fewer queries, keys would
    come from the L2 cache too often. In two stages the loads of a block begin right before it is
    waited for, in three a block earlier. Compiled, compared and left:

    - tensor descriptors: 6 % fewer instructions a block on sm_90, 70 to 100 % more before it;
    - a smaller block for the end of a page: 26 to 111 spills a page on sm_90;
    - one loop over pages and blocks: with `flatten`, loads begin when they are waited for; written
      out, 20 to 35 % more instructions a block on sm_90, for the loads between pages alone;
    - scores of the next block before the weights of this one: Triton waits for both at once.
    """
    if dtype == torch.float32:  # without tensor cores, products take more registers
        return Tile(64, 16, stages=2)
    if found // 10 in (8, 12):
        return Tile(128, 32 if width == 128 else 64)
    return Tile(128, 64 if found // 10 > 9 else 128)


def _splits(programs: int, units: int, processors: int) -> int:
    """How many runs finish first, where one program fills a multiprocessor."""

    def cost(runs: int) -> float:
        rounds = float(triton.cdiv(programs * runs, processors) / runs)
        return rounds + (MERGE * runs if runs > 1 else 0)

    return min(range(1, min(8, units) + 1), key=cost)
