"""Where pages lie, and whether rotated context is kept, changes no bit of what attention gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cfgen.memory.base import Pass
from cfgen.memory.kv_cache import KVCache
from cfgen.memory.paged import PagedMemory, PagedView, Surprise
from cfgen.ops.reference import Rope
from cfgen.ops.select import build_ops
from tests.strategies import Policy, policies

CPU = torch.device("cpu")
LAYERS, HEADS, HEAD_DIM, GRID = 2, 2, 12, (2, 3)
PASSES = (Pass(0), Pass(1), Pass(2, commit=True))


def paged(
    policy: Policy,
    *,
    reuse: bool = True,
    device: torch.device = CPU,
    storage: torch.device | None = None,
) -> PagedMemory:
    tables = [policy.make(Surprise(0.05)) for _ in range(LAYERS)]
    shape = (1, GRID[0] * GRID[1], HEADS, HEAD_DIM)
    pages = tables[0].capacity + policy.spare
    pool = KVCache(LAYERS, pages, shape, dtype=torch.float32, device=device, storage=storage)
    return PagedMemory(
        tables, pool, build_ops("torch"), rope=Rope(HEAD_DIM), grid=GRID, reuse=reuse
    )


def chunk(memory: PagedMemory, frames: int, noise: torch.Generator) -> tuple[PagedView, Tensor]:
    """The view of a chunk of noise, and what all its passes and layers attended to."""
    view, out = memory.begin(frames), []
    for pass_ in PASSES:
        for layer in range(LAYERS):
            shape = (3, 1, frames * GRID[0] * GRID[1], HEADS, HEAD_DIM)
            q, k, v = torch.randn(shape, generator=noise).to(memory.pool.device)
            out.append(view.at(pass_).attend(layer, q, k, v))
    memory.commit(view)
    return view, torch.stack(out)


def rolled(memory: PagedMemory, frames: int, chunks: int) -> Tensor:
    noise = torch.Generator().manual_seed(frames)
    return torch.stack([chunk(memory, frames, noise)[1] for _ in range(chunks)])


@settings(deadline=None, max_examples=40)
@given(policies, st.integers(1, 5))
def test_context_that_is_rotated_in_every_pass_gives_the_same_bits(
    policy: Policy, chunks: int
) -> None:
    kept = rolled(paged(policy), policy.chunk, chunks)
    assert torch.equal(rolled(paged(policy, reuse=False), policy.chunk, chunks), kept)
    on_cpu = paged(policy, reuse=False, storage=CPU)
    assert torch.equal(rolled(on_cpu, policy.chunk, chunks), kept)


@pytest.mark.parametrize("reuse", [True, False])
@settings(deadline=None, max_examples=10)
@given(policy=policies)
def test_context_is_kept_for_a_chunk_only_if_it_may_be(policy: Policy, reuse: bool) -> None:
    memory, noise = paged(policy, reuse=reuse), torch.Generator().manual_seed(0)
    first, second = (chunk(memory, policy.chunk, noise)[0] for _ in range(2))
    assert first.contexts == {}, "there is no context yet"
    past = len(memory.tables[0].visible(Pass(0))) > policy.chunk
    assert bool(second.contexts) == (reuse and past)


def test_pages_are_handed_out_where_they_are_used_and_kept_where_they_are_stored() -> None:
    pool = KVCache(1, 4, (1, 2, 1, 2), dtype=torch.float32, device=CPU, storage=CPU)
    whole = KVCache(1, 4, (1, 2, 1, 2), dtype=torch.float32, device=CPU)
    k, v = torch.arange(16.0).view(2, 1, 4, 1, 2)
    for each in (pool, whole):
        pages = [each.take(0), each.take(0)]
        each.write(0, pages, k, v)
    for ours, others in zip(pool.read(0, [1, 0]), whole.read(0, [1, 0]), strict=True):
        assert torch.equal(ours, others)
    assert pool.nbytes == whole.nbytes == 2 * 4 * 2 * 2 * 4


@pytest.mark.gpu
@settings(deadline=None, max_examples=10)
@given(policies)
def test_pages_that_wait_in_main_memory_give_the_same_bits_on_a_gpu(policy: Policy) -> None:
    gpu = torch.device("cuda")
    here = rolled(paged(policy, device=gpu), policy.chunk, 4)
    there = rolled(paged(policy, device=gpu, storage=CPU, reuse=False), policy.chunk, 4)
    assert here.device.type == "cuda"
    assert torch.equal(here, there)
