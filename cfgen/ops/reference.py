"""Every op in plain PyTorch: the truth that other backends are tested against.

Axis letters: B batch, F latent frames of a chunk, P tokens per latent frame, L = F * P queries,
S key tokens or slots, N heads, D head dim, C = N * D, E rotary pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cfgen.kernels.pages import ADMITTED, ADMITTED_NOW, CAN_ADMIT, UPDATE_REFERENCE, Pages, Slots

LOG2E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class Rope:
    """Three-axis rotary embedding over adjacent pairs: time first, then height, then width.

    Of the head's D/2 pairs, height and width take a third each (rounded down) and time the rest.
    Angles are computed for the positions asked for, so no position is too large.
    Source: Wan2.1 wan/modules/model.py @ 9737cba (`rope_params`, `rope_apply`).
    """

    head_dim: int
    theta: float = 10000.0

    def temporal(self, positions: Sequence[int]) -> Tensor:
        """Angles of temporal positions: [len(positions), E] float64, zero for the spatial pairs."""
        pairs = self.head_dim // 2
        spatial = pairs // 3
        angles = torch.zeros(len(positions), pairs, dtype=torch.float64)
        angles[:, : pairs - 2 * spatial] = self._axis(torch.tensor(positions), pairs - 2 * spatial)
        return angles

    def spatial(self, grid: tuple[int, int]) -> Tensor:
        """Angles of a frame's tokens, row by row: [height * width, E] float64, zero in time."""
        height, width = grid
        pairs = self.head_dim // 2
        third = pairs // 3
        angles = torch.zeros(height, width, pairs, dtype=torch.float64)
        start = pairs - 2 * third
        angles[..., start : start + third] = self._axis(torch.arange(height), third)[:, None]
        angles[..., start + third :] = self._axis(torch.arange(width), third)[None]
        return angles.flatten(0, 1)

    def cells(
        self, grid: tuple[int, int], patch: tuple[int, int, int], *, pooled: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Rotation in space of the tokens of a page that each stand for a patch of a frame's.

        A token has the rotation of its patch's first cell, as FAR has it; or the mean of the
        rotations of its cells, as FramePack has it, which is shorter than 1. The mean over the
        latent frames of a patch is the rotation of the first times a constant, which is in it.
        Cells beyond an edge have the rotation of the last.
        Source: FAR far/models/far_long_model.py @ e59536a; FramePack
        diffusers_helper/models/hunyuan_video_packed.py @ 97fe5db (`center_down_sample_3d`).

        Args:
            grid: Rows and columns of tokens of a latent frame.
            patch: Latent frames, rows and columns that a token stands for.
            pooled: Whether it has the mean.

        Returns:
            Angles [P, E] float64, and likewise the sizes of the rotations; None for 1.
        """
        frames, height, width = patch
        rows, columns = (
            torch.arange(-(-size // by) * by).clamp(max=size - 1)
            for size, by in zip(grid, (height, width), strict=True)
        )
        angles = torch.unflatten(self.spatial(grid), 0, grid)[rows][:, columns]
        if not pooled:
            return angles[::height, ::width].flatten(0, 1), None
        turned = torch.polar(torch.ones_like(angles), angles)
        patches = torch.unflatten(torch.unflatten(turned, 1, (-1, width)), 0, (-1, height))
        in_time = self.temporal(range(frames))
        mean = patches.mean((1, 3)) * torch.polar(torch.ones_like(in_time), in_time).mean(0)
        return mean.angle().flatten(0, 1), mean.abs().flatten(0, 1)

    def _axis(self, positions: Tensor, pairs: int) -> Tensor:
        exponent = torch.arange(pairs, dtype=torch.float64) / max(1, pairs)
        return positions.to(torch.float64)[:, None] / torch.pow(
            torch.tensor(self.theta, dtype=torch.float64), exponent
        )


def turns(
    angles: Tensor, dtype: torch.dtype, device: torch.device, *, sizes: Tensor | None = None
) -> Tensor:
    """Complex numbers of angles, of size 1: complex128 where `dtype` is float64, else complex64."""
    precision = torch.complex128 if dtype == torch.float64 else torch.complex64
    sizes = torch.ones_like(angles) if sizes is None else sizes.expand_as(angles)
    made = torch.polar(sizes, angles)
    return made.to(device=device, dtype=precision, non_blocking=True)


def rotate(x_BLND: Tensor, turns_LE: Tensor) -> Tensor:
    """Rotate adjacent channel pairs [B, L, N, D] by complex numbers; keeps the dtype.

    Rotations are [L, D/2], or [L, N, D/2] with each spelled out for every head.
    """
    real = torch.float64 if turns_LE.dtype == torch.complex128 else torch.float32
    turn = turns_LE if turns_LE.ndim == 3 else turns_LE[:, None]
    pairs = torch.view_as_complex(torch.unflatten(x_BLND.to(real), -1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x_BLND.dtype)


def attend(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor, bias_BS: Tensor | None = None) -> Tensor:
    """Softmax attention: [B, L, N, D], computed in float32 (float64 for float64).

    `bias_BS` is added to the scores of each key.
    """
    q, k, v = (x.to(_exact(q_BLND)).transpose(1, 2) for x in (q_BLND, k_BSND, v_BSND))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias_BS is not None:
        scores = scores + bias_BS[:, None, None]
    return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).to(q_BLND.dtype)


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
    """Projections of a chunk to queries and keys as `attend_pages` and `write_pages` take them.

    Args:
        q_BLC: Projected queries.
        k_BLC: Projected keys.
        q_gain: Gain [C] of the queries' root-mean-square norm over all heads.
        k_gain: That of the keys.
        eps: Of both norms.
        spatial: [P, E, 2], cosine and sine of each token's rotation in space.
        slots: For the rotation of the queries in time.
        key_sums: Whether sums of the keys are wanted.
        rates: What the norms multiply queries and keys by, [B, L] float32 each, as `norm_rate`
            makes it of all heads, where these are some of them; None where they are all.

    Returns:
        queries [B, L, N, D], rotated in space and time and scaled by log2(e) / sqrt(D); keys
        [B, L, N, D], rotated in space only; and sums [B, n, C] float32 over n groups of tokens of
        the keys before any rotation, or None.
    """
    exact = _exact(q_BLC)
    head_dim = 2 * spatial.shape[1]
    here = slots.turns[slots.here.long()].to(exact)
    space = torch.view_as_complex(spatial.to(exact).contiguous())
    time = torch.view_as_complex(here.contiguous())
    both = (space[None] * time[:, None]).flatten(0, 1)
    q_rate, k_rate = rates or (norm_rate(q_BLC, eps), norm_rate(k_BLC, eps))
    q, k = (
        torch.unflatten(x.to(exact) * rate[..., None] * gain.to(exact), -1, (-1, head_dim))
        for x, rate, gain in ((q_BLC, q_rate, q_gain), (k_BLC, k_rate, k_gain))
    )
    sums = k.sum(1, keepdim=True).flatten(2).float() if key_sums else None
    frames = len(slots.here)
    q = rotate(q, both) * (LOG2E / math.sqrt(head_dim))
    return q.to(q_BLC.dtype), rotate(k, space.repeat(frames, 1)).to(k_BLC.dtype), sums


def norm_rate(x_BLC: Tensor, eps: float) -> Tensor:
    """What a root-mean-square norm over the last axis multiplies by: [B, L], float32 at least."""
    return torch.rsqrt(x_BLC.to(_exact(x_BLC)).square().mean(-1) + eps)


def attend_pages(
    q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, pages: Pages, slots: Slots
) -> Tensor:
    """Attention of a chunk to pages and to itself: [B, L, N, D] in the dtype of the queries.

    Args:
        q_BLND: Queries, as `norm_rotate` gives them.
        k_BLND: Keys of the chunk itself, likewise.
        v_BLND: Values of the chunk itself.
        pages: The layer's pages.
        slots: Which of them are read, and where everything sits.
    """
    exact, frames = _exact(q_BLND), len(slots.here)
    which = int(slots.admitted)
    count = int(slots.counts[which])
    q = q_BLND.to(exact).transpose(1, 2)
    context = [expand(_slot_of(pages, slots, which, i, q.shape), exact) for i in range(count)]
    chunk = zip(
        *(x.to(exact).transpose(1, 2).chunk(frames, 2) for x in (k_BLND, v_BLND)), strict=True
    )
    rows = [*slots.row[which, :count].tolist(), *slots.here.tolist()]
    keys, values = zip(*context, *chunk, strict=True)
    back = torch.view_as_complex(slots.turns.to(exact)).conj()
    scores = [
        _turned(q, back[row]) @ k.transpose(-1, -2) for row, k in zip(rows, keys, strict=True)
    ]
    if slots.bias is not None:
        biases = slots.bias[which, :count].tolist()
        scores[:count] = [each + bias for each, bias in zip(scores[:count], biases, strict=True)]
    weights = torch.softmax(torch.cat(scores, -1) / LOG2E, dim=-1)
    return (weights @ torch.cat(values, 2)).transpose(1, 2).to(q_BLND.dtype)


def write_pages(
    k_BLND: Tensor, v_BLND: Tensor, pages: Pages, into: Tensor, *, only_if: Tensor | None = None
) -> None:
    """Store frames as pages, quantized if the pages are.

    An int8 key is its distance from the page's mean key, in steps of the 127th of the largest
    distance in its head; an fp8 value fills that type's range in its channel.

    Args:
        k_BLND: Keys of the frames, rotated in space.
        v_BLND: Their values.
        pages: Where they go.
        into: [F] int32, the page of each frame.
        only_if: [1] int32, nothing is stored if it is 0.
    """
    if only_if is not None and not int(only_if):
        return
    for page, *frame in zip(
        into.tolist(), *(x.chunk(len(into), 1) for x in (k_BLND, v_BLND)), strict=True
    ):
        k, v = (x.transpose(1, 2) for x in frame)
        if pages.k_scale is not None and pages.k_mean is not None:
            k, pages.k_mean[page], pages.k_scale[page] = step_of_keys(k)
        if pages.v_scale is not None:
            v, pages.v_scale[page] = step_of_values(v, pages.v.dtype)
        pages.k[page], pages.v[page] = k.to(pages.k.dtype), v.to(pages.v.dtype)


TINY = 1e-20
"""The least that is divided by: a page of zeros stays one."""


def step_of_keys(k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [..., N, P, D] in steps of int8: whole numbers, mean [..., N, D], scale [..., N]."""
    k = k.float()
    mean = k.mean(-2)
    k = k - mean[..., None, :]
    scale = k.abs().amax((-2, -1)).clamp_min(TINY) / 127
    return (k / scale[..., None, None]).round().clamp(-127, 127), mean, scale


def step_of_values(v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values [..., N, P, D] that fill the range of a float8, and their scale [..., N, D]."""
    v = v.float()
    scale = v.abs().amax(-2).clamp_min(TINY) / torch.finfo(dtype).max
    return v / scale[..., None, :], scale


def admit(
    parts_BnC: Tensor, reference_BC: Tensor, decision: Tensor, *, tokens: int, tau: float
) -> None:
    """Decide whether a pass's keys are surprising, and keep them as the reference if so.

    Keys are surprising if the cosine of their mean and the reference, averaged over the batch, is
    below `tau`. Source: arXiv 2602.06028, section 3.

    Args:
        parts_BnC: Sums over groups of the chunk's tokens, as `norm_rotate` gives them.
        reference_BC: What they are compared with, float32; changed in place.
        decision: [4] int32, see `kernels.pages`; ADMITTED and ADMITTED_NOW are written.
        tokens: Tokens of the chunk.
        tau: The threshold.
    """
    keys = parts_BnC.float().sum(1) / tokens
    surprising = F.cosine_similarity(reference_BC, keys, dim=-1).mean() < tau
    fired = surprising & (decision[CAN_ADMIT] != 0) & (decision[ADMITTED] == 0)
    decision[ADMITTED_NOW] = fired
    decision[ADMITTED] |= fired
    reference_BC.copy_(torch.where(fired | (decision[UPDATE_REFERENCE] != 0), keys, reference_BC))


def modulate(
    x_BLE: Tensor, shift_BFE: Tensor, scale_BFE: Tensor, *, eps: float, dtype: torch.dtype
) -> Tensor:
    """Layer norm, then (1 + scale) x + shift with one of each a latent frame: [B, L, E] in `dtype`.

    Shift and scale may have one frame for all.
    """
    frames, exact = shift_BFE.shape[1], _exact(x_BLE)
    normed = F.layer_norm(x_BLE.to(exact), x_BLE.shape[-1:], eps=eps)
    shift, scale = (each.to(exact)[:, :, None] for each in (shift_BFE, scale_BFE))
    moved: Tensor = torch.unflatten(normed, 1, (frames, -1)) * (1 + scale) + shift
    return moved.flatten(1, 2).to(dtype)


def add_gated(x_BLE: Tensor, y_BLE: Tensor, gate_BFE: Tensor) -> Tensor:
    """The sum of x and y gate, one gate a latent frame or one for all: [B, L, E] as x."""
    exact = _exact(x_BLE)
    y = torch.unflatten(y_BLE.to(exact), 1, (gate_BFE.shape[1], -1))
    gated: Tensor = (y * gate_BFE.to(exact)[:, :, None]).flatten(1, 2)
    return (x_BLE.to(exact) + gated).to(x_BLE.dtype)


def _exact(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _turned(x_BNLD: Tensor, turns_E: Tensor) -> Tensor:
    pairs = torch.view_as_complex(torch.unflatten(x_BNLD, -1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns_E).flatten(-2)


def page_of(pages: Pages, page: int) -> Pages:
    """One page of many; its tensors have no axis of pages."""
    return Pages(*(None if stored is None else stored[page] for stored in pages))


def _slot_of(pages: Pages, slots: Slots, which: int, slot: int, queries: torch.Size) -> Pages:
    """The page that a slot has, whatever its size."""
    page = int(slots.page[which, slot])
    if slots.start is None or slots.tokens is None:
        return page_of(pages, page)
    lanes, tokens = queries[0] * queries[1], int(slots.tokens[which, slot])
    first = int(slots.start[which, slot]) * lanes
    shape = (queries[0], queries[1], tokens, queries[3])
    k, v = (x[first : first + tokens * lanes].view(shape) for x in (pages.k, pages.v))
    beside = (None if each is None else each[page] for each in pages[2:])
    return Pages(k, v, *beside)


def expand(page: Pages, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [..., N, P, D] of pages as numbers."""
    k, v = page.k.to(dtype), page.v.to(dtype)
    if page.k_scale is not None and page.k_mean is not None:
        whole = page.k.float() * page.k_scale[..., None, None] + page.k_mean[..., None, :]
        k = whole.to(dtype)
    if page.v_scale is not None:
        v = (page.v.float() * page.v_scale[..., None, :]).to(dtype)
    return k, v
