"""What makes frames: chunks are rolled out, or committed again, and decoded one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfgen.errors import NotFinite
from cfgen.memory.paged import PagedMemory
from cfgen.model.generator import Conditioning, Generator
from cfgen.model.vae import Decoder, State
from cfgen.render.plan import ChunkPlan, Plan
from cfgen.rollout import Chunk, Guidance, Run, inference, recommit, rollout
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
        backend: What it is computed with.
        capture: Makes the passes of a chunk one piece, None to run them one by one.
        told: What is worth knowing of how it was put together, a line each.
    """

    generator: Generator
    memory: PagedMemory
    schedule: FewStepSchedule
    noise: Noise
    conditioning: Conditioning
    vae: Decoder
    plan: Plan
    guidance: Guidance | None = None
    backend: str = "torch"
    capture: Callable[[Run], Run] | None = None
    told: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, F, C, H, W] of a chunk's latents."""
        g = self.plan.geometry
        return (1, g.chunk_latent_frames, g.channels, g.latent_height, g.latent_width)

    @property
    def warm_up(self) -> int:
        """Chunks that the decoder must see before one whose frames are to be right."""
        return -(-self.vae.reach // self.plan.geometry.chunk_latent_frames)

    def chunks(self) -> Iterator[tuple[ChunkPlan, Chunk, Frames]]:
        """Yield each chunk of the film with its frames; nothing is kept."""
        state = self.vae.start()
        for chunk in self.make(range(self.plan.chunks)):
            yield self.plan.chunk(chunk.index), chunk, self.decode(chunk, state)

    def make(self, chunks: range) -> Iterator[Chunk]:
        """Denoise and commit chunks; the memory must hold the ones before them."""
        made = rollout(
            self.generator,
            self.memory,
            self.schedule,
            self.noise,
            conditioning=self.conditioning,
            shape=self.shape,
            chunks=chunks,
            guidance=self.guidance,
            capture=self.capture,
        )
        return map(_finite, inference(made))

    def recommit(self, latents: Tensor) -> None:
        """Commit a chunk that was made before; see `rollout.recommit`."""
        with torch.inference_mode():
            recommit(
                self.generator,
                self.memory,
                self.schedule,
                conditioning=self.conditioning,
                latents=latents.to(self.generator.device),
            )

    def decode(self, chunk: Chunk, state: State) -> Frames:
        """Frames of the next chunk, cut to the plan: uint8 [n, height, width, 3], RGB.

        Args:
            chunk: The chunk.
            state: The decoder's, changed in place; `warm_up` chunks after a fresh one the frames
                are those of a film decoded from its start.
        """
        parameter = next(self.vae.parameters())
        with torch.inference_mode():
            latents = chunk.latents.to(parameter.device, parameter.dtype)
            video = self.vae.decode(latents, state)
            return to_pixels(video[0])[: self.plan.chunk(chunk.index).frames]


def _finite(chunk: Chunk) -> Chunk:
    """The chunk, unless it would be a black picture."""
    if not bool(torch.isfinite(chunk.latents).all()):
        raise NotFinite(
            f"chunk {chunk.index + 1} holds numbers that are not finite: a weight is damaged, "
            "or a LoRA far too strong",
            "`cfgen inspect FILE --values` looks at every weight",
        )
    return chunk


def to_pixels(video: Tensor) -> Frames:
    """Frames [T, 3, H, W] in [0, 1] as uint8 [T, H, W, 3]; what lies outside is clamped."""
    levels = video.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).cpu().numpy())
