"""Stages `dmd` and `cdmd` with a tiny student: what learns, what is logged, going on exactly."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cfgen.errors import UsageError
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.memory.window import WindowMemory
from cfgen.model.generator import Generator, WanConfig
from cfgen.train.context_forcing.dmd import ScoreSettings
from cfgen.train.context_forcing.lora import LoraSettings, add_lora
from cfgen.train.context_forcing.roles import Role
from cfgen.train.context_forcing.scripts import FilmWorldScripts, PromptScripts
from cfgen.train.context_forcing.student_memory import drawn_memories, own_memories
from cfgen.train.context_forcing.student_settings import StudentSettings
from cfgen.train.context_forcing.student_stage import StudentParts, StudentStage
from cfgen.train.loop import train
from cfgen.train.stage import LoopSettings
from cfgen.train.state import read_state
from cfgen.train.training_memory import MemorySettings

CONFIG = WanConfig(
    dim=16, ffn_dim=16, num_heads=1, num_layers=2, in_dim=2, out_dim=2, text_len=3, text_dim=4
)
SETTINGS = StudentSettings(
    timesteps=(1000, 500),
    latent_size=(2, 4),
    targets=2,
    chunks=(4, 5),
    grow=2,
    ratio=2,
    batch=1,
    lr=1e-3,
    critic_lr=1e-3,
)
LOOP = LoopSettings(steps=3, precision="no", log_every=1, save_minutes=0.0)


class Words(nn.Module):
    """A text encoder: two numbers of each prompt."""

    def forward(self, prompts: Sequence[str]) -> Tensor:
        seeds = [hashlib.sha256(prompt.encode()).digest()[0] for prompt in prompts]
        drawn = [torch.randn(3, 4, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(drawn)


def generator(seed: int) -> Generator:
    torch.manual_seed(seed)
    made = Generator(CONFIG)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.1)
    return made


def stage_of(
    exported: dict[str, Tensor] | None = None,
    *,
    lora: int = 0,
    score: ScoreSettings | None = None,
    **changes: object,
) -> StudentStage:
    def export(weights: Mapping[str, Tensor]) -> None:
        if exported is not None:
            exported.update({name: tensor.clone() for name, tensor in weights.items()})

    factors = LoraSettings(rank=lora, alpha=float(lora))

    def role(seed: int, *, learns: bool) -> Role:
        made = generator(seed)
        if learns and lora:
            add_lora(made, factors, seed=seed)
        else:
            made.requires_grad_(learns)
        return Role(made, factors if learns else LoraSettings())

    parts = StudentParts(
        student=role(1, learns=True),
        teacher=role(2, learns=False),
        critic=role(2, learns=True),
        text_encoder=Words(),  # type: ignore[arg-type]
        scripts=FilmWorldScripts(),
        memories=drawn_memories(MemorySettings()),
        export=export,
    )
    settings = dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return StudentStage("cdmd", settings, score or ScoreSettings(), parts)


def test_student_and_critic_learn_and_the_teacher_stands_still(tmp_path: Path) -> None:
    exported: dict[str, Tensor] = {}
    stage = stage_of(exported)
    before = {name: p.clone() for name, p in stage.modules.named_parameters()}
    first, second, third = train(stage, tmp_path, LOOP, minutes=5)
    for name, parameter in stage.modules.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("teacher."), name
    assert set(exported) == set(stage.student.state_dict())
    both = {"student_loss", "student_norm", "critic_loss", "critic_norm", "student_critic_lead"}
    assert set(first.figures) > both
    assert set(second.figures) == {"critic_loss", "critic_norm"}
    assert third.figures["student_chunks"] in (4, 5)
    assert first.figures["student_chunks"] == 4, "the horizon has not grown yet"
    assert first.figures["student_motion"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reuse": 2, "limiter": True, "grad": "frozen", "critic_grad": "frozen"},
        {"reach": "all", "exits": "own", "committed": "full", "micro_batches": 2},
    ],
    ids=["plain", "frozen and limited", "all of it"],
)
def test_a_run_goes_on_exactly(tmp_path: Path, changes: dict[str, object]) -> None:
    """Weights, both optimizers, the average and the limiter, cut in mid-reuse too."""
    list(train(stage_of(**changes), tmp_path / "whole", LOOP, minutes=5))
    for stop in (1, 2, 3):
        for progress in train(stage_of(**changes), tmp_path / "sliced", LOOP, minutes=5):
            if progress.step >= stop:
                break
    list(train(stage_of(**changes), tmp_path / "sliced", LOOP, minutes=5))
    whole, sliced = (read_state(tmp_path / each / "cdmd") for each in ("whole", "sliced"))
    assert whole is not None
    assert sliced is not None
    assert whole[2].keys() == sliced[2].keys()
    odd = [name for name, t in whole[2].items() if not t.equal(sliced[2][name])]
    odd = [name for name in odd if not torch.isnan(whole[2][name]).all()]
    assert odd == []


def test_of_factors_only_these_learn_and_are_kept(tmp_path: Path) -> None:
    exported: dict[str, Tensor] = {}
    list(train(stage_of(exported, lora=2), tmp_path, LOOP, minutes=5))
    state = read_state(tmp_path / "cdmd")
    assert state is not None
    weights = [name for name in state[2] if name.startswith("weights.")]
    assert weights
    assert all("lora_" in name for name in weights)
    assert {"patch_embedding.weight", "blocks.0.self_attn.q.lora_A"} <= set(exported)


@pytest.mark.parametrize("grad", ["frozen", "replay"])
def test_the_student_learns_to_write_memory_by_replay_alone(grad: str) -> None:
    """The embedding of level 0 learns only through commits."""
    stage = stage_of(grad=grad)
    stage.learners()
    seen: list[Tensor] = []

    def watch(_module: object, _inputs: object, made: Tensor) -> None:
        if made.requires_grad:
            made.retain_grad()
            seen.append(made)

    stage.student.time_embedding.register_forward_hook(watch)
    stage.student_loss(0, 0)[0].backward()
    (time,) = seen
    assert time.grad is not None
    commits = time.grad[:, : -2 * 3]
    assert commits.shape[1] == (0 if grad == "frozen" else 9)
    assert (commits.abs().sum() > 0) == (grad == "replay")


def test_the_student_stays_where_critic_and_teacher_agree() -> None:
    stage = stage_of(score=ScoreSettings(guidance=1.0))
    stage.learners()
    loss, figures = stage.student_loss(0, 0)
    loss.backward()
    assert figures["gradient"] == 0
    assert all(p.grad is None or not p.grad.any() for p in stage.student.parameters())


@pytest.mark.parametrize("grad", ["frozen", "replay"])
def test_activations_that_are_worked_out_again_give_the_same_gradients(grad: str) -> None:
    found = []
    for recompute in (False, True):
        stage = stage_of(grad=grad, critic_grad=grad, recompute=recompute)
        stage.learners()
        stage.student_loss(0, 0)[0].backward()
        stage.critic_loss(0, 0)[0].backward()
        learnt = [*stage.student.parameters(), *stage.critic.parameters()]
        found.append([p.grad for p in learnt])
    for kept, again in zip(*found, strict=True):
        assert (kept is None) == (again is None)
        assert kept is None or torch.equal(kept, again)


def test_updates_on_one_rollout_differ_in_noise_alone() -> None:
    stage = stage_of(ratio=4, reuse=2)
    stage.learners()
    losses = [float(stage.critic_loss(step, 0)[0].detach()) for step in (0, 1)]
    kept = stage._kept
    stage.critic_loss(2, 0)
    assert losses[0] != losses[1]
    assert kept is not None
    assert stage._kept is not kept
    assert stage._kept is not None
    assert stage._kept[0] == (2, 0)


def test_all_that_is_drawn_is_of_the_seed() -> None:
    losses = []
    for seed in (0, 0, 1):
        stage = stage_of(seed=seed)
        stage.learners()
        losses.append(float(stage.critic_loss(0, 0)[0].detach()))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"targets": 5}, "must rise from targets"),
        ({"chunks": (4, 3)}, "got 4 to 3"),
        ({"reuse": 3}, r"must divide ratio \(2\), got 3"),
    ],
)
def test_values_that_do_not_go_together_are_refused(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        stage_of(**changes)


def test_a_policy_of_its_own_takes_one_film() -> None:
    rng = np.random.default_rng(0)
    script = PromptScripts(["a", "b"]).draw(rng, 2, 3)
    made = own_memories(WindowMemory(size=6, sink=0))(script, generator(0), (9, 2, 4), rng)
    assert made.on_chunk is None
    with pytest.raises(UsageError, match="got a batch of 2"):
        own_memories(SlowFastMemory())(script, generator(0), (9, 2, 4), rng)


def test_scripts_of_films_share_their_shots() -> None:
    script = FilmWorldScripts().draw(np.random.default_rng(1), 3, 12)
    assert len(script.shots) == 12
    assert len(script.prompts) == max(script.shots) + 1
    assert all(len(set(shot)) == 3 for shot in script.prompts)
    assert 0 in script.starts
