"""What makes frames: chunks are rolled out, or committed again, and decoded one after another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfgen.errors import NotFinite
from cfgen.memory.paged import PagedMemory
from cfgen.model.generator import Conditioning, Generator
from cfgen.model.vae import Decoder, State
from cfgen.renderer.playing import Playing
from cfgen.rollout.loop import Chunk, ChunkDenoiser, ChunkFn, Guidance, Rollout, recommit
from cfgen.rollout.schedule import FewStepSchedule, Noise
from cfgen.rollout.transitions import enter
from cfgen.timeline import ChunkPlan, Plan

Frames = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class FrameDecoder:
    """What makes frames of latents.

    Attributes:
        vae: The decoder.
        plan: The film.
        bits: Bits of a sample that frames are for: uint8 for 8, uint16 for more.
    """

    vae: Decoder
    plan: Plan
    bits: int = 8

    @property
    def warm_up(self) -> int:
        """Chunks that the decoder must see before one whose frames are to be right."""
        return -(-self.vae.reach // self.plan.geometry.chunk_latent_frames)

    @property
    def decode_from(self) -> int:
        """The first chunk that the decoder must see: none of a long past that is not shown."""
        return max(0, self.plan.hidden_chunks - self.warm_up)

    def decode(self, chunk: Chunk, state: State) -> Frames:
        """Frames of the next chunk, cut to the plan: uint8 [n, height, width, 3], RGB, or uint16.

        Args:
            chunk: The chunk.
            state: The decoder's, changed in place; `warm_up` chunks after a fresh one the frames
                are those of a film decoded from its start.
        """
        return self.decoding(chunk, state).wait()

    def decoding(self, chunk: Chunk, state: State) -> PendingFrames:
        """As `decode`, but on a GPU the frames may still be on their way."""
        parameter, stream = self._parameter, self._stream
        with torch.inference_mode(), torch.cuda.stream(stream):
            if stream is not None:
                stream.wait_stream(torch.cuda.default_stream(parameter.device))
                chunk.latents.record_stream(stream)
            latents, lead = chunk.latents.to(parameter.device, parameter.dtype), 0
            if self.plan.begins_scene(chunk.index):
                # Nothing of the scene before may shine through. The first latent frame of a clip
                # decodes to one frame, so it is given twice and that frame is dropped.
                state.caches, lead = self.vae.start().caches, 1
                latents = torch.cat([latents[:, :1], latents], 1)
            levels = to_levels(self.vae.decode(latents, state)[0], self.bits)
            frames = levels[lead : lead + self.plan.chunk(chunk.index).frames]
            if stream is None:
                return PendingFrames(frames.cpu(), None)
            host = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
            host.copy_(frames, non_blocking=True)
            return PendingFrames(host, stream.record_event())

    @property
    def beside(self) -> bool:
        """Whether frames are decoded beside the next chunk, as a GPU can."""
        return self._stream is not None

    @property
    def _parameter(self) -> Tensor:
        return next(iter(self.vae.parameters()))

    @functools.cached_property
    def _stream(self) -> torch.cuda.Stream | None:
        device = self._parameter.device
        on_gpu = device.type == "cuda"
        return torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class ChunkSource:
    """What makes latents.

    Attributes:
        plan: The film.
        generator: The causal model.
        memory: Its memory, empty.
        schedule: Noise levels of a chunk.
        noise: Where noise comes from.
        conditionings: The encoded prompt of each of the plan's spans.
        guidance: How strongly the prompt is followed, None for as it stands.
        backend: What it is computed with.
        capture: Makes the passes of a chunk one piece, None to run them one by one.
        notes: What is worth knowing of how it was put together, a line each.
        given: The latents of the chunks that the plan has as given, float32 [1, F, C, H, W] by
            number; None where there are none, or another process has them.
    """

    plan: Plan
    generator: Generator
    memory: PagedMemory
    schedule: FewStepSchedule
    noise: Noise
    conditionings: tuple[Conditioning, ...]
    guidance: Guidance | None = None
    backend: str = "torch"
    capture: Callable[[ChunkFn], ChunkFn] | None = None
    notes: tuple[str, ...] = ()
    given: Callable[[int], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, F, C, H, W] of the latents of a chunk that is made."""
        g = self.plan.geometry
        return (1, g.chunk_latent_frames, g.channels, g.latent_height, g.latent_width)

    def make(self, chunks: Iterable[int]) -> Iterator[Chunk]:
        """Denoise and commit chunks; the memory must hold the ones before them."""
        making = self.making()
        for index in chunks:
            making.start(index)
            yield making.finish()

    def making(self) -> ChunkWorker:
        """What makes chunks, a call to begin each and one to have it."""
        return ChunkWorker(self)

    def latents_given(self, chunk: int) -> Tensor | None:
        """The latents of a chunk that is given, None for one that is made.

        Raises:
            CfgenError: They cannot be read.
        """
        if chunk not in self.plan.all_given:
            return None
        if self.given is None:
            raise ValueError(f"chunk {chunk} is given, and nothing gives it")
        return self.given(chunk)

    def conditioning_of(self, chunk: int) -> Conditioning:
        """The encoded prompt that a chunk is made under."""
        return self.conditionings[self.plan.span_of(chunk)]

    def opens(self, chunk: int) -> bool:
        """Whether a chunk is the first that is made, or the first of a fresh scene.

        What a film begins with is not made: Causal Forcing++ takes its first list behind a picture.
        """
        first = chunk == self.plan.first_made
        return first or self.plan.transition_before(chunk) == "fresh"

    def schedule_of(self, chunk: int) -> FewStepSchedule:
        """The noise levels that a chunk passes through."""
        return self.schedule.opening if self.opens(chunk) else self.schedule

    def recommit(self, chunk: Chunk) -> None:
        """Commit a chunk that was made before; see `rollout.recommit`."""
        with torch.inference_mode():
            self.enter(chunk.index)
            recommit(
                self.generator,
                self.memory,
                chunk.latents.to(self.generator.device),
                self.conditioning_of(chunk.index),
                step=len(self.schedule_of(chunk.index).sigmas),
            )

    def enter(self, chunk: int) -> None:
        """Before a chunk is made or committed again: what the shot that it begins does to memory.

        Raises:
            SnapshotError: It needs latents that an older snapshot does not hold.
        """
        enter(
            self.generator,
            self.memory,
            self.plan.transition_before(chunk),
            self.conditioning_of(chunk),
            step=len(self.schedule.sigmas),
        )


@dataclass(frozen=True, kw_only=True)
class FrameSource(ChunkSource, FrameDecoder):
    """Everything that makes frames: latents, and what decodes them."""

    def chunks(self) -> Iterator[tuple[ChunkPlan, Chunk, Frames]]:
        """Yield each chunk of the film with its frames, as they play; nothing is kept."""
        state, playing = self.vae.start(), Playing[Chunk]()
        for made in self.make(self.plan.order):
            for chunk in playing.add(made.index, made):
                if chunk.index >= self.decode_from:
                    yield self.plan.chunk(chunk.index), chunk, self.decode(chunk, state)

    def close(self) -> None:
        """The film is done, or given up: processes that render it with this one are let go."""


class ChunkWorker:
    """Chunks of a source, begun and finished one by one; gradients are off."""

    def __init__(self, source: ChunkSource) -> None:
        with torch.inference_mode():
            self._source = source
            generator, schedule, guidance = source.generator, source.schedule, source.guidance
            opening = None
            if schedule.first:
                opening = ChunkDenoiser(generator, schedule.opening, guidance)
            self._rollout = Rollout(
                ChunkDenoiser(generator, schedule, guidance),
                source.memory,
                source.noise,
                shape=source.shape,
                capture=source.capture,
                opening=opening,
                opens=source.opens,
            )

    def start(self, index: int) -> None:
        """Begin a chunk, one that is given with its commit pass.

        Raises:
            CfgenError: What is given cannot be read.
        """
        self.begin(index, self._source.latents_given(index))

    def begin(self, index: int, given: Tensor | None) -> None:
        """Begin a chunk by latents [1, F, C, H, W] that are given, or by noise."""
        source = self._source
        with torch.inference_mode():
            source.enter(index)
            conditioning = source.conditioning_of(index)
            if given is None:
                self._rollout.start(index, conditioning)
            else:
                self._rollout.start_given(Chunk(index, given), conditioning)

    def finish(self) -> Chunk:
        """The chunk that was begun.

        Raises:
            NotFinite: It would be a black picture.
        """
        with torch.inference_mode():
            return _finite(self._rollout.finish())


@dataclass(frozen=True, slots=True)
class PendingFrames:
    """Frames [n, height, width, 3] that arrive on the host with an event, or are there."""

    frames: Tensor
    arrived: torch.cuda.Event | None

    def wait(self) -> Frames:
        """The frames, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return np.ascontiguousarray(self.frames.numpy())


def _finite(chunk: Chunk) -> Chunk:
    """The chunk, unless it would be a black picture."""
    if not bool(torch.isfinite(chunk.latents).all()):
        raise NotFinite(
            f"chunk {chunk.index + 1} holds numbers that are not finite: a weight is damaged, "
            "or a LoRA far too strong",
            "`cfgen inspect FILE --values` looks at every weight",
        )
    return chunk


def to_levels(video: Tensor, bits: int = 8) -> Tensor:
    """Frames [T, 3, H, W] in [0, 1] as levels [T, H, W, 3]; what lies outside is clamped.

    Args:
        video: The frames.
        bits: Bits of a sample in the file: levels are uint8, 0 to 255, for 8, and uint16, 0 to
            65535, for more.
    """
    most, kind = (255, torch.uint8) if bits == 8 else (65535, torch.uint16)
    levels = video.float().clamp(0, 1).mul(most).round().to(torch.int32).to(kind)
    return levels.permute(0, 2, 3, 1).contiguous()
