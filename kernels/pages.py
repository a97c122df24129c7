"""What the memory's kernels read and write: stored pages, and the slots of a pass.

A page is the keys and values of one latent frame in one layer. Keys lie rotated in space and not in
time: the time of a page stands in its slot alone, and the query is rotated against it.

Axis letters: B batch, F latent frames of a chunk, P tokens per latent frame, L = F * P, N heads,
D head dim, S slots, R rows of the table of turns.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Pages(NamedTuple):
    """The pages of one layer.

    Where pages are of several sizes, keys and values lie one page behind the other as [rows, D],
    where a page of p tokens takes B * N * p rows, in the order [B, N, p].

    A key is `k * k_scale + k_mean` where keys are int8, a value `v * v_scale` where values are fp8;
    elsewhere the three are None.

    Attributes:
        k: [pages, B, N, P, D] in bfloat16, float16, float32 (float64 in tests) or int8.
        v: [pages, B, N, P, D] in one of the float types, or float8_e4m3fn.
        k_scale: [pages, B, N] float32.
        k_mean: [pages, B, N, D] float32.
        v_scale: [pages, B, N, D] float32.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    k_mean: Tensor | None = None
    v_scale: Tensor | None = None


class Slots(NamedTuple):
    """What a pass reads of its layer's pages and where that sits in time; all on the device.

    There are two alternatives, one for a chunk that has admitted a key frame in this layer and one
    for a chunk that has not; `admitted` says which counts, so the host need not know.

    Attributes:
        page: [2, S] int32, numbers of the pages before the chunk, in order.
        row: [2, S] int32, the row of `turns` for each of them.
        counts: [2] int32, how many of them there are.
        here: [F] int32, the row of `turns` for each frame of the chunk itself.
        admitted: [1] int32, 0 or 1.
        turns: [R, D / 2, 2] float32 (float64 in tests), cosine and sine of the temporal rotation
            of each pair of channels; (1, 0) for pairs that turn in space.
        bias: [2, S] float32, added to the scores of each page's keys, which are logarithms to base
            2; None if nothing is added.
        start: [2, S] int32, the tokens of all pages that lie before each page, where pages are of
            several sizes; None where all have as many tokens as a latent frame of the chunk.
        tokens: [2, S] int32, the tokens of each page, likewise.
    """

    page: Tensor
    row: Tensor
    counts: Tensor
    here: Tensor
    admitted: Tensor
    turns: Tensor
    bias: Tensor | None = None
    start: Tensor | None = None
    tokens: Tensor | None = None


CAN_ADMIT, UPDATE_REFERENCE, ADMITTED, ADMITTED_NOW = range(4)
"""Columns of a layer's decision, [4] int32: whether the chunk may be admitted, whether its keys
become the reference even if not, whether it was admitted, and whether this very pass did it."""
