"""Stage `teacher`: a score of targets after a long context, by flow matching with its own errors.

As in stage `base`, films are played through the memory that renders have: what lies before a target
is committed chunk by chunk, so that the target sees what a student's chunk will see. The context is
clean but for its newest latents, which get errors of the model's own, as targets do: a student's
rollouts are no films, and the teacher is to lead them back.
Source: Context Forcing, arXiv 2602.06028, section 3.3.

Axis letters: B batch, F latent frames, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfgen.errors import UsageError
from cfgen.memory.paged import PagedView
from cfgen.model.generator import Conditioning, Generator
from cfgen.model.text_encoder import TextEncoder
from cfgen.rollout.loop import commit_chunk, predict_flow
from cfgen.train.context_forcing.error_bank import Chosen, ErrorRecycling, ErrorSettings, noised
from cfgen.train.context_forcing.lora import LoraSettings, add_lora
from cfgen.train.context_forcing.teacher_films import Drawn, Films
from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.latents import CHUNK_LATENTS, FilmBatch
from cfgen.train.flow_loss import Errors, LossWeights, bell, shifted_levels
from cfgen.train.processes import gathered, process
from cfgen.train.shots import choose_chunks, prompts_by_shot, repeated
from cfgen.train.stage import Learner, RateName, Stage, Update, rate_of
from cfgen.train.training_memory import (
    MemorySettings,
    TrainingAdmission,
    draw_policy,
    training_memory,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSettings:
    """Values of the stage.

    Attributes:
        lr: peak learning rate of AdamW.
        betas: its decays.
        weight_decay: its weight decay.
        rate: how the rate changes: `constant`, `trapezoid`, or `cosine` down to `rate_end` of it.
        rate_end: see `rate`.
        micro_batches: batches of films that a step is made of.
        targets: targets of a film.
        target_chunks: chunks of a target, which are denoised together; above 1, `targets` is 1 and
            fast memory grows by the chunks that a target has more.
        earliest: chunks of every film that are no target, since too little lies before them.
        draws: noise draws of a target.
        shift: noise levels are shift u / (1 + (shift - 1) u) for u even in [0, 1].
        bell: whether noise levels are weighed as Wan's schedules do.
        return_weight: as in stage `base`.
        motion_weight: as in stage `base`.
        drop_text: share of the films whose prompts are replaced by the empty one.
        recompute: whether a target's activations are worked out again instead of kept; `targets`
            must be 1.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    rate: RateName = "constant"
    rate_end: float = 0.0
    micro_batches: int = 1
    targets: int = 4
    target_chunks: int = 1
    earliest: int = 0
    draws: int = 2
    shift: float = 5.0
    bell: bool = True
    return_weight: float = 1.0
    motion_weight: float = 0.0
    drop_text: float = 0.0
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.targets > 1 and (self.target_chunks > 1 or self.recompute):
            raise UsageError(
                f"teacher.targets must be 1 with target_chunks above 1 or recompute, got "
                f"{self.targets}: nothing may be committed after such a target"
            )


@dataclass(frozen=True, slots=True)
class TeacherParts:
    """What a teacher is made of.

    Attributes:
        generator: with plain weights; all of it learns, or the factors that it is given.
        text_encoder: encodes prompts; frozen.
        films: what it learns from.
        export: writes its weights, by their names in the generator.
        measure: figures of the generator on films that training never sees.
    """

    generator: Generator
    text_encoder: TextEncoder
    films: Films
    export: Callable[[Mapping[str, Tensor]], None]
    measure: Callable[[Generator, TextEncoder], dict[str, float]] | None = None


class TeacherStage(Stage):
    """Trains a generator, or a LoRA of it; its text encoder stands still."""

    name = "teacher"

    def __init__(
        self,
        settings: TeacherSettings,
        memory: MemorySettings,
        errors: ErrorSettings,
        lora: LoraSettings,
        parts: TeacherParts,
    ) -> None:
        self.settings, self._parts = settings, parts
        more = CHUNK_LATENTS * (settings.target_chunks - 1)
        self._memory = replace(memory, fast=memory.fast + more)
        frames = CHUNK_LATENTS * settings.target_chunks
        self._recycling = ErrorRecycling(errors, frames=frames, gather=gathered)
        self.generator = parts.generator
        parts.text_encoder.requires_grad_(False)
        self.modules = nn.ModuleDict(
            {"generator": self.generator, "text_encoder": parts.text_encoder}
        )
        if lora.rank:
            add_lora(self.generator, lora, seed=3)
        else:
            self.generator.requires_grad_(True)

    def learners(self) -> Sequence[Learner]:
        """One: the generator, or its factors."""
        s, learnt = self.settings, [p for p in self.generator.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=s.lr, betas=s.betas, weight_decay=s.weight_decay)
        self._learner = Learner("", learnt, [optimizer], rate_of(s.rate, s.rate_end))
        return [self._learner]

    def updates(self, step: int) -> Iterable[Update]:
        """One, of several micro-batches."""
        return [Update(self._learner, partial(self.loss, step), self.settings.micro_batches)]

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, dict[str, float]]:
        """Squared error of the flow of targets, each after what the memory holds before it."""
        s = self.settings
        index, count = process()
        round_ = step * s.micro_batches + micro_batch
        number = round_ * count + index
        rng, noise = rng_for("teacher", number), torch.Generator().manual_seed(number)
        drawn = self._parts.films.draw(number, rng)
        # Processes make the same passes, of other films, so that none waits for another.
        targets = self._targets(drawn, rng_for("targets", round_))
        admission = TrainingAdmission.drawn(self._memory, rng, drawn.starts, drawn.chunks)
        batch = _on(drawn.batch, self.generator.device)
        _, frames, _, height, width = batch.latents.shape
        policy = draw_policy(self._memory, rng, drawn.chunks)
        memory = training_memory(policy, admission, self.generator, (frames, height, width))
        prompts, last = self._prompts(drawn, rng), max(targets)
        clean = self._recycling.choose_clean(len(batch.latents), rng)
        errors = Errors(LossWeights(returning=s.return_weight, motion=s.motion_weight))
        for chunk in range(last + 1):
            admission.chunk = chunk
            length = s.target_chunks if chunk in targets else 1
            part = _cut(batch, chunk, length)
            view = memory.begin(part.latents.shape[1])
            if chunk in targets:
                self._denoise(part, view, prompts[chunk], clean, (step, rng, noise), errors)
            if chunk < last:
                x0 = part.latents
                if self._is_newest(chunk, targets):
                    x0 = x0 + self._recycling.of_context(x0, clean, rng)
                learnt = chunk in targets or chunk in drawn.starts
                with nullcontext() if learnt else torch.no_grad():
                    commit_chunk(self.generator, memory, view, x0, prompts[chunk])
        loss, figures = errors.total()
        return loss, figures | {"bank": float(len(self._recycling.banks["x0"]))}

    def _targets(self, drawn: Drawn, rng: np.random.Generator) -> frozenset[int]:
        """First chunks of the targets of a batch; at least one, however short its films are."""
        s = self.settings
        last = drawn.chunks - s.target_chunks
        if last < 0:
            raise UsageError(
                f"teacher.target_chunks is {s.target_chunks}, and a film has {drawn.chunks} chunks",
                "take shorter targets or longer films",
            )
        among = range(min(s.earliest, last), last + 1)
        return choose_chunks(drawn.batch, drawn.starts, s.targets, rng, among=among)

    def _is_newest(self, chunk: int, targets: Iterable[int]) -> bool:
        """Whether a chunk is of the newest context of a target."""
        newest = self._recycling.settings.context_frames // CHUNK_LATENTS
        return any(0 < target - chunk <= newest for target in targets)

    def _prompts(self, drawn: Drawn, rng: np.random.Generator) -> list[Conditioning]:
        """What each chunk's captions say, those of some films left out."""
        count = len(drawn.batch.latents)
        dropped = rng.uniform(size=count) < self.settings.drop_text

        def words(film: int, shot: int) -> str:
            return "" if dropped[film] else drawn.words(film, shot)

        encoder = self._parts.text_encoder
        return prompts_by_shot(drawn.shots, count, words, self.generator, encoder)

    def _denoise(
        self,
        part: FilmBatch,
        view: PagedView,
        text: Conditioning,
        clean: Chosen,
        drawing: tuple[int, np.random.Generator, torch.Generator],
        errors: Errors,
    ) -> None:
        """Learn from a target at several noise levels, and keep what the flow was wrong by."""
        s, (step, rng, noise) = self.settings, drawing
        x0 = part.latents.repeat(s.draws, 1, 1, 1, 1)
        eps = torch.randn(x0.shape, generator=noise).to(x0)
        level = shifted_levels(len(x0), s.shift, noise).to(x0)
        levels, without = level.flatten(), np.tile(clean, s.draws)
        of_x0, of_noise = self._recycling.of_target(x0, levels, without, rng)
        x, target = noised(x0, eps, level, of_x0, of_noise)
        with recomputed(self.generator) if s.recompute else nullcontext():
            flow = predict_flow(self.generator, x, levels[:, None], repeated(text, s.draws), view)
        error = flow - target
        weight = bell(level) if s.bell else None
        errors.add(error, part.subjects, part.returns, draws=s.draws, by_sample=weight)
        self._recycling.keep(error, levels, without, step, rng)

    def measure(self) -> dict[str, float]:
        """Figures of the generator, if its films have any."""
        measure = self._parts.measure
        return measure(self.generator, self._parts.text_encoder) if measure else {}

    def extra_state(self) -> dict[str, Tensor]:
        """The error bank."""
        return self._recycling.state()

    def restore_extra(self, state: Mapping[str, Tensor]) -> None:
        """Take an error bank."""
        self._recycling.restore(state)

    def export(self, weights: Mapping[str, Tensor]) -> None:
        """Write the averaged weights, those that stood still beside them."""
        learnt = {name.removeprefix("generator."): w for name, w in weights.items()}
        still = {n: p for n, p in self.generator.named_parameters() if n not in learnt}
        self._parts.export(still | learnt)


@contextmanager
def recomputed(generator: Generator) -> Iterator[None]:
    """Let blocks keep no activations but work them out again, in passes within.

    What such a pass reads of a memory must stay as it is until gradients are taken.
    """
    blocks = list(generator.blocks)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the instance's; that of the class is seen again


def _on(batch: FilmBatch, device: torch.device) -> FilmBatch:
    return FilmBatch(batch.films, *(x.to(device) for x in batch.tensors))


def _cut(batch: FilmBatch, chunk: int, chunks: int) -> FilmBatch:
    """So many chunks of a batch, from one on."""
    span = slice(CHUNK_LATENTS * chunk, CHUNK_LATENTS * (chunk + chunks))
    return FilmBatch(batch.films, *(x[:, span] for x in batch.tensors))
