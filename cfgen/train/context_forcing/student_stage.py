"""Stages `dmd` and `cdmd`: a student of few passes, distilled on its own rollouts.

Every step teaches the critic what the student makes; every `ratio`-th first moves the student by
the difference of critic and teacher. In `dmd` rollouts are short and scores see the targets alone;
in `cdmd` rollouts are long and both scores see the student's own clean past.
Source: arXiv 2602.06028 section 3; gradients through the commits, arXiv 2607.20368.

Axis letters: B batch, F latent frames, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from cfgen.model.generator import Conditioning, Generator
from cfgen.model.text_encoder import TextEncoder
from cfgen.rollout.schedule import FewStepSchedule, KeyedNoise
from cfgen.train.context_forcing.dmd import (
    ScoreSettings,
    Targets,
    clean_of,
    critic_loss,
    dmd_loss,
    noised,
)
from cfgen.train.context_forcing.replay import replay
from cfgen.train.context_forcing.roles import Role
from cfgen.train.context_forcing.scripts import Script, Scripts
from cfgen.train.context_forcing.self_rollout import draw_exits, rollout_chunks, self_rollout
from cfgen.train.context_forcing.step_limiter import StepLimiter
from cfgen.train.context_forcing.student_memory import Memories
from cfgen.train.context_forcing.student_settings import StudentSettings
from cfgen.train.context_forcing.teacher_stage import recomputed
from cfgen.train.context_forcing.window_cut import Reencode, first_latent
from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.latents import CHUNK_LATENTS
from cfgen.train.processes import as_one
from cfgen.train.shots import split
from cfgen.train.stage import Learner, Stage, Update, constant, rate_of

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class StudentParts:
    """What the stage is made of.

    Attributes:
        student: learns; its average is exported.
        teacher: stands still.
        critic: learns what the student makes.
        text_encoder: encodes prompts; stands still.
        scripts: what rollouts are to show.
        memories: the student's memory.
        export: writes weights of the student, by their names in the generator.
        sample: makes films with the student after so many steps; gives figures of them.
        reencode: makes the first latent of a contiguous context; None keeps it.
    """

    student: Role
    teacher: Role
    critic: Role
    text_encoder: TextEncoder
    scripts: Scripts
    memories: Memories
    export: Callable[[Mapping[str, Tensor]], None]
    sample: Callable[[Generator, FewStepSchedule, int], Figures] | None = None
    reencode: Reencode | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout of the student.

    Attributes:
        targets: its record, as scores see it.
        script: what it was to show.
        text: its encoded prompts shot by shot, the negative ones last: [(shots + 1) * B, T, E].
    """

    targets: Targets
    script: Script
    text: Tensor

    def prompts(self, network: Generator) -> tuple[list[Conditioning], Conditioning]:
        """What a network reads in each chunk, and without a prompt."""
        *by_shot, negative = split(network.condition(self.text), len(self.script.prompts[0]))
        return [by_shot[shot] for shot in self.script.shots], negative


class StudentStage(Stage):
    """Distils a student; `dmd` and `cdmd` differ in their values alone."""

    def __init__(
        self, name: str, settings: StudentSettings, score: ScoreSettings, parts: StudentParts
    ) -> None:
        self.name, self.settings, self._score, self._parts = name, settings, score, parts
        self.has_choice = parts.sample is not None
        self.schedule = FewStepSchedule.from_timesteps(settings.timesteps, shift=settings.shift)
        self.student, self.teacher, self.critic = (
            role.generator for role in (parts.student, parts.teacher, parts.critic)
        )
        parts.text_encoder.requires_grad_(False)
        self.modules = nn.ModuleDict(
            {
                "student": self.student,
                "teacher": self.teacher,
                "critic": self.critic,
                "text_encoder": parts.text_encoder,
            }
        )
        self._kept: tuple[tuple[int, int], Rollout] | None = None
        self._step = 0

    def learners(self) -> Sequence[Learner]:
        """The student, whose average is exported, and the critic."""
        s = self.settings

        def adam(weights: Sequence[nn.Parameter], lr: float, betas: tuple[float, float]) -> AdamW:
            return AdamW(weights, lr=lr, betas=betas, weight_decay=s.weight_decay)

        student, critic = self._parts.student.parameters, self._parts.critic.parameters
        self._limiter = StepLimiter(student, critic, (s.lr, s.critic_lr), s.ratio)
        self._student_learner = Learner(
            "student", student, [adam(student, s.lr, s.betas)], rate_of(s.rate, s.rate_end)
        )
        self._critic_learner = Learner(
            "critic", critic, [adam(critic, s.critic_lr, s.critic_betas)], constant, averaged=False
        )
        return [self._student_learner, self._critic_learner]

    def updates(self, step: int) -> Iterator[Update]:
        """The student's at every `ratio`-th step, then the critic's."""
        s, limiter = self.settings, self._limiter if self.settings.limiter else None
        self._step = step + 1
        if step % s.ratio == 0:
            yield Update(
                self._student_learner,
                lambda number: self.student_loss(step, number),
                s.micro_batches,
                limiter.student if limiter else None,
            )
        yield Update(
            self._critic_learner,
            lambda number: self.critic_loss(step, number),
            s.micro_batches,
            limiter.critic if limiter else None,
        )

    def student_loss(self, step: int, number: int) -> tuple[Tensor, Figures]:
        """Moves the targets of a fresh rollout from what the critic sees to what the teacher sees.

        Args:
            step: the step; rollouts are as long as it allows.
            number: of the micro-batch.
        """
        key = ("student", step, number)
        rollout = self._rollout(step, *key)
        targets = rollout.targets
        x0 = self._replayed(rollout)
        eps, level = self._noise(targets, *key)
        with torch.no_grad():
            noisy = noised(x0, eps, level)
            prompts, negative = rollout.prompts(self.teacher)
            unconditional = negative if self._score.guidance != 1 else None
            flow = targets.flow(self.teacher, prompts, noisy, level, unconditional=unconditional)
            real = clean_of(noisy, flow, level)
            prompts, _ = rollout.prompts(self.critic)
            fake = clean_of(noisy, targets.flow(self.critic, prompts, noisy, level), level)
            off = float((fake - x0).abs().mean())
            motion = float(x0.diff(dim=1).abs().mean())
        loss, figures = dmd_loss(x0, real, fake, floor=self._score.floor)
        figures |= {
            "critic_lead": 1 - off / max(figures["distance"], self._score.floor),
            "motion": motion,
            "chunks": float(len(targets.record)),
        }
        return loss, figures

    def critic_loss(self, step: int, number: int) -> tuple[Tensor, Figures]:
        """Flow matching of the critic on what the student makes."""
        fresh = step - step % self.settings.reuse
        if self._kept is None or self._kept[0] != (fresh, number):
            self._kept = (fresh, number), self._rollout(fresh, "critic", fresh, number)
        rollout = self._kept[1]
        targets, x0 = rollout.targets, rollout.targets.x0
        eps, level = self._noise(targets, "critic", step, number)
        prompts, _ = rollout.prompts(self.critic)
        with recomputed(self.critic) if self.settings.recompute else nullcontext():
            flow = targets.flow(
                self.critic,
                prompts,
                noised(x0, eps, level),
                level,
                through_context=self.settings.critic_grad == "replay",
            )
        return critic_loss(flow, x0, eps, level, self._score.critic_weight), {}

    @torch.no_grad()
    def _rollout(self, step: int, *key: int | str) -> Rollout:
        """Roll the student out; everything that is drawn derives from `key`.

        Processes make the same passes, of other films: none waits for another.
        """
        s, rng = self.settings, rng_for(self.name, self.settings.seed, *key)
        *stem, number = key
        own = rng_for(self.name, s.seed, "own", *stem, *as_one(int(number)))
        chunks = rollout_chunks(step, *s.chunks, s.grow, rng)
        script = self._parts.scripts.draw(own, s.batch, chunks)
        latents = (CHUNK_LATENTS * chunks, *s.latent_size)
        made = self._parts.memories(script, self.student, latents, rng)
        exits = draw_exits(len(self.schedule.sigmas), s.targets, rng, shared=s.exits == "shared")
        shape = (s.batch, CHUNK_LATENTS, self.student.geometry.in_dim, *s.latent_size)
        noise = KeyedNoise(int(own.integers(2**62)))
        device = self.student.device
        words = [prompt for shot in script.prompts for prompt in shot]
        text = self._parts.text_encoder([*words, *[s.negative] * s.batch])
        rollout = Rollout(Targets([], s.targets, self._score), script, text)
        record = self_rollout(
            self.student,
            made.memory,
            self.schedule,
            rollout.prompts(self.student)[0],
            lambda chunk, at: noise.draw(chunk, at, shape).to(device),
            exits,
            committed=s.committed,
            on_chunk=made.on_chunk,
        )
        first = None
        if reencode := self._parts.reencode:
            first = first_latent(record, s.targets, self._score.context_frames, reencode)
        return Rollout(Targets(record, s.targets, self._score, first), script, text)

    def _replayed(self, rollout: Rollout) -> Tensor:
        """The targets once more, with gradients: [B, F, C, h, w]."""
        s, targets = self.settings, rollout.targets
        prompts, _ = rollout.prompts(self.student)
        taught = range(targets.first, len(targets.record))
        learnt: set[int] | None = set()
        if s.grad == "replay":
            learnt = targets.visible if s.reach == "visible" else None
        with recomputed(self.student) if s.recompute else nullcontext():
            flows = replay(
                self.student,
                [targets.record[i].commit_part(prompts[i]) for i in range(len(prompts) - 1)],
                [targets.record[i].exit_part(prompts[i]) for i in taught],
                learnt=learnt,
            )
        kept = [targets.record[i] for i in taught]
        clean = [each.noisy - each.level * flow for each, flow in zip(kept, flows, strict=True)]
        return torch.cat(clean, 1)

    def _noise(self, targets: Targets, *key: int | str) -> tuple[Tensor, Tensor]:
        """Noise [B, F, C, h, w] for the targets, and its levels [B, F]."""
        *stem, number = key
        rng = rng_for(self.name, self.settings.seed, "noise", *stem, *as_one(int(number)))
        seed = int(rng.integers(2**62))
        draw = torch.Generator().manual_seed(seed)
        level = targets.draw_levels(draw)
        return torch.randn(targets.x0.shape, generator=draw).to(targets.x0), level

    def extra_state(self) -> dict[str, Tensor]:
        """What the step limiter has averaged."""
        return {"limiter": self._limiter.state()}

    def restore_extra(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self._limiter.restore(state["limiter"])

    def measure(self) -> Figures:
        """Figures of films that the student makes."""
        if self._parts.sample is None:
            return {}
        return self._parts.sample(self.student, self.schedule, self._step)

    def export(self, weights: Mapping[str, Tensor]) -> None:
        """Write the student from its averaged weights."""
        named = {name.removeprefix("student."): tensor for name, tensor in weights.items()}
        self._parts.export(self._parts.student.weights(named))
