"""From a job to the objects that carry it out; nothing below sees a configuration."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch

from cfgen.config.schema import RenderConfig, to_mapping
from cfgen.parallel.lead import LeadSource
from cfgen.parallel.messages import Begin
from cfgen.pipeline.chunk_source import build_chunk_source, prompts_of
from cfgen.pipeline.device import Runtime, resolve_auto
from cfgen.pipeline.fingerprint import arithmetic, processor, prompt_digest, versions
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.memory_estimate import place
from cfgen.pipeline.models import LoadedModels, OpenedModel
from cfgen.pipeline.offload_plan import Offload
from cfgen.pipeline.parallel import Peers
from cfgen.pipeline.preflight import encoding_of, licence_of, warnings_of
from cfgen.pipeline.torch_compile import compile_blocks
from cfgen.pipeline.video_file import preview_of, video_writer
from cfgen.renderer.events import Loaded
from cfgen.renderer.run import Render
from cfgen.renderer.source import FrameSource
from cfgen.runs.beginning import DIGEST, LAST_DIGEST
from cfgen.runs.folder import RunRecord
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.ffmpeg_graph import graph_module
from cfgen.video.output import run_of


@dataclass
class ModelCache:
    """A cache of the generator and decoder that were loaded last: a batch renders many clips.

    Attributes:
        key: What they were loaded for.
        loaded: They.
        peers: Processes that render with this one, and have caches of their own.
    """

    key: tuple[object, ...] = ()
    loaded: LoadedModels | None = None
    peers: Peers = field(default_factory=Peers)

    @property
    def nbytes(self) -> int:
        """Bytes of their weights, wherever they lie."""
        return 0 if self.loaded is None else self.loaded.nbytes

    def load(
        self, model: OpenedModel, runtime: Runtime, *, offload: Offload, compiled: bool = False
    ) -> LoadedModels:
        """The loaded model, read again only if another was loaded before."""
        key = (
            model.config,
            runtime.dtype,
            runtime.device,
            offload,
            compiled,
            *model.digests.items(),
        )
        if self.loaded is None or self.key != key:
            self.loaded = None  # both at once may be more than fits
            loaded = model.load(dtype=runtime.dtype, device=runtime.device, offload=offload)
            if compiled:
                compile_blocks(loaded.generator)
            self.key, self.loaded = key, loaded
        return self.loaded


def build_render(
    job: RenderJob, *, overwrite: bool = False, models: ModelCache | None = None
) -> Render:
    """Build a render: the writer first, so that a missing ffmpeg is found before any model loads.

    Args:
        job: What to render.
        overwrite: Whether the video may replace a file.
        models: Where loaded models are kept from one render to the next.

    Raises:
        CfgenError: Something that the configuration names is missing, damaged or cannot run here.
    """
    config = job.config
    if config.output is None or config.seed is None:
        raise ValueError("a render needs an output and a seed")
    encoding = encoding_of(job)
    ffmpeg = find_ffmpeg(encoding.codec.encoder)
    graph_module()  # a missing ffmpeg-python, too, is found before any model loads
    began = time.monotonic()
    recorded = _recorded(job)
    facts = {**job.model.digests, **versions()}
    path = run_of(config.output)
    writer = video_writer(
        job,
        recorded,
        output=config.output,
        parts=path / "segments",
        ffmpeg=ffmpeg,
        facts=facts,
        replaces=overwrite,
    )
    source = dataclasses.replace(build_source(job, models), bits=encoding.bits)
    job.model.require_unchanged()
    writer.add_metadata({"backend": source.backend})
    return Render(
        source=source,
        writer=writer,
        path=path,
        record=RunRecord(
            output=config.output.name,
            overwrite=overwrite,
            config=to_mapping(recorded),
            fingerprint={**facts, **_fingerprint(job, source), "ffmpeg_version": ffmpeg.version},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        mode=config.snapshot.mode,
        budget_nbytes=config.snapshot.disk_budget,
        clean=config.snapshot.clean,
        loaded=Loaded(
            model=config.model.path,
            backend=_backend_text(job, source),
            seconds=time.monotonic() - began,
            details=(*filter(None, [ffmpeg.note]), *licence_of(config), *source.notes),
        ),
        warnings=warnings_of(config),
        sound=job.sound,
        preview=preview_of(job, path, ffmpeg),
    )


def _recorded(job: RenderJob) -> RenderConfig:
    """The configuration that a run holds: what `auto` came to, and the frames of the input film."""
    config = resolve_auto(job.config, job.runtime)
    if job.beginning is None:
        return config
    begin = dataclasses.replace(config.begin, frames=job.beginning.frames)
    return dataclasses.replace(config, begin=begin)


def _backend_text(job: RenderJob, source: FrameSource) -> str:
    """What frames are computed with, for the line that tells of the loaded model."""
    dtype = str(job.runtime.dtype).removeprefix("torch.")
    kept = job.config.memory.kv_cache
    cache = "" if kept == "auto" else f", KV cache in {kept}"
    count = job.config.placement.parallel
    others = "" if count == 1 else f", {count} processes"
    return f"{source.backend} on {job.runtime.device}, {dtype}{cache}{others}"


def _fingerprint(job: RenderJob, source: FrameSource) -> dict[str, str]:
    """What fixes the frames besides weights and versions, by name."""
    given = {DIGEST: job.beginning, LAST_DIGEST: job.ending}
    begun = {name: each.digest for name, each in given.items() if each is not None}
    return {
        **begun,
        "text_sha256": job.model.text_digest,
        "prompt_sha256": prompt_digest(source.conditionings, source.guidance),
        "processor": processor(job.runtime.device),
        "arithmetic": arithmetic(job.runtime.device, job.runtime.dtype),
        "backend": source.backend,
    }


def build_source(job: RenderJob, models: ModelCache | None = None) -> FrameSource:
    """Load a model and put together all that makes frames. Pins the threads of this process.

    Raises:
        CfgenError: The model is missing, damaged or of other sizes, or the memory does not fit.
    """
    config, runtime, plan = job.config, job.runtime, job.plan
    torch.set_num_threads(runtime.threads)
    models = models or ModelCache()
    placement = place(job, held=models.nbytes)
    # first: the encoder is freed before the model comes
    text = job.model.embed(prompts_of(config, plan))
    group = models.peers.group(config.placement.parallel, runtime.device)
    if group is not None:  # the others load while this process does
        whole = to_mapping(_recorded(job))
        group.tell(Begin(whole, placement.offload, text, job.model.digests))
    loaded = models.load(job.model, runtime, offload=placement.offload, compiled=config.compile)
    source, _ = build_chunk_source(job, loaded, text, offload=placement.offload, group=group)
    parts = {
        **vars(source),
        "vae": loaded.decoder,
        "notes": (*loaded.notes, placement.why),
        "given": job.given_latents(loaded.decoder),
    }
    return FrameSource(**parts) if group is None else LeadSource(group=group, **parts)
