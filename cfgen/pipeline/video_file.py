"""The file that a job makes: what writes it, what it says of itself, what shows it meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cfgen.config.schema import RenderConfig, digest
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.preflight import encoding_of
from cfgen.pipeline.shots import chapters_of
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.preview import Preview
from cfgen.video.writer import VideoWriter


def video_writer(
    job: RenderJob,
    recorded: RenderConfig,
    *,
    output: Path,
    parts: Path,
    ffmpeg: Ffmpeg,
    facts: Mapping[str, str],
    replaces: bool,
) -> VideoWriter:
    """What encodes the frames of a job and joins them.

    Args:
        job: What is made.
        recorded: The configuration that the run holds.
        output: The video file.
        parts: Folder for the segments.
        ffmpeg: The ffmpeg to use.
        facts: Digests and versions, for the container and the sidecar.
        replaces: Whether a file may be replaced that comes to the output's place meanwhile.

    Raises:
        UsageError: A value cannot be used.
        FfmpegMissing: The ffmpeg lacks an encoder or a filter.
    """
    shape, encoding = job.plan.geometry, encoding_of(job)
    return VideoWriter(
        output,
        width=shape.width,
        height=shape.height,
        fps=shape.fps,
        ffmpeg=ffmpeg,
        quality=job.config.encode.quality,
        codec=encoding.codec.key,
        bits=encoding.bits,
        interpolate=job.config.encode.interpolate,
        metadata={**_metadata(recorded), **_sound(job), **facts},
        parts=parts,
        replaces=replaces,
        chapters=chapters_of(job.plan),
    )


def preview_of(job: RenderJob, run: Path, ffmpeg: Ffmpeg) -> Preview | None:
    """What shows the frames in the run folder while more are made; None where nothing shall."""
    shape = job.plan.geometry
    if not job.config.preview:
        return None
    return Preview(run, width=shape.width, height=shape.height, fps=shape.fps, ffmpeg=ffmpeg)


def _sound(job: RenderJob) -> dict[str, str]:
    """What the sound of a video is."""
    return {} if job.soundtrack is None else {"sound": job.soundtrack.told}


def _metadata(config: RenderConfig) -> dict[str, str]:
    """What the video is, for the container and the sidecar."""
    return {
        "title": config.prompt,
        "prompt": config.prompt,
        "seed": str(config.seed),
        "preset": config.preset,
        "config_sha256": digest(config),
        "threads": str(config.threads),
        "dtype": config.dtype,
        "kv_cache": config.memory.kv_cache,
    }
