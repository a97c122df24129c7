"""From a duration to chunks, frames, segments and estimates: arithmetic, before anything is loaded.

The video autoencoder turns the first latent frame into one frame and each later one into
`temporal_stride` frames. Latent frames are made in chunks of a fixed size, so a clip is rendered up
to the chunk grid and cut to the frames that were asked for. A clip may begin with latent frames
that are given: then the first chunk holds as many as make the given ones whole chunks. It may end
with given ones, too, if it is made from its end to its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cfgen.errors import UsageError
from cfgen.units import count, plain
from cfgen.video.shape import VideoShape

SEGMENT_CHUNKS = 16
"""Chunks in one encoded segment. Coded frames depend on it, so it is one number for all renders."""

KEPT_SNAPSHOTS = 2
"""Newest snapshots that always stay, whatever the budget; all that stay of a finished film."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What of a clip is not made but given: a picture or the past of a film, and a last picture.

    Attributes:
        latent_frames: Latent frames that are given at the start.
        shown: Whether the clip shows them; otherwise it begins with the first frame after them.
        at_end: Latent frames that are given at the end, as a chunk of their own.
    """

    latent_frames: int = 0
    shown: bool = True
    at_end: int = 0


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
        given: What the clip begins and ends with.
        inverted: Whether chunks are made from the end of the clip towards its first one, which is
            given and comes before them all: FramePack's inverted anti-drifting sampling (arXiv
            2504.12626).
    """

    duration_s: float
    geometry: VideoShape
    frames: int
    chunks: int
    segment_chunks: int
    spans: tuple[Span, ...]
    given: Given = Given()
    inverted: bool = False

    @property
    def order(self) -> Sequence[int]:
        """The chunks in the order in which they are made."""
        return [0, *range(self.chunks - 1, 0, -1)] if self.inverted else range(self.chunks)

    @property
    def all_given(self) -> Sequence[int]:
        """The chunks whose latents are given, at the start and at the end."""
        at_start = range(self.given_chunks)
        return [*at_start, self.chunks - 1] if self.given.at_end else at_start

    @property
    def first_made(self) -> int:
        """The chunk that is made first, of those that are not given."""
        return self.order[len(self.all_given)]

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
        if chunk == 0:
            return 0
        start = self.first_latent_frames + (chunk - 1) * self._size
        short = self._size - self.given.at_end if self.given.at_end else 0
        return start - short if chunk == self.chunks else start

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
            raise UsageError(f"the video is {plain(self.seconds)} s long, got {plain(seconds)} s")
        latent = self.geometry.latent_frames_for(self.hidden_frames + frame + 1) - 1
        return self.chunk_of_latent(latent)

    def __iter__(self) -> Iterator[ChunkPlan]:
        """Yield every chunk in playing order."""
        return (self.chunk(index) for index in range(self.chunks))


def make_plan(
    duration_s: float,
    geometry: VideoShape,
    *,
    prompt: str = "",
    segment_chunks: int = SEGMENT_CHUNKS,
    given: Given = Given(),
    inverted: bool = False,
) -> Plan:
    """Plan a clip.

    Args:
        duration_s: Playing time in seconds; at least half a frame.
        geometry: The shape of frames and latents.
        prompt: What the clip shows, from start to end.
        segment_chunks: Chunks in one encoded segment.
        given: What the clip begins and ends with.
        inverted: Whether chunks are made from its end; see `Plan`.

    Returns:
        A plan of round(duration_s * fps) frames. A clip that ends with given latent frames has as
        many as whole chunks between what is given come nearest to.

    Raises:
        UsageError: The duration is not a positive number, rounds to no frame at all, ends before
            what is given does, or leaves no chunk between what is given; or the clip is made from
            its end, and has no given start.
    """
    if segment_chunks < 1:
        raise UsageError(f"a segment must hold at least 1 chunk, got {segment_chunks}")
    frames = _frames_asked(duration_s, geometry, given, inverted=inverted)
    size = geometry.chunk_latent_frames
    first = given.latent_frames % size or size
    if given.at_end:
        made = _between(duration_s, geometry, given)
        latent_frames = given.latent_frames + made * size + given.at_end
        frames = geometry.frames_of(latent_frames)
        chunks = 1 + made + 1
    else:
        hidden = 0 if given.shown else geometry.frames_of(given.latent_frames)
        latent_frames = geometry.latent_frames_for(frames + hidden)
        chunks = 1 + max(0, -(-(latent_frames - first) // size))
        latent_frames = first + (chunks - 1) * size
    return Plan(
        duration_s=duration_s,
        geometry=geometry,
        frames=frames,
        chunks=chunks,
        segment_chunks=segment_chunks,
        spans=(Span(start=0, stop=latent_frames, prompt=prompt),),
        given=given,
        inverted=inverted,
    )


def _frames_asked(duration_s: float, geometry: VideoShape, given: Given, *, inverted: bool) -> int:
    """The frames that a duration asks for; refuses one that no clip can have, see `make_plan`."""
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise UsageError(f"the duration must be a positive number of seconds, got {duration_s}")
    if inverted and not given.latent_frames:
        raise UsageError(
            "a video that is made from its end (order inverted) leads back to a first picture, and "
            "none is given",
            hint="give one with --image, or choose a preset with another order",
        )
    frames = round(duration_s * geometry.fps)
    if frames < 1:
        raise UsageError(
            f"{plain(duration_s)} s is shorter than one frame at {plain(geometry.fps)} fps",
            hint=f"ask for at least {1 / geometry.fps:.3g} s",
        )
    given_frames = geometry.frames_of(given.latent_frames)
    if given.shown and given_frames and frames <= given_frames:
        raise UsageError(
            f"the video begins with {count(given_frames, 'frame')} that are given, "
            f"{plain(given_frames / geometry.fps)} s, and is to be {plain(duration_s)} s long",
            hint="ask for a longer --duration: it counts what the video begins with",
        )
    return frames


def _between(duration_s: float, geometry: VideoShape, given: Given) -> int:
    """The whole chunks between given latent frames that come nearest to a duration.

    Source: FramePack demo_gradio.py @ 97fe5db rounds to whole sections, too.

    Raises:
        UsageError: No chunk comes near.
    """
    around = geometry.frames_of(given.latent_frames + given.at_end)
    each = geometry.chunk_latent_frames * geometry.temporal_stride
    chunks = round((duration_s * geometry.fps - around) / each)
    if chunks < 1:
        raise UsageError(
            f"the video begins and ends with pictures, and {plain(duration_s)} s leave no chunk "
            "between them",
            hint=f"ask for a --duration of {(around + each) / geometry.fps:.3g} s or more",
        )
    return chunks
