"""Distribution matching distillation after the student's own past: scores, gradient, critic's loss.

A score network predicts the flow of noised target chunks. The teacher knows the data, the critic
learns what the student makes; the student moves by the difference of what they predict.
Source: DMD, arXiv 2311.18828; normalised as in DMD2, arXiv 2405.14867; after a context as in
Context Forcing, arXiv 2602.06028.

Axis letters: B batch, F latent frames of all targets, C channels, h w latent grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cfgen.errors import UsageError
from cfgen.model.generator import Conditioning, Generator
from cfgen.rollout.schedule import warp
from cfgen.train.context_forcing.replay import Part, Read, Reads, replay
from cfgen.train.context_forcing.self_rollout import ChunkRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """How teacher and critic see the targets.

    Attributes:
        score: `causal`: each target chunk after the student's clean chunks before it; `joint`: all
            targets noised together, as one span.
        context: what of the chunks before the targets is seen: `none`; `memory`, what the student's
            own memory held; `contiguous`, the latent frames right before the targets.
        context_frames: how many these are.
        shift: noise levels are shift u / (1 + (shift - 1) u) for u even in [0, 1].
        levels: lowest and highest noise level.
        level_per_chunk: whether each target chunk has its own noise level, instead of one for all.
        guidance: scale of the teacher's classifier-free guidance; 1 for none.
        floor: the least that the student's gradient is divided by.
        critic_weight: weight of the critic's error: `none`, or `bell`, highest at level 0.5.
    """

    score: Literal["causal", "joint"] = "causal"
    context: Literal["none", "memory", "contiguous"] = "memory"
    context_frames: int = 21
    shift: float = 5.0
    levels: tuple[float, float] = (0.02, 0.98)
    level_per_chunk: bool = False
    guidance: float = 4.0
    floor: float = 1e-6
    critic_weight: Literal["none", "bell"] = "none"


@dataclass(frozen=True, slots=True)
class Targets:
    """The target chunks of a rollout, and what comes before them.

    Attributes:
        record: every chunk of the rollout.
        count: how many of them are targets, the last ones.
        settings: how they are seen.
    """

    record: Sequence[ChunkRecord]
    count: int
    settings: ScoreSettings
    _reads: list[tuple[Reads, Reads]] = field(default_factory=list)

    @property
    def first(self) -> int:
        """The number of the first target chunk."""
        return len(self.record) - self.count

    @property
    def x0(self) -> Tensor:
        """Clean targets [B, F, C, h, w], as their exit passes predicted them."""
        return torch.cat([chunk.x0 for chunk in self.record[self.first :]], 1)

    def draw_levels(self, generator: torch.Generator) -> Tensor:
        """Noise levels [B, F] float64."""
        s, chunks = self.settings, self.record[self.first :]
        drawn = len(chunks) if s.level_per_chunk else 1
        even = torch.rand(len(chunks[0].x0), drawn, generator=generator, dtype=torch.float64)
        levels = (s.shift * even / (1 + (s.shift - 1) * even)).clamp(*s.levels)
        frames = torch.tensor([chunk.x0.shape[1] for chunk in chunks])
        return levels.expand(-1, len(chunks)).repeat_interleave(frames, 1).to(chunks[0].x0.device)

    def flow(
        self,
        network: Generator,
        prompts: Sequence[Conditioning],
        noisy: Tensor,
        level: Tensor,
        *,
        unconditional: Conditioning | None = None,
        through_context: bool = True,
    ) -> Tensor:
        """What a network predicts of noised targets.

        Args:
            network: teacher or critic.
            prompts: of each chunk of the rollout, as the network reads them.
            noisy: [B, F, C, h, w].
            level: [B, F].
            unconditional: the empty prompt; guidance pushes the flow away from what it gives.
            through_context: whether gradients reach the passes that the context was committed by.

        Returns:
            flow [B, F, C, h, w].
        """
        commits = self._commits(prompts)
        parts = self._parts(prompts[self.first :], noisy, level)
        if unconditional is None:
            flows = replay(network, commits, parts, learnt=None if through_context else ())
            return torch.cat(flows, 1)
        free = self._parts([unconditional] * self.count, noisy, level)
        flows = replay(network, commits, [*parts, *free], learnt=None if through_context else ())
        given, without = (torch.cat(half, 1) for half in (flows[: len(parts)], flows[len(parts) :]))
        return without + self.settings.guidance * (given - without)

    def _commits(self, prompts: Sequence[Conditioning]) -> list[Part]:
        """Commit passes of all that the targets read."""
        last = self.first if self.settings.score == "joint" else len(self.record) - 1
        return [
            Part(*self._committed(chunk), [prompts[chunk]], self._reads_of(chunk)[1])
            for chunk in range(self._begin, last)
        ]

    def _committed(self, chunk: int) -> tuple[int, Tensor, Tensor]:
        kept = self.record[chunk]
        return kept.start, kept.committed, torch.zeros_like(kept.committed[:, :, 0, 0, 0]).double()

    def _parts(self, prompts: Sequence[Conditioning], noisy: Tensor, level: Tensor) -> list[Part]:
        """Denoising passes of the targets."""
        chunks = self.record[self.first :]
        if self.settings.score == "joint":
            return [Part(chunks[0].start, noisy, level, prompts, self._joint_reads())]
        lengths = [chunk.x0.shape[1] for chunk in chunks]
        pieces = zip(noisy.split(lengths, 1), level.split(lengths, 1), strict=True)
        return [
            Part(kept.start, x, at, [text], self._reads_of(self.first + i)[0])
            for i, (kept, (x, at), text) in enumerate(zip(chunks, pieces, prompts, strict=True))
        ]

    @property
    def _begin(self) -> int:
        """The first chunk that is seen at all."""
        s, start = self.settings, self.record[self.first].start
        if s.context == "memory":
            return 0
        if s.context == "none":
            return self.first
        return next(
            i for i, kept in enumerate(self.record) if kept.start >= start - s.context_frames
        )

    def _reads_of(self, chunk: int) -> tuple[Reads, Reads]:
        """What the denoising pass and the commit pass of a chunk read."""
        kept = self.record[chunk]
        if self.settings.context == "memory":
            return kept.exit_reads, kept.commit_reads
        begin, stop = self.record[self._begin].start, kept.start + kept.x0.shape[1]
        every = [Read(frame, frame - begin) for frame in range(begin, stop)]
        reads = [every] * len(kept.exit_reads)
        return reads, reads

    def _joint_reads(self) -> Reads:
        """What the span of all targets reads: the context of the first, then itself."""
        first, last = self.record[self.first], self.record[-1]
        own = first.x0.shape[1]
        joint = []
        for reads in self._reads_of(self.first)[0]:
            context, begin = reads[:-own], reads[-own].position - first.start
            span = range(first.start, last.start + last.x0.shape[1])
            joint.append([*context, *(Read(frame, begin + frame) for frame in span)])
        return joint


def noised(x0: Tensor, eps: Tensor, level: Tensor) -> Tensor:
    """Clean latents [B, F, C, h, w] at noise levels [B, F]."""
    s = level[:, :, None, None, None].to(x0.dtype)
    return (1 - s) * x0 + s * eps


def clean_of(noisy: Tensor, flow: Tensor, level: Tensor) -> Tensor:
    """Predicted clean latents, float64."""
    return noisy.double() - level[:, :, None, None, None] * flow.double()


def dmd_loss(
    x0: Tensor, real: Tensor, fake: Tensor, *, floor: float
) -> tuple[Tensor, dict[str, float]]:
    """A loss whose gradient moves the student's latents from what the critic sees to the teacher's.

    Args:
        x0: the student's clean targets, with gradients, [B, F, C, h, w].
        real: clean targets as the teacher predicts them, from the noised x0.
        fake: as the critic does.
        floor: the least mean distance of a sample from `real` that is divided by.

    Returns:
        0.5 mean((x0 - stopgrad(x0 - gradient))^2) in float64, and figures.
    """
    exact, real, fake = x0.double(), real.double(), fake.double()
    with torch.no_grad():
        size = (exact - real).abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(floor)
        gradient = torch.nan_to_num((fake - real) / size)
        target = exact - gradient
    loss = 0.5 * (exact - target).square().mean()
    return loss, {"gradient": float(gradient.abs().mean()), "distance": float(size.mean())}


def bell(level: Tensor) -> Tensor:
    """Weight of a noise level: 0 at the ends, 2.08 in the middle, 1 on average at shift 5.

    Source: Context Forcing's scheduler, as described; c (exp(-2 (level - 0.5)^2) - exp(-0.5)).
    """
    return 5.277 * (torch.exp(-2 * (level - 0.5).square()) - math.exp(-0.5))


def critic_loss(flow: Tensor, x0: Tensor, eps: Tensor, level: Tensor, weight: str) -> Tensor:
    """Mean squared error of the flow of noised targets [B, F, C, h, w], weighed by noise level."""
    error = (flow - (eps - x0)).square().mean((2, 3, 4))
    return error.mean() if weight == "none" else (bell(level).to(error) * error).mean()
