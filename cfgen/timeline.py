"""From a duration to chunks, frames, segments and estimates: arithmetic, before anything is loaded.

The video autoencoder turns the first latent frame into one frame and each later one into
`temporal_stride` frames. Latent frames are made in chunks of a fixed size, so a clip is rendered up
to the chunk grid and cut to the frames that were asked for.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cfgen.errors import UsageError
from cfgen.units import count

T = TypeVar("T")

SEGMENT_CHUNKS = 16
"""Chunks in one encoded segment. Coded frames depend on it, so it is one number for all renders."""

KEPT_SNAPSHOTS = 2
"""Newest snapshots that always stay, whatever the budget; all that stay of a finished film."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoShape:
    """The shape of what a model makes.

    Attributes:
        width: Frame width in pixels, a multiple of `spatial_stride`.
        height: Frame height in pixels, a multiple of `spatial_stride`.
        channels: Channels of a latent frame.
        spatial_stride: Pixels a latent cell covers along each axis.
        temporal_stride: Frames a latent frame covers, the first one excepted.
        chunk_latent_frames: Latent frames denoised together.
        fps: Playback rate in frames per second.
    """

    width: int
    height: int
    channels: int = 16
    spatial_stride: int = 8
    temporal_stride: int = 4
    chunk_latent_frames: int = 3
    fps: float = 16.0

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            pixels = getattr(self, name)
            if pixels < 1 or pixels % self.spatial_stride:
                raise UsageError(
                    f"{name} must be a positive multiple of {self.spatial_stride}, got {pixels}"
                )
        for name in ("channels", "spatial_stride", "temporal_stride", "chunk_latent_frames"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise UsageError(f"fps must be a positive number, got {self.fps}")

    @property
    def latent_width(self) -> int:
        """Cells in a row of a latent frame."""
        return self.width // self.spatial_stride

    @property
    def latent_height(self) -> int:
        """Rows of a latent frame."""
        return self.height // self.spatial_stride

    def frames_of(self, latent_frames: int) -> int:
        """Frames that the first `latent_frames` latent frames of a clip decode to."""
        return 0 if latent_frames == 0 else 1 + (latent_frames - 1) * self.temporal_stride

    def latent_frames_for(self, frames: int) -> int:
        """The fewest latent frames that decode to at least `frames` frames."""
        return 0 if frames == 0 else 1 + -(-(frames - 1) // self.temporal_stride)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """One chunk of a plan; every range is half open and starts at 0.

    Attributes:
        index: Number of the chunk.
        latent_start: First latent frame.
        latent_frames: Latent frames in the chunk, never trimmed.
        frame_start: First frame.
        frames: Frames to write; fewer than decoded only in the last chunk.
        segment: The encoded segment that the chunk belongs to.
        ends_segment: Whether the segment ends after this chunk.
    """

    index: int
    latent_start: int
    latent_frames: int
    frame_start: int
    frames: int
    segment: int
    ends_segment: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A stretch of a film under one prompt, as a half-open range of latent frames.

    Attributes:
        start: First latent frame; spans begin where chunks do.
        stop: The latent frame after the last.
        prompt: What the film shows meanwhile.
        transition: What becomes of the memory before its first chunk; of the first span, nothing.
        asked_s: When it was to begin, in seconds; it does so with the nearest chunk.
    """

    start: int
    stop: int
    prompt: str
    transition: str = "continue"
    asked_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a render will make. Holds a few numbers whatever the length; chunks are computed.

    A chunk's number tells where it plays. The order in which chunks are made is another thing:
    whoever makes them goes by `order`, and whoever shows them, by `Playing`.

    Attributes:
        duration_s: The duration asked for, in seconds.
        geometry: The shape of frames and latents.
        frames: Frames in the finished video.
        chunks: Chunks to roll out.
        segment_chunks: Chunks in each encoded segment, the last one excepted.
        spans: What is shown when, without gaps, in playing order.
    """

    duration_s: float
    geometry: VideoShape
    frames: int
    chunks: int
    segment_chunks: int
    spans: tuple[Span, ...]

    @property
    def order(self) -> Sequence[int]:
        """The chunks in the order in which they are made."""
        return range(self.chunks)

    def span_of(self, chunk: int) -> int:
        """The number of the span that a chunk belongs to."""
        frame = chunk * self.geometry.chunk_latent_frames
        return next(i for i, span in enumerate(self.spans) if span.start <= frame < span.stop)

    def first_of(self, span: int) -> int:
        """The chunk that a span begins with."""
        chunks, start = range(self.chunks), self.spans[span].start
        return bisect_left(chunks, start, key=lambda chunk: self.chunk(chunk).latent_start)

    def transition_before(self, chunk: int) -> str:
        """What becomes of the memory before a chunk is made: the word of a span that begins."""
        made, span = self.order.index(chunk), self.span_of(chunk)
        begins = made > 0 and self.span_of(self.order[made - 1]) != span
        return self.spans[span].transition if begins else "continue"

    def begins_scene(self, chunk: int) -> bool:
        """Whether a chunk is the first to play of a span that knows nothing of those before."""
        span = self.spans[self.span_of(chunk)]
        return 0 < span.start == self.chunk(chunk).latent_start and span.transition == "fresh"

    @property
    def latent_frames(self) -> int:
        """Latent frames rolled out, up to the chunk grid."""
        return self.chunks * self.geometry.chunk_latent_frames

    @property
    def decoded_frames(self) -> int:
        """Frames decoded before the last chunk is trimmed."""
        return self.geometry.frames_of(self.latent_frames)

    @property
    def segments(self) -> int:
        """Encoded segments."""
        return -(-self.chunks // self.segment_chunks)

    @property
    def seconds(self) -> float:
        """Playing time of the finished video."""
        return self.frames / self.geometry.fps

    def chunks_of(self, segment: int) -> range:
        """The chunks of an encoded segment, in playing order."""
        first = segment * self.segment_chunks
        return range(first, min(first + self.segment_chunks, self.chunks))

    def chunk(self, index: int) -> ChunkPlan:
        """Return chunk `index`.

        Raises:
            IndexError: There is no such chunk.
        """
        if not 0 <= index < self.chunks:
            raise IndexError(f"chunk {index} of a plan with {self.chunks} chunks")
        size = self.geometry.chunk_latent_frames
        start = self.geometry.frames_of(index * size)
        end = min(self.geometry.frames_of((index + 1) * size), self.frames)
        last = index == self.chunks - 1
        return ChunkPlan(
            index=index,
            latent_start=index * size,
            latent_frames=size,
            frame_start=start,
            frames=end - start,
            segment=index // self.segment_chunks,
            ends_segment=last or (index + 1) % self.segment_chunks == 0,
        )

    def chunk_at(self, seconds: float) -> int:
        """Return the chunk that is playing `seconds` after the start.

        Raises:
            UsageError: The video is not that long.
        """
        frame = math.floor(seconds * self.geometry.fps)
        if not 0 <= frame < self.frames:
            raise UsageError(
                f"the video is {_number(self.seconds)} s long, got {_number(seconds)} s"
            )
        latent = self.geometry.latent_frames_for(frame + 1) - 1
        return latent // self.geometry.chunk_latent_frames

    def __iter__(self) -> Iterator[ChunkPlan]:
        """Yield every chunk in playing order."""
        return (self.chunk(index) for index in range(self.chunks))

    def lines(self) -> tuple[str, ...]:
        """Say in sentences how the duration became frames and chunks: every rounding, in order."""
        geometry = self.geometry
        exact = self.duration_s * geometry.fps
        asked = f"{_number(self.duration_s)} s at {_number(geometry.fps)} fps"
        if exact == self.frames:
            first = f"{asked} are {count(self.frames, 'frame')} exactly"
        else:
            first = (
                f"{asked} are {_number(exact)} frames, "
                f"rounded to {count(self.frames, 'frame')} ({_number(self.seconds)} s)"
            )
        needed = geometry.latent_frames_for(self.frames)
        grid = (
            f"{count(self.frames, 'frame')} need {count(needed, 'latent frame')} "
            f"(the first holds 1 frame, each later one {geometry.temporal_stride})"
        )
        if self.latent_frames == needed:
            second = f"{grid}: {count(self.chunks, 'chunk')} of {geometry.chunk_latent_frames}"
        else:
            second = (
                f"{grid}, rounded up to {self.latent_frames}: "
                f"{count(self.chunks, 'chunk')} of {geometry.chunk_latent_frames}"
            )
        surplus = self.decoded_frames - self.frames
        third = (
            f"{self.decoded_frames} frames are decoded and the last {surplus} cut off"
            if surplus
            else f"all {count(self.decoded_frames, 'decoded frame')} are kept"
        )
        fourth = f"{count(self.segments, 'encoded segment')} of {self.segment_chunks} chunks"
        last = len(self.chunks_of(self.segments - 1))
        return first, second, third, f"{fourth}, the last of {last}", *self._borders()

    def _borders(self) -> Iterator[str]:
        """Say where shots begin, after the first."""
        for number, span in enumerate(self.spans[1:], start=2):
            chunk = self.first_of(number - 1)
            begins_s = self.chunk(chunk).frame_start / self.geometry.fps
            words = f"shot {number} begins with chunk {chunk + 1}, at {_number(begins_s)} s"
            asked = "" if begins_s == span.asked_s else f" instead of {_number(span.asked_s)} s"
            yield f"{words}{asked}: {span.transition}"


class Playing(Generic[T]):
    """Puts chunks that come in the order of making into that of playing.

    Args:
        next: Number of the chunk that plays first.
    """

    def __init__(self, next: int = 0) -> None:
        self.next = next
        self._waiting: dict[int, T] = {}

    def add(self, index: int, chunk: T) -> Iterator[T]:
        """Take in a chunk; yield all that can play now, each once those before it have."""
        self._waiting[index] = chunk
        while self.next in self._waiting:
            self.next += 1
            yield self._waiting.pop(self.next - 1)


def make_plan(
    duration_s: float,
    geometry: VideoShape,
    *,
    prompt: str = "",
    segment_chunks: int = SEGMENT_CHUNKS,
) -> Plan:
    """Plan a clip.

    Args:
        duration_s: Playing time in seconds; at least half a frame.
        geometry: The shape of frames and latents.
        prompt: What the clip shows, from start to end.
        segment_chunks: Chunks in one encoded segment.

    Returns:
        A plan of round(duration_s * fps) frames.

    Raises:
        UsageError: The duration is not a positive number or rounds to no frame at all.
    """
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise UsageError(f"the duration must be a positive number of seconds, got {duration_s}")
    if segment_chunks < 1:
        raise UsageError(f"a segment must hold at least 1 chunk, got {segment_chunks}")
    frames = round(duration_s * geometry.fps)
    if frames < 1:
        raise UsageError(
            f"{_number(duration_s)} s is shorter than one frame at {_number(geometry.fps)} fps",
            hint=f"ask for at least {1 / geometry.fps:.3g} s",
        )
    latent_frames = geometry.latent_frames_for(frames)
    chunks = -(-latent_frames // geometry.chunk_latent_frames)
    whole = Span(start=0, stop=chunks * geometry.chunk_latent_frames, prompt=prompt)
    return Plan(
        duration_s=duration_s,
        geometry=geometry,
        frames=frames,
        chunks=chunks,
        segment_chunks=segment_chunks,
        spans=(whole,),
    )


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")
