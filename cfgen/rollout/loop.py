"""Chunks one after another through a memory: the one loop that render and train share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from cfgen.memory.protocols import Memory, Pass, V, View
from cfgen.model.generator import Conditioning, Generator, Level
from cfgen.rollout.schedule import FewStepSchedule, Noise


@dataclass(frozen=True, slots=True)
class Chunk:
    """A finished chunk: `latents` [B, F, C, H, W] in float32."""

    index: int
    latents: Tensor


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance: the flow is pushed away from what it were without the prompt.

    Source: arXiv 2207.12598, equation 6, with `scale` = 1 + w.

    Attributes:
        unconditional: the empty prompt, encoded.
        scale: 1 changes nothing; each denoising pass runs twice.
    """

    unconditional: Conditioning
    scale: float


@dataclass(frozen=True, slots=True)
class ChunkDenoiser:
    """All passes of a chunk, one after another: from its noise to what memory keeps of it.

    Nothing in it waits for the device, so that it can be one CUDA graph.

    Attributes:
        generator: the causal model.
        schedule: noise levels.
        levels: those levels as the layers read them, and the clean one last.
        conditioning: encoded prompt.
        guidance: how strongly to follow the prompt.
    """

    generator: Generator
    schedule: FewStepSchedule
    levels: tuple[Level, ...]
    conditioning: Conditioning
    guidance: Guidance | None

    @property
    def draws(self) -> int:
        """How often a chunk draws noise."""
        return len(self.schedule.sigmas) if self.schedule.renoise == "fresh" else 1

    def __call__(self, noise: Tensor, view: View) -> Tensor:
        """The clean chunk [B, F, C, H, W], after its commit pass.

        Args:
            noise: [draws, B, F, C, H, W].
            view: the chunk's view.
        """
        schedule, x = self.schedule, noise[0]
        *levels, clean = self.levels
        for step, level in enumerate(levels):
            flow = self.generator(x, level, self.conditioning, view.at(Pass(step)))
            if self.guidance is not None:
                without = self.guidance.unconditional
                free = self.generator(x, level, without, view.at(Pass(step)))
                flow = free + self.guidance.scale * (flow - free)
            x0 = schedule.clean(x, flow, step)
            if step + 1 < len(levels):
                fresh = noise[step + 1] if schedule.renoise == "fresh" else None
                x = schedule.next(x0, flow, step, fresh)
        commit = view.at(Pass(len(levels), commit=True))
        self.generator.commit(x0, clean, self.conditioning, commit)
        return x0


Run = Callable[[Tensor, View], Tensor]
"""What `ChunkDenoiser` does, by whatever means."""


class Rollout(Generic[V]):
    """Chunks one after another, each begun and finished by its own call.

    On a GPU a chunk is under way after `start`, which leaves the host free until `finish`.

    Args:
        generator: the causal model.
        memory: holds what the chunks before committed.
        schedule: noise levels.
        noise: where noise comes from.
        conditioning: encoded prompt.
        shape: [B, F, C, H, W] of a chunk.
        guidance: how strongly to follow the prompt; not where denoising passes decide on frames.
        capture: makes the passes of a chunk one piece, see `chunk_graph`.
    """

    def __init__(
        self,
        generator: Generator,
        memory: Memory[V],
        schedule: FewStepSchedule,
        noise: Noise,
        *,
        conditioning: Conditioning,
        shape: tuple[int, ...],
        guidance: Guidance | None = None,
        capture: Callable[[Run], Run] | None = None,
    ) -> None:
        levels = tuple(generator.level(sigma) for sigma in (*schedule.sigmas, 0.0))
        passes = ChunkDenoiser(generator, schedule, levels, conditioning, guidance)
        self._run: Run = passes if capture is None else capture(passes)
        self._draws, self._device = passes.draws, generator.device
        self._memory, self._noise, self._shape = memory, noise, shape

    def start(self, index: int) -> None:
        """Begin the chunk; the memory must hold what was committed before it."""
        steps = range(self._draws)
        drawn = torch.stack([self._noise.draw(index, step, self._shape) for step in steps])
        self._view = self._memory.begin(self._shape[1])
        self._chunk = Chunk(index, self._run(drawn.to(self._device), self._view))

    def finish(self) -> Chunk:
        """The chunk that was begun, once it is in the memory."""
        self._memory.commit(self._view)
        return self._chunk


def rollout(
    generator: Generator,
    memory: Memory[V],
    schedule: FewStepSchedule,
    noise: Noise,
    *,
    conditioning: Conditioning,
    shape: tuple[int, ...],
    chunks: range,
    guidance: Guidance | None = None,
) -> Iterator[Chunk]:
    """Generate chunks with these indices, in order; the rest as for `Rollout`.

    Yields:
        each chunk after its commit pass.
    """
    rolling = Rollout(
        generator,
        memory,
        schedule,
        noise,
        conditioning=conditioning,
        shape=shape,
        guidance=guidance,
    )
    for index in chunks:
        rolling.start(index)
        yield rolling.finish()


def recommit(
    generator: Generator,
    memory: Memory[V],
    schedule: FewStepSchedule,
    *,
    conditioning: Conditioning,
    latents: Tensor,
) -> None:
    """Commit a chunk that was denoised before, [B, F, C, H, W], as the next one of the memory.

    The memory becomes what it was after the first time, if it looks at commit passes alone.
    """
    view = memory.begin(latents.shape[1])
    pass_ = Pass(len(schedule.sigmas), commit=True)
    generator.commit(latents, generator.level(0.0), conditioning, view.at(pass_))
    memory.commit(view)
