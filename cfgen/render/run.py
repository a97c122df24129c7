"""The render itself: chunks are made, decoded, trimmed to the plan and handed to the writer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfgen.memory.paged import PagedMemory
from cfgen.model.generator import Conditioning, Generator
from cfgen.model.vae import TinyAutoencoder
from cfgen.render.events import ChunkDone, Encoded, Event, Finished, Loaded, Warned
from cfgen.render.plan import ChunkPlan, Plan
from cfgen.render.writer import VideoWriter
from cfgen.rollout import Chunk, Guidance, inference, rollout
from cfgen.schedule import FewStepSchedule, Noise

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class FrameSource:
    """Everything that makes frames.

    Attributes:
        generator: The causal model.
        memory: Its memory, empty.
        schedule: Noise levels of a chunk.
        noise: Where noise comes from.
        conditioning: The encoded prompt.
        vae: The decoder.
        plan: What to make.
        guidance: How strongly the prompt is followed, None for as it stands.
    """

    generator: Generator
    memory: PagedMemory
    schedule: FewStepSchedule
    noise: Noise
    conditioning: Conditioning
    vae: TinyAutoencoder
    plan: Plan
    guidance: Guidance | None = None

    def chunks(self) -> Iterator[tuple[ChunkPlan, Chunk, Frames]]:
        """Yield each chunk with its frames, uint8 [n, height, width, 3], RGB; nothing is kept."""
        geometry = self.plan.geometry
        shape = (
            1,
            geometry.chunk_latent_frames,
            geometry.channels,
            geometry.latent_height,
            geometry.latent_width,
        )
        made = rollout(
            self.generator,
            self.memory,
            self.schedule,
            self.noise,
            conditioning=self.conditioning,
            shape=shape,
            chunks=range(self.plan.chunks),
            guidance=self.guidance,
        )
        state = self.vae.start()
        dtype = next(self.vae.parameters()).dtype
        for chunk in inference(made):
            planned = self.plan.chunk(chunk.index)
            with torch.inference_mode():
                video = self.vae.decode(chunk.latents.to(dtype), state)
                yield planned, chunk, to_pixels(video[0])[: planned.frames]


def to_pixels(video: Tensor) -> Frames:
    """Frames [T, 3, H, W] in [0, 1] as uint8 [T, H, W, 3]; what lies outside is clamped."""
    levels = video.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).cpu().numpy())


@dataclass(frozen=True, kw_only=True)
class Render:
    """A source of frames and the writer that it goes to.

    Attributes:
        source: What makes the frames.
        writer: Where they go.
        loaded: Told before the first chunk.
        warnings: Told after it.
    """

    source: FrameSource
    writer: VideoWriter
    loaded: Loaded
    warnings: tuple[Warned, ...] = ()

    def run(self) -> Iterator[Event]:
        """Render, yielding what happens. Whatever stops it, the output is complete or untouched."""
        yield self.loaded
        yield from self.warnings
        began = time.monotonic()
        plan = self.source.plan
        frames_done = 0
        with self.writer as writer:
            for planned, chunk, frames in self.source.chunks():
                writer.write(frames)
                frames_done += len(frames)
                yield ChunkDone(
                    index=chunk.index,
                    chunks=plan.chunks,
                    frames_done=frames_done,
                    frames_total=plan.frames,
                    elapsed_s=time.monotonic() - began,
                    memory=self.source.memory.figures(),
                )
                if planned.ends_segment:
                    segment = writer.end_segment()
                    yield Encoded(path=segment.path, segment=segment.index, frames=segment.frames)
            facts = writer.finish()
        yield Finished(
            output=facts.path,
            frames=facts.frames,
            seconds=facts.duration_s,
            elapsed_s=time.monotonic() - began,
            sidecar=facts.sidecar,
        )
