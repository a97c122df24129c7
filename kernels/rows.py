"""What kernels that work on whole rows share: how rows must lie, and how many are held at once."""

from __future__ import annotations

import triton
from torch import Tensor

TILE = 4096
"""Numbers of the rows that a program holds at once, 16 a thread: few enough for four programs of
256 threads on a multiprocessor, so that one computes while others wait for memory."""


def row_block(width: int, most: int) -> tuple[int, int, int]:
    """How a program holds rows of `width` numbers, `most` (a power of two) of them in its life.

    Returns:
        The width padded to a power of two, rows at once, and warps.
    """
    block: int = triton.next_power_of_2(width)
    rows = max(1, min(most, TILE // block))
    return block, rows, min(16, max(4, rows * block // 512))


def need_dense(name: str, x: Tensor, axes: int = 1) -> None:
    """Refuse a tensor whose last `axes` axes do not lie in one piece.

    Raises:
        ValueError: They do not.
    """
    step = 1
    for size, stride in zip(x.shape[: -axes - 1 : -1], x.stride()[::-1], strict=False):
        if size > 1 and stride != step:
            raise ValueError(
                f"{name} has shape {list(x.shape)} and strides {list(x.stride())}; its last "
                f"{axes} axes must lie in one piece: give {name}.contiguous()"
            )
        step *= size
