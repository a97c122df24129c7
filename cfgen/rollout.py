"""Chunks one after another through a memory: the one loop that render and train share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cfgen.memory.base import Memory, Pass, V
from cfgen.model.generator import Conditioning, Generator
from cfgen.schedule import FewStepSchedule, Noise


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
    """Generate chunks: denoise through the schedule, then commit.

    Args:
        generator: the causal model.
        memory: holds what the chunks before `chunks` committed.
        schedule: noise levels.
        noise: where noise comes from.
        conditioning: encoded prompt.
        shape: [B, F, C, H, W] of a chunk.
        chunks: indices to generate, in order.
        guidance: how strongly to follow the prompt; not for a memory that watches denoising passes.

    Yields:
        each chunk after its commit pass.
    """
    device = generator.device
    *levels, clean = [generator.level(sigma) for sigma in (*schedule.sigmas, 0.0)]
    for index in chunks:
        view = memory.begin(shape[1])
        x = noise.draw(index, 0, shape).to(device)
        for step, level in enumerate(levels):
            flow = generator(x, level, conditioning, view.at(Pass(step)))
            if guidance is not None:
                free = generator(x, level, guidance.unconditional, view.at(Pass(step)))
                flow = free + guidance.scale * (flow - free)
            x0 = schedule.clean(x, flow, step)
            if step + 1 < len(schedule.sigmas):
                fresh = (
                    noise.draw(index, step + 1, shape).to(device)
                    if schedule.renoise == "fresh"
                    else None
                )
                x = schedule.next(x0, flow, step, fresh)
        generator.commit(x0, clean, conditioning, view.at(Pass(len(levels), commit=True)))
        memory.commit(view)
        yield Chunk(index, x0)


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


def inference(iterator: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks with gradients off in every step, whatever mode the caller is in."""
    while True:
        with torch.inference_mode():
            chunk = next(iterator, None)
        if chunk is None:
            return
        yield chunk
