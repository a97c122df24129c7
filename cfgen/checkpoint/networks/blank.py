"""Numbers that no training leaves: matrices, tails and rows that hold one number throughout.

A download that stopped in a file of its full size leaves zeros from some point on, one of several
parts leaves a hole. Only the first numbers of each row are compared, and the rest of a row only if
those are all the same, so that the look costs next to nothing beside reading the file.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from cfgen.ops.quant.weights import AnyQuantized, Fp4Weight, GgmlWeight

FIRST = 16
"""Numbers of a row that are compared first; shorter rows may be alike by chance."""

TAIL = 64
"""Numbers at the end of a matrix that are not all the same by chance."""

MOST_SMALL = 16
"""In 8 bits and less, rows of tiny numbers round to 0; one of so many is still no training's."""

TABLE = re.compile(r"(.*\.)?(shared|embed_tokens|token_embedding|token_embd)\.weight")
"""Tables with a row for each token, where tokens that never occur keep what they began with."""

NORM = re.compile(r".*norm[^.]*\.(weight|gamma)")

INCOMPLETE = "download the file again, or compare its digest with the publisher's"


def blank(name: str, weight: Tensor | AnyQuantized) -> str | None:
    """What of a tensor holds one number throughout that no training leaves so; None if nothing.

    Args:
        name: its native name.
        weight: as it was read. Biases may be zero, and so may tensors of one axis that are not
            weights of norms.
    """
    values = _stored(weight)
    if values.ndim < 2:
        zero = NORM.fullmatch(name) is not None and values.numel() and not values.any()
        return "is zero" if zero else None
    rows = values.flatten(1) if values.shape[0] > 1 else values.reshape(-1, values.shape[-1])
    if rows.shape[1] < FIRST:
        rows = rows.reshape(1, -1)
    if rows.shape[1] < FIRST:
        return None
    same = _constant(rows) | _unscaled(weight, len(rows))
    count, total = int(same.sum()), len(rows)
    if count == total:
        return "holds one number throughout"
    tail = int(total - (~same).nonzero().max() - 1)
    if _may_be(name, values, count, tail, total) and not (count == 0 and _ends_blank(rows)):
        return None
    if tail or not count:
        return f"holds one number from row {total - max(tail, 1)} of {total} on"
    first = int(same.int().argmax())
    return f"holds one number throughout {count} of its {total} rows, row {first} first"


def _may_be(name: str, values: Tensor, count: int, tail: int, total: int) -> bool:
    """Whether a weight may have so many rows of one number, so many of them at its end."""
    if TABLE.fullmatch(name):
        return 2 * count < total
    if values.ndim > 2:
        return 4 * tail < total  # filters may die, as those of tiny autoencoders do
    if values.element_size() == 1:
        return MOST_SMALL * count < total and tail < 2
    return not count


def _stored(weight: Tensor | AnyQuantized) -> Tensor:
    """Values as they are stored, those of 8 bits and less as bytes."""
    if isinstance(weight, Fp4Weight):
        return weight.packed
    if isinstance(weight, GgmlWeight):
        return weight.blocks
    values = weight if isinstance(weight, Tensor) else weight.values
    return values.view(torch.uint8) if values.element_size() == 1 else values


def _constant(rows: Tensor) -> Tensor:
    """Which rows of a matrix [N, K] hold one number throughout: bool [N]."""
    first = rows[:, :FIRST]
    found = (first == first[:, :1]).all(1)
    for row in found.nonzero().flatten().tolist():
        found[row] = bool((rows[row] == rows[row, 0]).all())
    return found


def _unscaled(weight: Tensor | AnyQuantized, total: int) -> Tensor:
    """Which rows a quantized weight multiplies by 0: bool [N]."""
    if isinstance(weight, Tensor | GgmlWeight) or weight.shape[0] != total:
        return torch.zeros(total, dtype=torch.bool)
    if isinstance(weight, Fp4Weight):
        none = ~weight.block_scale.view(torch.uint8).bool().any(1)
        return none | (weight.scale == 0)
    none = ~weight.scale.float().bool().any(1)
    return none.repeat_interleave(total // len(none))


def _ends_blank(rows: Tensor) -> bool:
    """Whether a matrix of floats ends in zeros."""
    end = rows[-1, -TAIL:]
    return rows.element_size() > 1 and end.numel() == TAIL and not end.any()
