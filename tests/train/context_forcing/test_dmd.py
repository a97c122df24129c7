"""Scores after a context, the gradient between them, and the critic's loss."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cfgen.memory.policy import Policy
from cfgen.model.generator import Generator
from cfgen.rollout.loop import commit_chunk, predict_flow, recommit
from cfgen.train.context_forcing.dmd import (
    ScoreSettings,
    Targets,
    clean_of,
    critic_loss,
    dmd_loss,
    noised,
)
from cfgen.train.context_forcing.replay import replay
from cfgen.train.context_forcing.self_rollout import ChunkRecord
from tests.train.context_forcing.rollouts import (
    CHUNKS,
    FRAMES,
    POLICIES,
    memory_of,
    prompts,
    rolled_out,
    tiny_generator,
)

TARGETS = 3


@pytest.fixture(scope="module")
def student() -> Generator:
    return tiny_generator()


@pytest.fixture(scope="module")
def teacher() -> Generator:
    return tiny_generator(1)


def targets_of(student: Generator, policy: Policy, **settings: object) -> Targets:
    record = rolled_out(student, policy, [1, 2, 0])
    return Targets(record, TARGETS, ScoreSettings(**settings))  # type: ignore[arg-type]


def noisy_of(targets: Targets) -> tuple[Tensor, Tensor]:
    """Noised targets and their levels."""
    level = targets.draw_levels(torch.Generator().manual_seed(5))
    eps = torch.randn(targets.x0.shape, generator=torch.Generator().manual_seed(6)).double()
    return noised(targets.x0, eps, level), level


@torch.no_grad()
@pytest.mark.parametrize("name", ["window", "full", "slow_fast cfgen"])
def test_a_score_after_memory_is_what_a_rollout_of_commits_gives(
    student: Generator, name: str
) -> None:
    """The student's weights as the score: its own memory decides alike, so it can be played."""
    targets = targets_of(student, POLICIES[name], level_per_chunk=True)
    noisy, level = noisy_of(targets)
    texts = prompts(student)
    found = targets.flow(student, texts, noisy, level)
    memory = memory_of(student, POLICIES[name])
    for chunk, kept in enumerate(targets.record[: targets.first]):
        recommit(student, memory, kept.committed, texts[chunk])
    for i, chunk in enumerate(range(targets.first, CHUNKS)):
        span = slice(FRAMES * i, FRAMES * (i + 1))
        view = memory.begin(FRAMES)
        flow = predict_flow(student, noisy[:, span], level[:, span], texts[chunk], view)
        assert (flow - found[:, span]).abs().max() <= 1e-9
        commit_chunk(student, memory, view, targets.record[chunk].committed, texts[chunk])


@torch.no_grad()
def test_joint_without_context_is_the_bidirectional_model(
    student: Generator, teacher: Generator
) -> None:
    """One span of all targets in an empty memory, at positions from 0."""
    targets = targets_of(student, POLICIES["window"], score="joint", context="none")
    noisy, level = noisy_of(targets)
    texts = [prompts(teacher)[-1]] * CHUNKS
    memory = memory_of(teacher, POLICIES["full"])
    expected = predict_flow(teacher, noisy, level, texts[0], memory.begin(TARGETS * FRAMES))
    assert (targets.flow(teacher, texts, noisy, level) - expected).abs().max() <= 1e-9


@torch.no_grad()
@pytest.mark.parametrize("score", ["causal", "joint"])
def test_a_context_of_latents_right_before_the_targets(
    student: Generator, teacher: Generator, score: str
) -> None:
    """Two chunks of context: as if the film had begun with them."""
    settings = {"score": score, "context": "contiguous", "context_frames": 6}
    targets = targets_of(student, POLICIES["slow_fast cfgen"], **settings)
    noisy, level = noisy_of(targets)
    texts = prompts(teacher)
    found = targets.flow(teacher, texts, noisy, level)
    memory = memory_of(teacher, POLICIES["full"])
    for chunk in (targets.first - 2, targets.first - 1):
        recommit(teacher, memory, targets.record[chunk].committed, texts[chunk])
    frames = FRAMES if score == "causal" else TARGETS * FRAMES
    text = texts[targets.first]
    flow = predict_flow(teacher, noisy[:, :frames], level[:, :frames], text, memory.begin(frames))
    assert (flow - found[:, :frames]).abs().max() <= 1e-9


@torch.no_grad()
@pytest.mark.parametrize("score", ["causal", "joint"])
def test_contextual_dmd_without_context_is_dmd(
    student: Generator, teacher: Generator, score: str
) -> None:
    """A rollout of targets alone: whatever context is asked for, there is none."""
    record = rolled_out(student, POLICIES["full"], [1] * CHUNKS)
    flows = []
    for context in ("none", "memory", "contiguous"):
        settings = ScoreSettings(score=score, context=context)  # type: ignore[arg-type]
        targets = Targets(record, CHUNKS, settings)
        noisy, level = noisy_of(targets)
        flows.append(targets.flow(teacher, prompts(teacher), noisy, level))
    assert all((flow - flows[0]).abs().max() <= 1e-9 for flow in flows)


@torch.no_grad()
def test_guidance_has_the_usual_form(student: Generator, teacher: Generator) -> None:
    targets = targets_of(student, POLICIES["slow_fast cfgen"], guidance=4.0)
    noisy, level = noisy_of(targets)
    texts = prompts(teacher)
    made = targets.flow(teacher, texts, noisy, level, unconditional=texts[0])
    given = targets.flow(teacher, texts, noisy, level)
    free_parts = targets._parts([texts[0]] * TARGETS, noisy, level)
    free = torch.cat(replay(teacher, targets._commits(texts), free_parts), 1)
    assert (made - (free + 4 * (given - free))).abs().max() <= 1e-9


@pytest.mark.parametrize("through", [True, False])
def test_gradients_of_the_critic_reach_its_context_if_asked(
    student: Generator, through: bool
) -> None:
    """The embedding of noise level 0 learns through commit passes alone."""
    critic = tiny_generator(2)
    targets = targets_of(student, POLICIES["slow_fast cfgen"])
    noisy, level = noisy_of(targets)
    seen: list[Tensor] = []

    def watch(_module: object, _inputs: object, made: Tensor) -> None:
        if made.requires_grad:
            made.retain_grad()
            seen.append(made)

    critic.time_embedding.register_forward_hook(watch)
    flow = targets.flow(critic, prompts(critic), noisy, level, through_context=through)
    flow.square().sum().backward()
    (time,) = seen
    assert time.grad is not None
    clean = time.shape[1] - TARGETS * FRAMES
    assert clean == (FRAMES * (CHUNKS - 1) if through else 0)
    assert (time.grad[:, :clean].abs().sum() > 0) == through


def test_the_gradient_is_zero_where_critic_and_teacher_agree() -> None:
    x0 = torch.randn(2, 6, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    real = torch.randn_like(x0).detach()
    loss, figures = dmd_loss(x0, real, real, floor=1e-6)
    loss.backward()
    assert x0.grad is not None
    assert torch.count_nonzero(x0.grad) == 0
    assert figures["gradient"] == 0


def test_the_gradient_is_the_normalised_difference_whatever_the_scale() -> None:
    draw = torch.Generator().manual_seed(0)
    start, real, fake = torch.randn(3, 2, 6, 2, 4, 4, generator=draw, dtype=torch.float64)
    found = []
    for scale in (1.0, 100.0):
        x0 = (scale * start).requires_grad_()
        loss, _ = dmd_loss(x0, scale * real, scale * fake, floor=1e-6)
        loss.backward()
        assert x0.grad is not None
        found.append(x0.grad * x0.numel())
    size = (start - real).abs().mean((1, 2, 3, 4), keepdim=True)
    assert (found[0] - (fake - real) / size).abs().max() < 1e-9
    assert (found[0] - found[1]).abs().max() < 1e-9


def test_a_floor_keeps_the_gradient_finite() -> None:
    x0 = torch.zeros(1, 3, 2, 4, 4, requires_grad=True)
    loss, _ = dmd_loss(x0, torch.zeros_like(x0), torch.full_like(x0, 0.5), floor=0.1)
    loss.backward()
    assert x0.grad is not None
    assert (x0.grad * x0.numel()).mean() == pytest.approx(5.0)


def test_noise_levels_are_one_for_all_or_one_a_chunk(student: Generator) -> None:
    record = rolled_out(student, POLICIES["window"], [0, 0, 0])

    def levels(**settings: object) -> Tensor:
        targets = Targets(record, TARGETS, ScoreSettings(**settings))  # type: ignore[arg-type]
        draw = torch.Generator().manual_seed(0)
        return torch.stack([targets.draw_levels(draw) for _ in range(500)])

    shared, split = levels(), levels(level_per_chunk=True)
    assert shared.shape == (500, 2, TARGETS * FRAMES)
    assert (shared == shared[:, :, :1]).all()
    assert (shared.min(), shared.max()) == (0.02, 0.98)
    assert (split[:, :, :FRAMES] == split[:, :, :1]).all()
    assert (split[:, :, 0] != split[:, :, FRAMES]).any()


def test_the_flow_of_the_true_noise_costs_the_critic_nothing() -> None:
    x0, eps = torch.randn(2, 2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([[0.5] * 3, [0.25] * 3], dtype=torch.float64)
    assert critic_loss(eps - x0, x0, eps, level, "none") == 0
    one = critic_loss(eps - x0 + 1, x0, eps, level, "bell")
    assert one == pytest.approx((2.08 + 1.46) / 2, abs=0.01)
    noisy = noised(x0, eps, level)
    assert (clean_of(noisy, eps - x0, level) - x0).abs().max() < 1e-6


def test_a_record_knows_its_targets(student: Generator) -> None:
    targets = targets_of(student, POLICIES["window"])
    record: Sequence[ChunkRecord] = targets.record
    assert targets.first == CHUNKS - TARGETS
    assert torch.equal(targets.x0[:, :FRAMES], record[-3].x0)
