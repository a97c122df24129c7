"""What a render will make and need: told from headers, before a weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cfgen.config.schema import ScheduleConfig
from cfgen.errors import CheckpointError
from cfgen.memory.page_sizes import tokens_of
from cfgen.memory.policy import page_classes, read_tokens
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.memory_estimate import attention_share, pool_nbytes
from cfgen.timeline import KEPT_SNAPSHOTS, Plan
from cfgen.video.codecs import LOSSLESS, Quality
from cfgen.video.formats import FORMATS, MP4

TIMED_PAGES = 15
"""Latent frames that a chunk reads in the long run where a model's frames a second were measured:
with slow_fast memory of 3, 6 and 6."""


def estimate_of(job: RenderJob) -> Estimate:
    """Estimate what a render needs of disk and time."""
    config = job.config
    encode, output = config.encode, config.output
    ending = encode.ending or (MP4.ending if output is None else output.suffix.lower())
    codec, _ = FORMATS.get(ending, MP4).coded(encode.codec_key, encode.bits)
    whole = not codec.exact_joins or encode.interpolate is not None
    return estimate(
        job.plan,
        quality=codec.quality(encode.quality),
        pieces=LOSSLESS.qualities["draft"] if whole else None,
        longer=(encode.interpolate or config.playback_fps) / config.playback_fps,
        kv=_kv_size(job),
        frames_per_s=config.model.cpu_frames_per_s,
        opening=passes_of(config.schedule, first=True) / passes_of(config.schedule),
        snapshot=config.snapshot.mode,
        budget_nbytes=config.snapshot.disk_budget,
    )


def passes_of(schedule: ScheduleConfig, *, first: bool = False) -> int:
    """Passes of the generator over a chunk, the commit pass included.

    Args:
        schedule: How chunks are denoised.
        first: Whether the chunk opens a scene: the first that is made, or of a fresh shot.
    """
    steps = schedule.first_steps if first else len(schedule.timesteps)
    return steps * (1 if schedule.guidance == 1 else 2) + 1


def _kv_size(job: RenderJob) -> KvSize | None:
    """The KV cache by the sizes of the model, or None where that cannot be read."""
    try:
        sizes = job.model.geometry
    except CheckpointError:
        return None
    shape, memory, frames = job.plan.geometry, job.config.memory, job.plan.latent_frames
    grid = sizes.grid(shape.latent_height, shape.latent_width)
    classes = page_classes(memory, frames, shape.chunk_latent_frames)
    nbytes = pool_nbytes(memory.kv_cache, sizes, grid, classes, job.runtime.dtype)
    read, pages = (
        -(-tokens // (grid[0] * grid[1]))
        for tokens in (
            read_tokens(memory, frames, shape.chunk_latent_frames, grid),
            tokens_of(classes, grid),
        )
    )
    return KvSize(
        nbytes=nbytes,
        pages=pages,
        read=read,
        attention=attention_share(sizes, grid),
        rewritten=memory.reencodes > 0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class KvSize:
    """How large a KV cache is.

    Attributes:
        nbytes: Bytes of all keys and values as they are kept.
        pages: Latent frames kept in each layer, and one for a copy; of older ones that are kept as
            fewer tokens, as many as have those.
        read: Latent frames that a pass reads at most, likewise; 0 for all that are kept.
        attention: What reading one of them adds to the time of a chunk that reads none, as a share.
        rewritten: Whether latent frames are encoded again, so that a snapshot holds them anew.
    """

    nbytes: int
    pages: int
    read: int = 0
    attention: float = 0.0
    rewritten: bool = False


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
    quality: Quality,
    pieces: Quality | None = None,
    longer: float = 1.0,
    kv: KvSize | None = None,
    frames_per_s: float | None = None,
    opening: float = 1.0,
    snapshot: str = "full",
    budget_nbytes: int = 0,
) -> Estimate:
    """Estimate what `plan` needs.

    Args:
        plan: The plan.
        quality: How its frames are coded.
        pieces: How those of its segments are, if otherwise.
        longer: Frames of the file, as a multiple of those that are made.
        kv: The size of the KV cache, if known.
        frames_per_s: Frames rendered a second on some machine, if measured (see `TIMED_PAGES`).
        opening: Passes of the first chunk, as a share of those of others.
        snapshot: What is kept to resume with: full, latents or off.
        budget_nbytes: Disk that snapshots of the memory may use.
    """
    geometry = plan.geometry
    cell_nbytes = 4 * geometry.channels * geometry.latent_width * geometry.latent_height
    chunk_frames = geometry.chunk_latent_frames * geometry.temporal_stride
    pixels = geometry.width * geometry.height
    output = math.ceil(longer * plan.frames * pixels * quality.bits_per_pixel / 8)
    segments = output
    if pieces is not None:
        segments = math.ceil(plan.frames * pixels * pieces.bits_per_pixel / 8)
    latents = cell_nbytes * plan.latent_frames
    snapshots: int | None = 0
    if snapshot == "full" and plan.chunks > 1:
        snapshots = None
    if kv is not None and snapshots is None:
        ever = kv.nbytes // kv.pages * plan.latent_frames
        if kv.rewritten:
            ever = kv.nbytes * plan.chunks
        snapshots = min(max(budget_nbytes, KEPT_SNAPSHOTS * kv.nbytes), ever) + kv.nbytes
    chunk_s, more_s, rate = None, 0.0, frames_per_s or math.inf
    if frames_per_s is not None:
        first, last = _chunk_s(plan, kv, rate)
        chunk_s, more_s = (first * opening, last), first * (opening - 1)
    return Estimate(
        latents_nbytes=latents,
        snapshots_nbytes=snapshots,
        chunk_nbytes=cell_nbytes * geometry.chunk_latent_frames + 3 * pixels * chunk_frames,
        output_nbytes=output,
        disk_nbytes=segments + output + latents + (snapshots or 0),
        kv_nbytes=None if kv is None else kv.nbytes,
        render_s=None if chunk_s is None else _render_s(plan, kv, rate) + more_s,
        chunk_s=chunk_s,
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
    return TIMED_PAGES if kv is None else kv.read or max(1, kv.pages - 1)


def _slower(kv: KvSize | None, read: float) -> float:
    """How many times as long a chunk takes that reads so many latent frames as a measured one."""
    each = 0.0 if kv is None else kv.attention
    return (1 + each * read) / (1 + each * TIMED_PAGES)
