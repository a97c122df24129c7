"""A past in levels of larger patches: cached rollouts against dense forwards without a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cfgen.memory.autograd import GraphCache
from cfgen.memory.build import build_memory
from cfgen.memory.compressed import CompressedMemory
from cfgen.memory.page_pool import KVCache
from cfgen.memory.page_sizes import small_pages
from cfgen.memory.paged import PagedMemory
from cfgen.memory.policy import Policy, page_classes
from cfgen.memory.window import FullMemory, WindowMemory
from cfgen.model.generator import Conditioning, Generator, WanConfig
from cfgen.ops.select import build_ops
from cfgen.rollout.loop import commit_chunk, predict_flow, recommit
from tests.model.uncached import Unit, far, framepack, inverted, uncached_flow
from tests.strategies import random_generator

SIZES = WanConfig(
    dim=24,
    ffn_dim=20,
    num_heads=2,
    num_layers=2,
    in_dim=3,
    out_dim=3,
    freq_dim=8,
    text_len=3,
    text_dim=5,
    patch_size=(1, 2, 2),
    larger_patches=(2, 4),
)
HEIGHT, WIDTH = 6, 10
"""A grid of 3 by 5 tokens: neither larger patch divides it."""

FRAMEPACK = {"page": "cube", "rotary": "pooled", "layout": "reordered"}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator(SIZES, 3).double()


def memory_of(policy: Policy, how: str, frames: int, chunk: int) -> PagedMemory:
    g, cpu = SIZES, torch.device("cpu")
    grid = g.grid(HEIGHT, WIDTH)
    classes = page_classes(policy, frames, chunk)
    pool: KVCache | GraphCache = GraphCache(g.num_layers)
    if how != "graph":
        pool = KVCache(
            g.num_layers,
            classes[0].pages,
            (1, grid[0] * grid[1], g.num_heads, g.head_dim),
            small=small_pages(classes, grid),
            dtype=torch.float64,
            device=cpu,
        )
    return build_memory(
        policy,
        pool,
        build_ops("torch" if how == "graph" else how),
        latent_frames=frames,
        head_dim=g.head_dim,
        grid=grid,
        chunk=chunk,
    )


def film(generator: Generator, frames: int) -> tuple[Tensor, Tensor, Conditioning]:
    """Latents, noisy ones, and a prompt."""
    torch.manual_seed(5)
    latents, noisy = torch.randn(2, 1, frames, 3, HEIGHT, WIDTH, dtype=torch.float64)
    return latents, noisy, generator.condition(torch.randn(1, 3, 5, dtype=torch.float64))


def played(generator: Generator, policy: Policy, how: str, count: int, chunk: int):
    """Chunk by chunk: frames before it, all latents, its noisy self and the flow of that."""
    latents, every_noisy, text = film(generator, count * chunk)
    memory = memory_of(policy, how, count * chunk, chunk)
    for start in range(0, count * chunk, chunk):
        noisy = every_noisy[:, start : start + chunk]
        view = memory.begin(chunk)
        flow = predict_flow(generator, noisy, 0.7, text, view)
        yield start, latents, noisy, text, flow
        commit_chunk(generator, memory, view, latents[:, start : start + chunk], text)


def far_policy(**values: object) -> CompressedMemory:
    return CompressedMemory(levels=("4:1", "all:4"), **values)


CASES: dict[str, tuple[CompressedMemory, Callable[[int], list[Unit]], int, int]] = {
    "far": (far_policy(), lambda t: far(t, 1, 4), 1, 7),
    "far in chunks": (far_policy(), lambda t: far(t, 2, 4), 2, 6),
    "far, sink": (far_policy(sink=1), lambda t: far(t, 2, 4, sink=min(1, t)), 2, 5),
    "framepack": (
        CompressedMemory(sink=1, levels=("1:1", "2:2", "16:4"), **FRAMEPACK),
        lambda t: framepack(t, 3),
        3,
        9,
    ),
}


@pytest.mark.parametrize("how", ["reference", "torch", "graph"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_cached_is_uncached_across_each_border(generator: Generator, name: str, how: str) -> None:
    policy, layout, chunk, count = CASES[name]
    for start, latents, noisy, text, flow in played(generator, policy, how, count, chunk):
        first = start if policy.layout == "absolute" else 20
        at = list(range(first, first + chunk))
        dense = uncached_flow(generator, layout(start), latents, noisy, 0.7, text, at)
        torch.testing.assert_close(flow, dense, rtol=0, atol=1e-9)


INVERTED = CompressedMemory(
    sink=1,
    levels=("1:1", "2:2", "16:4"),
    page="cube",
    rotary="pooled",
    layout="inverted",
)
ROOMS = {1: [0], 2: [1, 0], 9: [3, 2, 2, 2, 2, 2, 2, 1, 0]}
"""Chunks that are left free before each, in the order of making."""


def played_back(generator: Generator, policy: Policy, how: str, count: int, chunk: int):
    """As `played`, a film of a first frame and chunks that are made from its end."""
    length = 1 + count * chunk
    latents, every_noisy, text = film(generator, length)
    memory = memory_of(policy, how, length, chunk)
    recommit(generator, memory, latents[:, :1], text)
    for start in range(length - chunk, 0, -chunk):
        noisy = every_noisy[:, start : start + chunk]
        view = memory.begin(chunk)
        flow = predict_flow(generator, noisy, 0.7, text, view)
        yield start, latents, noisy, text, flow
        commit_chunk(generator, memory, view, latents[:, start : start + chunk], text)


@pytest.mark.parametrize("how", ["reference", "torch", "graph"])
@pytest.mark.parametrize(("count", "chunk"), [(9, 3), (9, 2), (2, 5), (1, 3)])
@torch.no_grad()
def test_cached_is_uncached_from_the_end_of_a_film(
    generator: Generator, count: int, chunk: int, how: str
) -> None:
    made = played_back(generator, INVERTED, how, count, chunk)
    for room, (start, latents, noisy, text, flow) in zip(ROOMS[count], made, strict=True):
        first = 1 + room * chunk
        past = inverted(1 + count * chunk, start, chunk, first)
        at = list(range(first, first + chunk))
        dense = uncached_flow(generator, past, latents, noisy, 0.7, text, at)
        torch.testing.assert_close(flow, dense, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_film_of_one_chunk_is_the_same_in_either_order(generator: Generator) -> None:
    backward = list(played_back(generator, INVERTED, "reference", 1, 3))
    forward = replace(INVERTED, layout="absolute")
    ((*_, flow),), ((*_, other),) = backward, played_back(generator, forward, "reference", 1, 3)
    torch.testing.assert_close(flow, other, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_last_frame_is_the_past_of_the_chunk_before_it(generator: Generator) -> None:
    latents, noisy, text = film(generator, 5)
    flows = []
    for last in (latents[:, 4:], latents[:, 4:] + 1):
        memory = memory_of(INVERTED, "reference", 5, 3)
        recommit(generator, memory, latents[:, :1], text)
        recommit(generator, memory, last, text)
        flows.append(predict_flow(generator, noisy[:, 1:4], 0.7, text, memory.begin(3)))
    assert not flows[0].allclose(flows[1])
    (without,) = (flow for *_, flow in played_back(generator, INVERTED, "reference", 1, 3))
    assert not flows[0].allclose(without)


@pytest.mark.parametrize("renew", ["every_chunk", "never"])
@torch.no_grad()
def test_past_pages_stay_and_the_window_is_renewed(generator: Generator, renew: str) -> None:
    before: dict[str, torch.Tensor] = {}
    latents, _, text = film(generator, 9)
    memory = memory_of(far_policy(renew=renew), "reference", 9, 1)
    for total in range(1, 10):
        recommit(generator, memory, latents[:, total - 1 : total], text)
        pages = {name: page.clone() for name, page in memory.state().pages.items()}
        assert all(pages[name].equal(page) for name, page in before.items() if name in pages)
        assert memory.frames(0) == list(range(total))
        kept = sum(name in pages for name in before) // (2 * SIZES.num_layers)
        past = max(0, total - 4)
        left = 0 if past == 0 else 1
        assert kept == (max(0, past - 1) if past and renew == "every_chunk" else total - 1 - left)
        before = pages


SAME = {
    "one level": (("6:1",), WindowMemory(size=8, sink=0, positions="absolute")),
    "two levels": (("2:1", "4:1"), WindowMemory(size=8, sink=0, positions="absolute")),
    "sink": (("3:1", "1:1"), WindowMemory(size=8, sink=2, positions="absolute")),
    "no end": (("2:1", "all:1"), FullMemory()),
}


@pytest.mark.parametrize("how", ["reference", "torch", "graph"])
@pytest.mark.parametrize("name", SAME)
@torch.no_grad()
def test_levels_of_one_patch_are_a_window(generator: Generator, name: str, how: str) -> None:
    levels, window = SAME[name]
    policy = CompressedMemory(levels=levels, sink=2 if name == "sink" else 0)
    ours, theirs = (played(generator, each, how, 6, 2) for each in (policy, window))
    for (*_, flow), (*_, other) in zip(ours, theirs, strict=True):
        assert flow.equal(other)
