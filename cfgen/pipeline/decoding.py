"""`cfgen decode`: a finished run becomes another file, by its latents; no generator is loaded."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch

from cfgen.checkpoint.networks.network import Network
from cfgen.checkpoint.networks.vae import build_vae, latent_sizes, open_vae
from cfgen.config.audio import AudioConfig
from cfgen.config.loader import from_mapping
from cfgen.config.schema import EncodeConfig, RenderConfig, to_mapping
from cfgen.errors import UsageError
from cfgen.hub import locate
from cfgen.model.tiled import TiledDecoder
from cfgen.pipeline import rendering
from cfgen.pipeline.fingerprint import arithmetic, processor, versions
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.models import OpenedModel, digest_of
from cfgen.pipeline.preflight import check_place, encoding_of
from cfgen.pipeline.rendering import Rendering, whole_video
from cfgen.pipeline.runs import config_of, require_same_render
from cfgen.pipeline.video_file import video_writer
from cfgen.renderer.decoding import Decoding, copy_latents, require_made, tells_of_no_frame
from cfgen.renderer.events import Loaded, Noted
from cfgen.renderer.replay import shape_of
from cfgen.renderer.source import FrameDecoder
from cfgen.runs.contents import LOCK
from cfgen.runs.folder import RunFolder, is_run
from cfgen.runs.lock import Lock
from cfgen.runs.recovery import audit
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.output import format_of, run_of


class VaeOnly(OpenedModel):
    """A model of which the autoencoder alone is opened; its generator may be gone."""

    @cached_property
    def vae_place(self) -> Path:
        """Where the autoencoder lies."""
        named = self.config.vae
        return self.files.vae if named is None else locate(named, what="video autoencoder")

    @cached_property
    def vae(self) -> Network:
        """The video autoencoder's weights."""
        network = open_vae(self.vae_place)
        self._note(network.file)
        return network

    @cached_property
    def latents(self) -> tuple[int, int]:
        """Channels of a latent frame and pixels along a cell, by the autoencoder's header."""
        return latent_sizes(self.vae)

    @property
    def vae_digest(self) -> str:
        """SHA-256 of the autoencoder's files."""
        return digest_of(self.vae_place, self.vae, anew=self._anew)


def decode_again(
    run: Path,
    *,
    output: Path,
    changes: Mapping[str, str | None],
    overwrite: bool = False,
    allow_changed: frozenset[str] = frozenset(),
) -> Rendering:
    """Decode the latents that a run keeps to another video; one that was begun goes on.

    Args:
        run: The run folder.
        output: The new video.
        changes: Text by dotted key, of `encode`, `audio` and of the autoencoder; None leaves what
            the run has. Of a file of another kind, `encode` is that kind's.
        overwrite: Whether the new video may replace a file.
        allow_changed: Names in the fingerprint that may differ from when it was begun.

    Raises:
        UsageError: The run is not finished, or something of it cannot be decoded so.
        CfgenError: The new video cannot be written there.
    """
    folder = RunFolder(run)
    path = run_of(output)
    if path.absolute() == run.absolute():
        raise UsageError("the new video needs a name of its own", "name another with -o")
    job = RenderJob(_config(folder, output, changes))
    job = RenderJob(job.config, VaeOnly(job.config.model))
    if is_run(path) and not overwrite:
        begun = RunFolder(path)
        require_same_render(path, config_of(begun), job.config)
        return go_on(begun, allow_changed=allow_changed)
    _require_same_latents(folder, job)
    asked = any(key.startswith("audio.") for key, text in changes.items() if text is not None)
    lines = job.require_sound() if asked else ()
    check_place(job, overwrite=overwrite)
    with Lock(run / LOCK):
        record = dataclasses.replace(
            folder.record,
            output=output.name,
            overwrite=overwrite,
            config=to_mapping(job.config),
            fingerprint={**folder.record.fingerprint, **_fingerprint(job)},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            base=0,
            take=1,
        )
        kept = not asked and bool(format_of(output).audio)
        tile = job.config.model.vae_tile
        copy_latents(folder, job.plan, path, record, tile=tile, sound=kept)
    opening = [f"{run} is decoded again: {job.plan.frames} frames", *lines]
    return DecodeRendering(job, resume=True, opening=tuple(Noted(message=line) for line in opening))


def go_on(folder: RunFolder, *, allow_changed: frozenset[str] = frozenset()) -> Rendering:
    """Go on with a decoding, or tell that it is finished.

    Args:
        folder: Its run folder.
        allow_changed: Names in the fingerprint that may differ.
    """
    config = config_of(folder)
    job = RenderJob(config, VaeOnly(config.model))
    if (video := whole_video(folder, job)) is not None:
        whole = Noted(message=f"{folder.output} is finished, and whole: {video.frames} frames")
        return Rendering.finished(job, video, whole)
    return DecodeRendering(job, resume=True, allow_changed=allow_changed)


def resume(
    path: Path, *, parallel: str | None = None, allow_changed: frozenset[str] = frozenset()
) -> Rendering:
    """Go on with the run in a folder, without a generator where it only decodes.

    Args:
        path: The run folder.
        parallel: Processes, if others than before, as a person writes them.
        allow_changed: Names in the fingerprint that may differ.

    Raises: as `rendering.go_on`.
    """
    folder = RunFolder(path)
    if tells_of_no_frame(folder):
        config = config_of(folder)
        plan = RenderJob(config, VaeOnly(config.model)).plan
        audited = audit(folder, plan)
        if len(audited.lines) == plan.chunks and not audited.damaged:
            return go_on(folder, allow_changed=allow_changed)
    return rendering.go_on(path, parallel=parallel, allow_changed=allow_changed)


class DecodeRendering(Rendering):
    """A rendering that only decodes."""

    loads = "the autoencoder"

    def _built(self) -> Decoding:
        job, folder = self.job, RunFolder(run_of(self.job.output))
        if not isinstance(job.model, VaeOnly):
            raise TypeError("a decoding needs no more than the autoencoder")
        job.model.hash_anew()
        began, plan = time.monotonic(), job.plan
        encoding, runtime = encoding_of(job), job.runtime
        ffmpeg = find_ffmpeg(encoding.codec.encoder)
        torch.set_num_threads(runtime.threads)
        held = {k: v for k, v in folder.record.fingerprint.items() if k.endswith("_sha256")}
        weights = {k: v for k, v in held.items() if k.startswith(("generator", "loras"))}
        facts = {**weights, "vae_sha256": job.model.vae_digest, **versions()}
        config = from_mapping(folder.record.config, label=str(folder.path / "run.json"))
        writer = video_writer(
            job,
            config,
            output=job.output,
            parts=folder.segments,
            ffmpeg=ffmpeg,
            facts=facts,
            replaces=folder.record.overwrite,
        )
        vae = build_vae(
            job.model.vae,
            job.model.vae_place,
            dtype=runtime.dtype,
            device=runtime.device,
            raw_latents=job.config.model.raw_latents,
        )
        tiled = TiledDecoder(vae, tile=job.config.model.vae_tile)
        now = {**folder.record.fingerprint, **_fingerprint(job)}
        return Decoding(
            decoder=FrameDecoder(vae=tiled, plan=plan, bits=encoding.bits),
            writer=writer,
            path=folder.path,
            record=dataclasses.replace(folder.record, fingerprint=now),
            loaded=Loaded(
                model=job.model.vae_place.name,
                backend=f"on {runtime.device}, {str(runtime.dtype).removeprefix('torch.')}",
                seconds=time.monotonic() - began,
                details=tuple(filter(None, [ffmpeg.note])),
            ),
            sound=None if job.soundtrack is None else job.soundtrack.read,
            allow_changed=self._allow_changed,
        )


def _config(folder: RunFolder, output: Path, changes: Mapping[str, str | None]) -> RenderConfig:
    """The configuration of a run with another file and what else is asked for."""
    label = str(folder.path / "run.json")
    old = from_mapping(folder.record.config, label=label)
    kind = changes.get("encode.format")
    ending = output.suffix if kind is None else f".{kind}"
    kept = dataclasses.replace(old.snapshot, mode="latents")
    blank = dataclasses.replace(old, output=None, snapshot=kept)
    if ending.lower() != folder.output.suffix.lower():
        blank = dataclasses.replace(blank, encode=EncodeConfig())
    silent = not format_of(output.with_suffix(ending)).audio
    if changes.get("audio.file") is not None or silent:
        blank = dataclasses.replace(blank, audio=AudioConfig())
    return from_mapping(to_mapping(blank), label=label, flags={**changes, "output": str(output)})


def _fingerprint(job: RenderJob) -> dict[str, str]:
    """What fixes the frames of a decoding here and now, besides its latents."""
    model = job.model
    assert isinstance(model, VaeOnly)
    runtime = job.runtime
    return {
        "vae_sha256": model.vae_digest,
        **versions(),
        "processor": processor(runtime.device),
        "arithmetic": arithmetic(runtime.device, runtime.dtype),
        "ffmpeg_version": find_ffmpeg(encoding_of(job).codec.encoder).version,
    }


def _require_same_latents(folder: RunFolder, job: RenderJob) -> None:
    """Refuse an autoencoder of other latents than a run keeps.

    Raises:
        UsageError: It has others, or the run is not finished.
        SnapshotCorrupt: Latents are missing or damaged.
    """
    require_made(folder, job.plan)
    _, _, channels, rows, _ = shape_of(folder, 0)
    shape = job.plan.geometry
    if (channels, rows) != (shape.channels, shape.latent_height):
        raise UsageError(
            f"the autoencoder decodes latents of {shape.channels} channels, {shape.latent_height} "
            f"rows to a frame, and {folder.path} keeps {channels} channels in {rows} rows",
            "give a VAE of the same family by --vae",
        )
