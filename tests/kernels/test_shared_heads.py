"""Kernels read queries, keys and values as processes that share out heads receive them: in rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cfgen.memory.build import build_memory
from cfgen.memory.page_pool import KVCache
from cfgen.memory.paged import PagedMemory
from cfgen.memory.policy import Storage, pages_of
from cfgen.memory.protocols import Norms, Pass
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.ops import select
from cfgen.parallel.heads import HeadParallel

HEADS, HEAD_DIM, GRID, FRAMES = 2, 16, (2, 3), 3
TOKENS = GRID[0] * GRID[1]


class Alone:
    """A group of one process, which gives all rows to itself."""

    rank, size, leads = 0, 1, True

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        assert list(sent) == list(received) == [len(rows)]
        return rows.clone()


def memory_of(storage: Storage, device: torch.device, split: HeadParallel | None) -> PagedMemory:
    policy = SlowFastMemory(variant="release", sink=1, slow=2, fast=6, tau=1.0)
    ops = select._triton()
    shape = (1, TOKENS, HEADS, HEAD_DIM)
    pool = KVCache(
        1, pages_of(policy, 12), shape, dtype=torch.float32, device=device, storage=storage,
        write=ops.write_pages,
    )  # fmt: skip
    return build_memory(
        policy, pool, ops, latent_frames=12, head_dim=HEAD_DIM, grid=GRID, chunk=FRAMES, heads=split
    )


@pytest.mark.parametrize("storage", ["auto", "int8"])
def test_rows_are_attended_to_as_whole_projections(storage: Storage, device: torch.device) -> None:
    whole = memory_of(storage, device, None)
    split = HeadParallel(Alone(), heads=HEADS, tokens=TOKENS)  # type: ignore[arg-type]
    shared = memory_of(storage, device, split)
    generator = torch.Generator().manual_seed(0)
    gains = [1 + 0.2 * torch.randn(HEADS * HEAD_DIM, generator=generator) for _ in range(2)]
    norms = Norms(*(gain.to(device) for gain in gains), 1e-6)
    for _ in range(3):
        drawn = torch.randn(3, 1, FRAMES * TOKENS, HEADS * HEAD_DIM, generator=generator)
        views = [memory.begin(FRAMES) for memory in (whole, shared)]
        for pass_ in (Pass(0), Pass(1, commit=True)):
            first, second = (view.at(pass_).attend(0, *drawn.to(device), norms) for view in views)
            torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-5)
        whole.commit(views[0])
        shared.commit(views[1])
    assert whole.frames(0) == shared.frames(0)
