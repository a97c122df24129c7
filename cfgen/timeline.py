"""From a duration to chunks, frames, segments and estimates: arithmetic, before anything is loaded.

The video autoencoder turns the first latent frame into one frame and each later one into
`temporal_stride` frames. Latent frames are made in chunks of a fixed size, so a clip is rendered up
to the chunk grid and cut to the frames that were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cfgen.errors import UsageError
from cfgen.units import count

SEGMENT_CHUNKS = 16
"""Chunks in one encoded segment. Coded frames depend on it, so it is one number for all renders."""

KEPT_SNAPSHOTS = 2
"""Newest snapshots that always stay, whatever the budget; all that stay of a finished film."""

BITS_PER_PIXEL = {"draft": 0.10, "good": 0.35, "best": 0.60}
"""Size of H.264 by quality, to check the disk beforehand: films of `mini` (160x96) take 0.08, 0.23
to 0.35 and 0.56. Frames of more pixels take less of each, so for them it is generous."""

TIMED_PAGES = 15
"""Latent frames that a chunk reads in the long run where a model's frames a second were measured:
with slow_fast memory of 3, 6 and 6."""


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
class Plan:
    """What a render will make. Holds a few numbers whatever the length; chunks are computed.

    Attributes:
        duration_s: The duration asked for, in seconds.
        geometry: The shape of frames and latents.
        frames: Frames in the finished video.
        chunks: Chunks to roll out.
        segment_chunks: Chunks in each encoded segment, the last one excepted.
    """

    duration_s: float
    geometry: VideoShape
    frames: int
    chunks: int
    segment_chunks: int

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
        """Yield every chunk in order."""
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
        return first, second, third, f"{fourth}, the last of {self._last_segment_chunks()}"

    def _last_segment_chunks(self) -> int:
        return self.chunks - (self.segments - 1) * self.segment_chunks


def make_plan(
    duration_s: float, geometry: VideoShape, *, segment_chunks: int = SEGMENT_CHUNKS
) -> Plan:
    """Plan a clip.

    Args:
        duration_s: Playing time in seconds; at least half a frame.
        geometry: The shape of frames and latents.
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
    return Plan(
        duration_s=duration_s,
        geometry=geometry,
        frames=frames,
        chunks=-(-latent_frames // geometry.chunk_latent_frames),
        segment_chunks=segment_chunks,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class KvSize:
    """How large a KV cache is.

    Attributes:
        nbytes: Bytes of all keys and values as they are kept.
        pages: Latent frames kept in each layer, and one for a copy.
        attention: What reading one of them adds to the time of a chunk that reads none, as a share.
    """

    nbytes: int
    pages: int
    attention: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a plan will need; None where it cannot be known beforehand.

    Attributes:
        latents_nbytes: Latents of the whole clip as float32.
        chunk_nbytes: Latents and decoded frames of one chunk, which is all that is ever held.
        output_nbytes: A guess at the finished file.
        snapshots_nbytes: Disk for snapshots of the memory while it is made, or None if the model's
            sizes are not known.
        disk_nbytes: Disk used at the worst moment: all segments, the joined file, and what is kept
            to resume with, as far as it is known.
        kv_nbytes: The KV cache, or None.
        render_s: Seconds of rendering, or None without a measured rate.
        chunk_s: Seconds that the first and the last chunk take, or None likewise.
    """

    latents_nbytes: int
    chunk_nbytes: int
    output_nbytes: int
    snapshots_nbytes: int | None
    disk_nbytes: int
    kv_nbytes: int | None
    render_s: float | None
    chunk_s: tuple[float, float] | None


def estimate(
    plan: Plan,
    *,
    quality: str,
    kv: KvSize | None = None,
    frames_per_s: float | None = None,
    snapshot: str = "full",
    budget_nbytes: int = 0,
) -> Estimate:
    """Estimate what `plan` needs.

    Args:
        plan: The plan.
        quality: A key of `BITS_PER_PIXEL`.
        kv: The size of the KV cache, if known.
        frames_per_s: Frames rendered a second on some machine, if measured (see `TIMED_PAGES`).
        snapshot: What is kept to resume with: full, latents or off.
        budget_nbytes: Disk that snapshots of the memory may use.
    """
    geometry = plan.geometry
    cell_nbytes = 4 * geometry.channels * geometry.latent_width * geometry.latent_height
    chunk_frames = geometry.chunk_latent_frames * geometry.temporal_stride
    pixels = geometry.width * geometry.height
    output = math.ceil(plan.frames * pixels * BITS_PER_PIXEL[quality] / 8)
    latents = cell_nbytes * plan.latent_frames
    snapshots: int | None = 0
    if snapshot == "full" and plan.chunks > 1:
        snapshots = None
    if kv is not None and snapshots is None:
        ever = kv.nbytes // kv.pages * plan.latent_frames
        snapshots = min(max(budget_nbytes, KEPT_SNAPSHOTS * kv.nbytes), ever) + kv.nbytes
    return Estimate(
        latents_nbytes=latents,
        snapshots_nbytes=snapshots,
        chunk_nbytes=cell_nbytes * geometry.chunk_latent_frames + 3 * pixels * chunk_frames,
        output_nbytes=output,
        disk_nbytes=2 * output + latents + (snapshots or 0),
        kv_nbytes=None if kv is None else kv.nbytes,
        render_s=None if frames_per_s is None else _render_s(plan, kv, frames_per_s),
        chunk_s=None if frames_per_s is None else _chunk_s(plan, kv, frames_per_s),
    )


def _render_s(plan: Plan, kv: KvSize | None, frames_per_s: float) -> float:
    """Seconds of rendering: chunks take longer until the cache is full."""
    size, slots = plan.geometry.chunk_latent_frames, _slots(kv)
    growing = min(plan.chunks, slots // size)
    read = size * growing * (growing + 1) / 2 + slots * (plan.chunks - growing)
    mean = read / plan.chunks if kv is not None else TIMED_PAGES
    return plan.frames / frames_per_s * _slower(kv, mean)


def _chunk_s(plan: Plan, kv: KvSize | None, frames_per_s: float) -> tuple[float, float]:
    """Seconds that the first and the last chunk take."""
    geometry = plan.geometry
    typical_s = geometry.chunk_latent_frames * geometry.temporal_stride / frames_per_s
    ends = (geometry.chunk_latent_frames, plan.latent_frames)
    first, last = (typical_s * _slower(kv, min(_slots(kv), read)) for read in ends)
    return first, last


def _slots(kv: KvSize | None) -> int:
    """Latent frames that a chunk reads at most: one page is for a copy."""
    return TIMED_PAGES if kv is None else max(1, kv.pages - 1)


def _slower(kv: KvSize | None, read: float) -> float:
    """How many times as long a chunk takes that reads so many latent frames as a measured one."""
    each = 0.0 if kv is None else kv.attention
    return (1 + each * read) / (1 + each * TIMED_PAGES)


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")
