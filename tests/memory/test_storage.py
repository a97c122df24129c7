"""Where pages lie, and whether rotated context is kept, changes no bit of what attention gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cfgen.memory import pre_rotated
from cfgen.memory.page_pool import KVCache, Storage
from cfgen.memory.page_sizes import PageClass, small_pages
from cfgen.memory.paged import PagedMemory, PagedView
from cfgen.memory.protocols import MemoryState, Norms, Pass
from cfgen.memory.window import WindowTable
from cfgen.ops.reference import Rope
from cfgen.ops.select import REFERENCE, TORCH, Ops
from tests.strategies import Policy, memory_of, policies, told_by

CPU = torch.device("cpu")
LAYERS, HEADS, HEAD_DIM, GRID = 2, 2, 12, (2, 3)
PASSES = (Pass(0), Pass(1), Pass(2, commit=True))


def paged(
    policy: Policy,
    *,
    shared: bool = False,
    ops: Ops = TORCH,
    device: torch.device = CPU,
    place: torch.device | None = None,
    storage: Storage = "auto",
    admit=None,
) -> PagedMemory:
    tables = [policy.make() for _ in range(LAYERS)]
    shape = (1, GRID[0] * GRID[1], HEADS, HEAD_DIM)
    pages = tables[0].capacity + policy.spare
    classes = tuple(PageClass(patch, 60) for patch in (2, 4)) if policy.name == "compressed" else ()
    pool = KVCache(
        LAYERS,
        pages,
        shape,
        small=small_pages(classes, GRID),
        dtype=torch.float32,
        device=device,
        place=place,
        storage=storage,
    )
    return memory_of(
        tables,
        pool,
        ops=ops,
        rope=Rope(HEAD_DIM),
        grid=GRID,
        shared=shared,
        tau=0.05,
        admit=admit,
        pooled=policy.fast % 2 == 1,
        recaches=pages if policy.name == "compressed" else 0,
    )


def chunk(memory: PagedMemory, frames: int, noise: torch.Generator) -> Tensor:
    """What all passes and layers of a chunk of noise attended to."""
    view, out = memory.begin(frames), []
    for pass_ in PASSES:
        out += passed(view.at(pass_), frames * GRID[0] * GRID[1], noise)
    memory.commit(view)
    memory.remember(torch.zeros(1, frames, 1, 1, 1))
    for again, latents, (span, height, width) in memory.reencode():
        tokens = -(-GRID[0] // height) * -(-GRID[1] // width)
        out += passed(again.at(PASSES[-1]), latents.shape[1] // span * tokens, noise)
    return torch.cat([each.flatten() for each in out])


def passed(view: PagedView, length: int, noise: torch.Generator) -> list[Tensor]:
    """A pass of noise through all layers."""
    device, out = view.memory.pool.device, []
    gain = torch.linspace(0.5, 1.5, HEADS * HEAD_DIM, device=device)
    for layer in range(LAYERS):
        q, k, v = torch.randn(3, 1, length, HEADS * HEAD_DIM, generator=noise).to(device)
        out.append(view.attend(layer, q, k, v, Norms(gain, gain.flip(0), 1e-6)))
    return out


def rolled(memory: PagedMemory, frames: int, chunks: int) -> Tensor:
    noise = torch.Generator().manual_seed(frames)
    return torch.cat([chunk(memory, frames, noise) for _ in range(chunks)])


@settings(deadline=None, max_examples=40)
@given(policies, st.integers(1, 5))
def test_context_that_is_rotated_in_every_pass_gives_the_same_bits(
    policy: Policy, chunks: int
) -> None:
    kept = rolled(paged(policy), policy.chunk, chunks)
    assert torch.equal(rolled(paged(policy, shared=True), policy.chunk, chunks), kept)


@settings(deadline=None, max_examples=40)
@given(policies, st.integers(1, 5), st.sampled_from(["auto", "int8"]))
def test_turning_queries_gives_what_rotated_keys_give(
    policy: Policy, chunks: int, storage: Storage
) -> None:
    admit = told_by(lambda reference, keys: bool((keys - reference).mean() > 0))
    kept = rolled(paged(policy, storage=storage, admit=admit), policy.chunk, chunks)
    turned = paged(policy, ops=REFERENCE, storage=storage, admit=admit)
    torch.testing.assert_close(rolled(turned, policy.chunk, chunks), kept, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(policies, st.integers(1, 4), st.integers(1, 4), st.sampled_from(["auto", "int8", "fp8"]))
def test_a_restored_memory_gives_the_bits_of_the_one_that_was_saved(
    policy: Policy, before: int, after: int, storage: Storage
) -> None:
    saved, restored = (paged(policy, storage=storage) for _ in range(2))
    rolled(saved, policy.chunk, before)
    state = saved.state()
    pages = {name: page.clone() for name, page in state.pages.items()}
    tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
    restored.restore(MemoryState(state.scalars, tensors, pages))
    assert torch.equal(rolled(restored, policy.chunk, after), rolled(saved, policy.chunk, after))


@pytest.mark.parametrize(("storage", "nbytes"), [("auto", 8), ("bf16", 4), ("int8", 5), ("fp8", 2)])
def test_small_pages_take_less_room_and_say_nearly_the_same(storage: Storage, nbytes: int) -> None:
    make = lambda: WindowTable(6, sink=1)  # noqa: E731
    policy = Policy("window", 1, 5, 3, "all", make)
    exact, small = paged(policy), paged(policy, storage=storage)
    numbers = LAYERS * 6 * GRID[0] * GRID[1] * HEADS * HEAD_DIM
    small_parts = LAYERS * 6 * HEADS * 4 * (2 * HEAD_DIM + 1)
    assert 0 <= small.nbytes - numbers * nbytes <= small_parts
    right = rolled(exact, 3, 4)
    error = float((rolled(small, 3, 4) - right).norm() / right.norm())
    assert error < {"auto": 1e-9, "bf16": 4e-3, "int8": 1e-2, "fp8": 4e-2}[storage]
    assert storage == "auto" or error > 1e-5


def test_pages_are_handed_out_where_they_are_used_and_kept_where_they_are_stored() -> None:
    pool = KVCache(1, 4, (1, 2, 1, 2), dtype=torch.float32, device=CPU)
    assert not pool.is_offloaded
    k, v = torch.arange(16.0).view(2, 1, 4, 1, 2)
    pages = [pool.allocate(0), pool.allocate(0)]
    pool.write(0, torch.tensor(pages), k, v)
    out = torch.full((2, 1, 1, 2, 2, 2), torch.nan)
    pool.read(0, pages[::-1], *out)
    for stored, whole in zip(out, (k, v), strict=True):
        for place, frame in enumerate((1, 0)):
            own = whole[:, 2 * frame : 2 * frame + 2].transpose(1, 2)
            assert torch.equal(stored[:, :, place], own)
    assert pool.nbytes == 2 * 4 * 2 * 2 * 4


def test_rotations_are_the_same_whether_spelled_out_for_every_head_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def film() -> Tensor:
        tables = [WindowTable(4, sink=1, positions="relative") for _ in range(LAYERS)]
        pool = KVCache(LAYERS, 4, (1, 6, HEADS, HEAD_DIM), dtype=torch.float32, device=CPU)
        return rolled(memory_of(tables, pool, rope=Rope(HEAD_DIM), grid=GRID), 2, 4)

    spelled_out = film()
    monkeypatch.setattr(pre_rotated, "SPELLED_OUT", 0)
    torch.testing.assert_close(film(), spelled_out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("storage", ["auto", "int8", "fp8"])
def test_a_pool_elsewhere_holds_what_it_would_hold_here(storage: Storage) -> None:
    """`meta` cannot compute, so a pool that lies on the CPU is told that it lies elsewhere."""
    here = KVCache(2, 4, (1, 6, 2, 12), dtype=torch.float32, device=CPU, storage=storage)
    there = KVCache(2, 4, (1, 6, 2, 12), dtype=torch.float32, device=CPU, storage=storage)
    there._is_offloaded = True
    noise = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 1, 12, 2, 12, generator=noise)
    for pool in (here, there):
        pages = torch.tensor([pool.allocate(1), pool.allocate(1)], dtype=torch.int32)
        pool.write(1, pages, k, v)
        pool.write(1, pages, -k, -v, only_if=torch.zeros(1, dtype=torch.int32))
    ours, others = here.state()[1], there.state()[1]
    assert ours.keys() == others.keys()
    for name, page in ours.items():
        assert torch.equal(page.view(torch.uint8), others[name].view(torch.uint8)), name


@pytest.mark.gpu
@settings(deadline=None, max_examples=10)
@given(policies)
def test_pages_that_wait_in_main_memory_give_the_same_bits_on_a_gpu(policy: Policy) -> None:
    gpu = torch.device("cuda")
    here = rolled(paged(policy, device=gpu), policy.chunk, 4)
    there = rolled(paged(policy, device=gpu, place=CPU, shared=True), policy.chunk, 4)
    assert here.device.type == "cuda"
    assert torch.equal(here, there)
