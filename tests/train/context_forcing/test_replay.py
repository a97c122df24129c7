"""A replay is the rollout: the same flows in float64, and gradients where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from cfgen.errors import UsageError
from cfgen.memory.policy import Policy
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.model.generator import Generator
from cfgen.train.context_forcing.replay import replay
from cfgen.train.context_forcing.self_rollout import (
    ChunkRecord,
    Committed,
    draw_exits,
    rollout_chunks,
)
from tests.train.context_forcing.rollouts import (
    CHUNKS,
    FRAMES,
    POLICIES,
    prompts,
    rolled_out,
    tiny_generator,
)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny_generator()


@dataclass
class Replayed:
    """Clean targets as a replay predicts them, and the latents that its commits read."""

    x0: list[Tensor]
    commits: list[Tensor]


def replayed(
    generator: Generator,
    record: Sequence[ChunkRecord],
    targets: int,
    learnt: set[int] | None = None,
) -> Replayed:
    texts = prompts(generator)
    parts = [chunk.commit_part(text) for chunk, text in zip(record, texts, strict=True)]
    for part in parts:
        part.latents.requires_grad_()
    first = len(record) - targets
    noisy = [
        chunk.exit_part(text) for chunk, text in zip(record[first:], texts[first:], strict=True)
    ]
    flows = replay(generator, parts[:-1], noisy, learnt=learnt)
    x0 = [
        chunk.noisy - chunk.level * flow for chunk, flow in zip(record[first:], flows, strict=True)
    ]
    return Replayed(x0, [part.latents for part in parts])


@pytest.mark.parametrize("committed", ["exit", "full"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_replay_equals_rollout(generator: Generator, policy: Policy, committed: Committed) -> None:
    record = rolled_out(generator, policy, [2, 0, 3, 1], committed)
    with torch.no_grad():
        for learnt in (None, {0, 15}, set[int]()):
            made = replayed(generator, record, 4, learnt)
            for chunk, x0 in zip(record[-4:], made.x0, strict=True):
                assert (x0 - chunk.x0).abs().max() <= 1e-9


def test_slow_memory_is_in_use(generator: Generator) -> None:
    """Else the test above would say nothing of it."""
    record = rolled_out(generator, POLICIES["slow_fast cfgen"], [0])
    read = {each.frame for each in record[-1].exit_reads[0]}
    assert read & set(range(6, 18)), "key frames between sink and fast memory"
    assert record[-1].exit_reads[0] != record[-1].exit_reads[2] or len(read) > 9


def reached(record: Sequence[ChunkRecord], reader: int, layers: int, *, exits: bool) -> set[int]:
    """Chunks whose commit passes a chunk's output depends on, through so many layers."""
    found: set[int] = set()
    reads = record[reader].exit_reads if exits else record[reader].commit_reads
    for layer in range(layers):
        for chunk in {read.frame // FRAMES for read in reads[layer]} - {reader}:
            found |= {chunk} | reached(record, chunk, layer, exits=False)
    return found


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_gradients_reach_the_commits_that_a_chunk_depends_on(
    generator: Generator, policy: Policy
) -> None:
    record = rolled_out(generator, policy, [1, 1])
    direct = {read.frame // FRAMES for layer in record[-1].exit_reads for read in layer}
    direct -= {CHUNKS - 1}
    expected = {
        "replay": (None, reached(record, CHUNKS - 1, 3, exits=True)),
        "visible": ({FRAMES * chunk for chunk in direct}, direct),
        "frozen": (set[int](), set[int]()),
    }
    for learnt, chunks in expected.values():
        made = replayed(generator, record, 2, learnt)
        made.x0[-1].square().sum().backward()
        touched = {
            i
            for i, latents in enumerate(made.commits)
            if latents.grad is not None and latents.grad.abs().sum() > 0
        }
        assert touched == chunks
        for latents in made.commits:
            latents.grad = None
    assert expected["replay"][1] >= direct > set()


def test_a_policy_that_copies_features_is_refused(generator: Generator) -> None:
    policy = SlowFastMemory(variant="release", sink=3, slow=3, fast=6)
    with pytest.raises(UsageError, match="variant release decides in every pass"):
        rolled_out(generator, policy, [0])


def test_lengths_of_rollouts_grow() -> None:
    rng = np.random.default_rng(0)

    def drawn(step: int) -> set[int]:
        return {rollout_chunks(step, 28, 35, 600, rng) for _ in range(400)}

    assert drawn(0) == {28}
    assert drawn(300) == {28, 29, 30, 31}
    assert drawn(600) == drawn(5000) == set(range(28, 36))
    even = [rollout_chunks(600, 28, 35, 600, rng) for _ in range(4000)]
    assert max(abs(even.count(length) / 4000 - 1 / 8) for length in range(28, 36)) < 0.02


def test_exits_are_shared_or_each_its_own() -> None:
    rng = np.random.default_rng(0)
    assert all(len(set(draw_exits(4, 3, rng, shared=True))) == 1 for _ in range(20))
    assert max(len(set(draw_exits(4, 3, rng, shared=False))) for _ in range(20)) > 1
    assert {each for _ in range(60) for each in draw_exits(4, 1, rng, shared=True)} == set(range(4))
