"""Distribution matching distillation after the student's own past: scores, gradient, critic's loss.

A score network predicts the flow of noised target chunks. The teacher knows the data, the critic
learns what the student makes; the student moves by the difference of what they predict.
Source: DMD, arXiv 2311.18828; normalised as in DMD2, arXiv 2405.14867; after a context as in
Context Forcing, arXiv 2602.06028.

Axis letters: B batch, F latent frames of all targets, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cfgen.model.generator import Conditioning, Generator
from cfgen.train.context_forcing.replay import Part, Read, Reads, replay
from cfgen.train.context_forcing.self_rollout import ChunkRecord
from cfgen.train.flow_loss import bell, shifted_levels


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
        first_latent: what scores see for the first latent frame of a contiguous context,
            [B, C, h, w]; None: the student's own.
    """

    record: Sequence[ChunkRecord]
    count: int
    settings: ScoreSettings
    first_latent: Tensor | None = None

    @property
    def first(self) -> int:
        """The number of the first target chunk."""
        return len(self.record) - self.count

    @property
    def x0(self) -> Tensor:
        """Clean targets [B, F, C, h, w], as their exit passes predicted them."""
        return torch.cat([chunk.x0 for chunk in self.record[self.first :]], 1)

    @property
    def visible(self) -> set[int]:
        """First latent frames of the chunks that the student's targets read, themselves aside."""
        chunks = {frame: kept.start for kept in self.record for frame in kept.frames}
        return {
            chunks[read.frame]
            for kept in self.record[self.first :]
            for layer in kept.exit_reads
            for read in layer[: -len(kept.frames)]
        }

    def draw_levels(self, noise: torch.Generator) -> Tensor:
        """Noise levels [B, F] float64."""
        s, chunks = self.settings, self.record[self.first :]
        batch, drawn = len(chunks[0].x0), len(chunks) if s.level_per_chunk else 1
        levels = shifted_levels(batch * drawn, s.shift, noise).double().view(batch, drawn)
        frames = torch.tensor([chunk.x0.shape[1] for chunk in chunks])
        levels = levels.clamp(*s.levels).expand(-1, len(chunks)).repeat_interleave(frames, 1)
        return levels.to(chunks[0].x0.device)

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
        given = self._parts(prompts[self.first :], noisy, level)
        free = self._parts([unconditional] * self.count, noisy, level) if unconditional else []
        learnt = None if through_context else ()
        flows = replay(network, self._commits(prompts), [*given, *free], learnt=learnt)
        flow = torch.cat(flows[: len(given)], 1)
        if not free:
            return flow
        without = torch.cat(flows[len(given) :], 1)
        return without + self.settings.guidance * (flow - without)

    def _commits(self, prompts: Sequence[Conditioning]) -> list[Part]:
        """Commit passes of all that the targets read."""
        last = self.first if self.settings.score == "joint" else len(self.record) - 1
        parts = [
            replace(self.record[i].commit_part(prompts[i]), reads=self._reads_of(i)[1])
            for i in range(self._begin, last)
        ]
        if self.first_latent is not None:
            latents = parts[0].latents.clone()
            latents[:, 0] = self.first_latent
            parts[0] = replace(parts[0], latents=latents)
        return parts

    def _parts(self, prompts: Sequence[Conditioning], noisy: Tensor, level: Tensor) -> list[Part]:
        """Denoising passes of the targets."""
        chunks = self.record[self.first :]
        if self.settings.score == "joint":
            return [Part(chunks[0].start, noisy, level, prompts, self._joint_reads())]
        lengths = [chunk.x0.shape[1] for chunk in chunks]
        pieces = zip(torch.split(noisy, lengths, 1), torch.split(level, lengths, 1), strict=True)
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


def critic_loss(flow: Tensor, x0: Tensor, eps: Tensor, level: Tensor, weight: str) -> Tensor:
    """Mean squared error of the flow of noised targets [B, F, C, h, w], weighed by noise level."""
    error = (flow - (eps - x0)).square().mean((2, 3, 4))
    return (error * bell(level).to(error)).mean() if weight == "bell" else error.mean()
