"""From a duration to chunks, frames, segments and estimates: arithmetic, before anything is loaded.

The video autoencoder turns the first latent frame into one frame and each later one into
`temporal_stride` frames. Latent frames are made in chunks of a fixed size, so a clip is rendered up
to the chunk grid and cut to the frames that were asked for. A clip may begin with latent frames
that are given: then the first chunk holds as many as make the given ones whole chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cfgen.errors import UsageError
from cfgen.units import count
from cfgen.video.shape import VideoShape

SEGMENT_CHUNKS = 16
"""Chunks in one encoded segment. Coded frames depend on it, so it is one number for all renders."""

KEPT_SNAPSHOTS = 2
"""Newest snapshots that always stay, whatever the budget; all that stay of a finished film."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a clip begins with that is not made but given: a picture, or the past of a film.

    Attributes:
        latent_frames: Latent frames that are given.
        shown: Whether the clip shows them; otherwise it begins with the first frame after them.
    """

    latent_frames: int = 0
    shown: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """One chunk of a plan; every range is half open and starts at 0.

    Attributes:
        index: Number of the chunk.
        latent_start: First latent frame.
        latent_frames: Latent frames in the chunk, never trimmed.
        frame_start: First frame.
        frames: Frames to write; fewer than decoded in the last chunk, none where it is not shown.
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
    whoever makes them goes by `order`, and whoever shows them, by `renderer.playing`.

    Attributes:
        duration_s: The duration asked for, in seconds.
        geometry: The shape of frames and latents.
        frames: Frames in the finished video.
        chunks: Chunks to roll out.
        segment_chunks: Chunks in each encoded segment, the last one excepted.
        spans: What is shown when, without gaps, in playing order.
        given: What the clip begins with.
    """

    duration_s: float
    geometry: VideoShape
    frames: int
    chunks: int
    segment_chunks: int
    spans: tuple[Span, ...]
    given: Given = Given()

    @property
    def order(self) -> Sequence[int]:
        """The chunks in the order in which they are made."""
        return range(self.chunks)

    def span_of(self, chunk: int) -> int:
        """The number of the span that a chunk belongs to."""
        frame = self.latent_start(chunk)
        return next(i for i, span in enumerate(self.spans) if span.start <= frame < span.stop)

    def first_of(self, span: int) -> int:
        """The chunk that a span begins with."""
        return self.chunk_of_latent(self.spans[span].start)

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
    def first_latent_frames(self) -> int:
        """Latent frames of the first chunk: fewer than others where they are given."""
        return self.given.latent_frames % self._size or self._size

    def latent_start(self, chunk: int) -> int:
        """The first latent frame of a chunk; that of one past the last is their number."""
        return 0 if chunk == 0 else self.first_latent_frames + (chunk - 1) * self._size

    def chunk_of_latent(self, latent_frame: int) -> int:
        """The chunk that holds a latent frame."""
        return -(-(latent_frame + 1 - self.first_latent_frames) // self._size)

    @property
    def given_chunks(self) -> int:
        """Chunks at the start whose latents are given."""
        return -(-self.given.latent_frames // self._size)

    @property
    def hidden_chunks(self) -> int:
        """Chunks at the start that are not shown."""
        return 0 if self.given.shown else self.given_chunks

    @property
    def hidden_frames(self) -> int:
        """Frames that are decoded before the first that is shown."""
        return self.geometry.frames_of(self.latent_start(self.hidden_chunks))

    @property
    def latent_frames(self) -> int:
        """Latent frames rolled out, up to the chunk grid, those that are given included."""
        return self.latent_start(self.chunks)

    @property
    def decoded_frames(self) -> int:
        """Frames decoded before the last chunk is trimmed, without those that are not shown."""
        return self.geometry.frames_of(self.latent_frames) - self.hidden_frames

    @property
    def segments(self) -> int:
        """Encoded segments."""
        return -(-(self.chunks - self.hidden_chunks) // self.segment_chunks)

    @property
    def _size(self) -> int:
        return self.geometry.chunk_latent_frames

    @property
    def seconds(self) -> float:
        """Playing time of the finished video."""
        return self.frames / self.geometry.fps

    def chunks_of(self, segment: int) -> range:
        """The chunks of an encoded segment, in playing order; none after the last."""
        first = min(self.hidden_chunks + segment * self.segment_chunks, self.chunks)
        return range(first, min(first + self.segment_chunks, self.chunks))

    def chunk(self, index: int) -> ChunkPlan:
        """Return chunk `index`.

        Raises:
            IndexError: There is no such chunk.
        """
        if not 0 <= index < self.chunks:
            raise IndexError(f"chunk {index} of a plan with {self.chunks} chunks")
        begin, stop = self.latent_start(index), self.latent_start(index + 1)
        start, end = (
            min(max(0, self.geometry.frames_of(each) - self.hidden_frames), self.frames)
            for each in (begin, stop)
        )
        shown = index - self.hidden_chunks
        last = index == self.chunks - 1
        return ChunkPlan(
            index=index,
            latent_start=begin,
            latent_frames=stop - begin,
            frame_start=start,
            frames=end - start,
            segment=max(0, shown) // self.segment_chunks,
            ends_segment=last or (shown >= 0 and (shown + 1) % self.segment_chunks == 0),
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
        latent = self.geometry.latent_frames_for(self.hidden_frames + frame + 1) - 1
        return self.chunk_of_latent(latent)

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
        second = self._grid_line()
        surplus = self.decoded_frames - self.frames
        third = (
            f"{self.decoded_frames} frames are decoded and the last {surplus} cut off"
            if surplus
            else f"all {count(self.decoded_frames, 'decoded frame')} are kept"
        )
        fourth = f"{count(self.segments, 'encoded segment')} of {self.segment_chunks} chunks"
        last = len(self.chunks_of(self.segments - 1))
        lines = first, *self._given_lines(), second, third, f"{fourth}, the last of {last}"
        return *lines, *self._borders()

    def _borders(self) -> Iterator[str]:
        """Say where shots begin, after the first."""
        for number, span in enumerate(self.spans[1:], start=2):
            chunk = self.first_of(number - 1)
            begins_s = self.chunk(chunk).frame_start / self.geometry.fps
            words = f"shot {number} begins with chunk {chunk + 1}, at {_number(begins_s)} s"
            asked = "" if begins_s == span.asked_s else f" instead of {_number(span.asked_s)} s"
            yield f"{words}{asked}: {span.transition}"

    def _grid_line(self) -> str:
        """How frames became chunks."""
        stride, size = self.geometry.temporal_stride, self._size
        needed = self.geometry.latent_frames_for(self.hidden_frames + self.frames)
        before = self.latent_start(self.hidden_chunks)
        opens = "" if before else f"the first holds 1 frame, each later one {stride}"
        line = (
            f"{count(self.frames, 'frame')} need {count(needed - before, 'latent frame')} "
            f"({opens or f'each holds {stride}'})"
        )
        if self.latent_frames != needed:
            line += f", rounded up to {self.latent_frames - before}"
        if not self.hidden_chunks and self.first_latent_frames != size:
            rest = count(self.chunks - 1, "chunk")
            return f"{line}: a chunk of {self.first_latent_frames}, then {rest} of {size}"
        return f"{line}: {count(self.chunks - self.hidden_chunks, 'chunk')} of {size}"

    def _given_lines(self) -> tuple[str, ...]:
        """What is there before anything is made."""
        if not self.given.latent_frames:
            return ()
        frames = self.geometry.frames_of(self.given.latent_frames)
        latents = count(self.given.latent_frames, "latent frame")
        chunks = count(self.given_chunks, "chunk")
        are, them = ("is", "it") if frames == 1 else ("are", "them")
        fate = f"the video shows {them}" if self.given.shown else f"the video begins behind {them}"
        return (f"{count(frames, 'frame')} {are} given, {latents} in {chunks}: {fate}",)


def make_plan(
    duration_s: float,
    geometry: VideoShape,
    *,
    prompt: str = "",
    segment_chunks: int = SEGMENT_CHUNKS,
    given: Given = Given(),
) -> Plan:
    """Plan a clip.

    Args:
        duration_s: Playing time in seconds; at least half a frame.
        geometry: The shape of frames and latents.
        prompt: What the clip shows, from start to end.
        segment_chunks: Chunks in one encoded segment.
        given: What the clip begins with.

    Returns:
        A plan of round(duration_s * fps) frames.

    Raises:
        UsageError: The duration is not a positive number, rounds to no frame at all, or ends
            before what is given does.
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
    size = geometry.chunk_latent_frames
    given_frames = geometry.frames_of(given.latent_frames)
    if given.shown and given_frames and frames <= given_frames:
        raise UsageError(
            f"the video begins with {count(given_frames, 'frame')} that are given, "
            f"{_number(given_frames / geometry.fps)} s, and is to be {_number(duration_s)} s long",
            hint="ask for a longer --duration: it counts what the video begins with",
        )
    latent_frames = geometry.latent_frames_for(frames + (0 if given.shown else given_frames))
    first = given.latent_frames % size or size
    chunks = 1 + max(0, -(-(latent_frames - first) // size))
    return Plan(
        duration_s=duration_s,
        geometry=geometry,
        frames=frames,
        chunks=chunks,
        segment_chunks=segment_chunks,
        spans=(Span(start=0, stop=first + (chunks - 1) * size, prompt=prompt),),
        given=given,
    )


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")
