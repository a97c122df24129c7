"""Lets tables choose what a chunk reads, by keys that the first layer keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cfgen.memory.heads import HeadSplit
from cfgen.memory.protocols import ChoosingTable, PagePool
from cfgen.ops.reference import rotate, turns


def choose(
    tables: Sequence[ChoosingTable], pool: PagePool, spatial: Tensor, heads: HeadSplit
) -> None:
    """Have tables choose, one per layer; there may be none.

    The host waits for keys here, between two chunks, if anything is asked for.

    Args:
        tables: The tables; all ask for the same.
        pool: Where keys lie.
        spatial: Rotation of a frame's tokens in space, angles [P, E].
        heads: How attention heads are shared out; the pool holds those of this process.
    """
    if not tables:
        return
    groups = tables[0].asked()
    means = [_mean_key(pool, [slot.page for slot in group], spatial, heads) for group in groups]
    told = torch.stack(means).tolist() if means else []
    for table in tables:
        table.choose(told)


def _mean_key(pool: PagePool, pages: Sequence[int], spatial: Tensor, heads: HeadSplit) -> Tensor:
    """Mean over heads and tokens of keys of the first layer, without rotation: [D]."""
    own = torch.stack([pool.keys(0, page) for page in pages]).flatten(0, 1)
    keys = heads.all_heads(own, 1)
    exact = torch.promote_types(keys.dtype, torch.float32)
    over_heads = keys.to(exact).mean((0, 1))
    back = turns(-spatial, exact, keys.device)
    return rotate(over_heads[None, :, None], back)[0, :, 0].mean(0)
