"""Chunks one after another through a memory: the loop that rendering and training share.

Axis letters: B batch, F latent frames, C channels, H W rows and columns of a latent frame.
"""

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


def predict_flow(
    generator: Generator,
    x: Tensor,
    level: Level | Tensor | float,
    conditioning: Conditioning,
    view: View,
    *,
    step: int = 0,
    guidance: Guidance | None = None,
) -> Tensor:
    """One denoising pass: the flow of x [B, F, C, H, W] at a noise level, after what `view` shows.

    Gradients reach the generator and, where the memory keeps them, the commits before.
    """
    at = view.at(Pass(step))
    flow: Tensor = generator(x, level, conditioning, at)
    if guidance is None:
        return flow
    free: Tensor = generator(x, level, guidance.unconditional, at)
    return free + guidance.scale * (flow - free)


def commit_chunk(
    generator: Generator,
    memory: Memory[V],
    view: V,
    latents: Tensor,
    conditioning: Conditioning,
    *,
    step: int = 0,
) -> None:
    """The commit pass of a chunk that was begun: clean `latents` [B, F, C, H, W] become pages.

    Args:
        generator: the causal model.
        memory: what `view` is of.
        view: the chunk's.
        latents: clean, or as clean as what is rendered.
        conditioning: what the chunk's prompt says.
        step: number of the pass, the denoising passes before it counted.
    """
    clean = generator.level(0.0)
    generator.commit(latents, clean, conditioning, view.at(Pass(step, commit=True)))
    memory.commit(view)
    memory.remember(latents)
    reencode(generator, memory, clean, conditioning, step=step)


def reencode(
    generator: Generator,
    memory: Memory[V],
    clean: Level,
    conditioning: Conditioning,
    *,
    step: int = 0,
) -> None:
    """Once a chunk is committed: encode again what the memory keeps as fewer tokens from now on.

    Args:
        generator: the causal model.
        memory: it knows which latents, and with which patch.
        clean: the noise level 0, as the generator reads it.
        conditioning: what the chunk's prompt says.
        step: number of the commit pass.
    """
    for view, latents, patch in memory.reencode():
        commit = view.at(Pass(step, commit=True))
        generator.commit(latents, clean, conditioning, commit, patch=patch)


def recommit(
    generator: Generator,
    memory: Memory[V],
    latents: Tensor,
    conditioning: Conditioning,
    *,
    step: int = 0,
) -> None:
    """Commit a chunk that is there already, [B, F, C, H, W], as the next one of the memory.

    The memory becomes what it was when the chunk was made, if commit passes alone decide in it.
    """
    view = memory.begin(latents.shape[1])
    commit_chunk(generator, memory, view, latents, conditioning, step=step)


class ChunkDenoiser:
    """All passes of a chunk, one after another: from its noise to what memory keeps of it.

    Nothing in it waits for the device, so that it can be one CUDA graph.

    Args:
        generator: the causal model.
        schedule: noise levels.
        guidance: how strongly to follow the prompt.
    """

    def __init__(
        self, generator: Generator, schedule: FewStepSchedule, guidance: Guidance | None = None
    ) -> None:
        self.generator, self.schedule, self.guidance = generator, schedule, guidance
        self._levels = tuple(generator.level(sigma) for sigma in schedule.sigmas)
        self._clean = generator.level(0.0)

    @property
    def draws(self) -> int:
        """How often a chunk draws noise."""
        return self.schedule.draws

    def __call__(self, noise: Tensor, view: View, conditioning: Conditioning) -> Tensor:
        """The clean chunk [B, F, C, H, W], after its commit pass.

        Args:
            noise: [draws, B, F, C, H, W].
            view: the chunk's view.
            conditioning: what the chunk's prompt says.
        """
        x0 = self.denoise(noise, view, conditioning)
        self.commit(x0, view, conditioning)
        return x0

    def commit(self, x0: Tensor, view: View, conditioning: Conditioning) -> None:
        """The commit pass alone: the clean chunk [B, F, C, H, W] is written to memory."""
        commit = view.at(Pass(len(self._levels), commit=True))
        self.generator.commit(x0, self._clean, conditioning, commit)

    def reencode(self, memory: Memory[V], conditioning: Conditioning) -> None:
        """What follows once a chunk is committed; see `reencode`."""
        step = len(self._levels)
        reencode(self.generator, memory, self._clean, conditioning, step=step)

    def denoise(self, noise: Tensor, view: View, conditioning: Conditioning) -> Tensor:
        """The clean chunk, of which memory keeps nothing yet; the rest as for a call."""
        schedule, x = self.schedule, noise[0]
        x0 = x
        for step, level in enumerate(self._levels):
            flow = predict_flow(
                self.generator, x, level, conditioning, view, step=step, guidance=self.guidance
            )
            x0 = schedule.clean(x, flow, step)
            if step + 1 < len(self._levels):
                fresh = noise[step + 1] if schedule.renoise == "fresh" else None
                x = schedule.next(x0, flow, step, fresh)
        return x0


ChunkFn = Callable[[Tensor, View, Conditioning], Tensor]
"""What `ChunkDenoiser` does, by whatever means."""


class Rollout(Generic[V]):
    """Chunks one after another, each begun and finished by its own call.

    On a GPU a chunk is under way after `start`, which leaves the host free until `finish`.

    Args:
        denoise: the passes of a chunk.
        memory: holds what the chunks before committed.
        noise: where noise comes from.
        shape: [B, F, C, H, W] of a chunk.
        capture: makes the passes of a chunk one piece, see `cuda_graph`.
        opening: the passes of the first chunk that is made, and of the first of a fresh shot,
            where they are others.
        opens: tells of a chunk's number whether it is such a one; by default that is chunk 0.
    """

    def __init__(
        self,
        denoise: ChunkDenoiser,
        memory: Memory[V],
        noise: Noise,
        *,
        shape: tuple[int, ...],
        capture: Callable[[ChunkFn], ChunkFn] | None = None,
        opening: ChunkDenoiser | None = None,
        opens: Callable[[int], bool] = lambda index: index == 0,
    ) -> None:
        usual: ChunkFn = denoise if capture is None else capture(denoise)
        self._usual = usual, denoise.draws
        # A chunk that opens a scene comes once, or a few times: capturing it would not pay.
        self._opening: tuple[ChunkFn, int] | None = None
        if opening is not None:
            self._opening = opening, opening.draws
        self._opens = opens
        self._device = denoise.generator.device
        self._commit, self._reencode = denoise.commit, denoise.reencode
        self._memory, self._noise, self._shape = memory, noise, shape

    def start(self, index: int, conditioning: Conditioning) -> None:
        """Begin the chunk; the memory must hold what was committed before it."""
        run, draws = self._usual
        if self._opening is not None and self._opens(index):
            run, draws = self._opening
        drawn = torch.stack([self._noise.draw(index, n, self._shape) for n in range(draws)])
        self._view = self._memory.begin(self._shape[1])
        self._conditioning = conditioning
        on_device = drawn.to(self._device, non_blocking=True)
        self._chunk = Chunk(index, run(on_device, self._view, conditioning))

    def start_given(self, chunk: Chunk, conditioning: Conditioning) -> None:
        """Begin a chunk whose latents are given: its commit pass is its only one.

        Source: Self-Forcing pipeline/causal_inference.py @ 33593df (`initial_latent`).
        """
        latents = chunk.latents.to(self._device)
        self._view = self._memory.begin(latents.shape[1])
        self._conditioning = conditioning
        self._commit(latents, self._view, conditioning)
        self._chunk = Chunk(chunk.index, latents)

    def finish(self) -> Chunk:
        """The chunk that was begun, once it is in the memory."""
        self._memory.commit(self._view)
        self._memory.remember(self._chunk.latents)
        self._reencode(self._memory, self._conditioning)
        return self._chunk

    def chunks(self, indices: range, conditioning: Conditioning) -> Iterator[Chunk]:
        """Yield chunks under one prompt, each after its commit pass."""
        for index in indices:
            self.start(index, conditioning)
            yield self.finish()
