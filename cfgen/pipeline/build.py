"""From a job to the objects that carry it out; nothing below sees a configuration."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch
from torch import Tensor

from cfgen.config.schema import (
    RenderConfig,
    ScheduleConfig,
    to_mapping,
)
from cfgen.errors import CheckpointError
from cfgen.memory.build import build_memory as memory_of
from cfgen.memory.page_pool import KVCache
from cfgen.memory.page_sizes import small_pages
from cfgen.memory.paged import PagedMemory
from cfgen.memory.policy import Policy, page_classes
from cfgen.model.generator import Conditioning, Generator
from cfgen.ops.select import Ops, build_ops
from cfgen.parallel.group import Group
from cfgen.parallel.heads import HeadParallel
from cfgen.parallel.lead import LeadSource
from cfgen.parallel.messages import Begin
from cfgen.pipeline.device import Runtime, resolve_auto
from cfgen.pipeline.fingerprint import arithmetic, processor, prompt_digest, versions
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.memory_estimate import place, wanted_of
from cfgen.pipeline.models import LoadedModels, OpenedModel
from cfgen.pipeline.offload_plan import Offload
from cfgen.pipeline.parallel import Peers
from cfgen.pipeline.preflight import encoding_of, licence_of, warnings_of
from cfgen.pipeline.shots import longest_pass
from cfgen.pipeline.torch_compile import compile_blocks
from cfgen.pipeline.video_file import preview_of, video_writer
from cfgen.renderer.events import Loaded
from cfgen.renderer.run import Render
from cfgen.renderer.source import ChunkSource, FrameSource
from cfgen.rollout.cuda_graph import ChunkGraph
from cfgen.rollout.loop import Guidance
from cfgen.rollout.schedule import FewStepSchedule, KeyedNoise, Noise, ReferenceNoise
from cfgen.runs.beginning import DIGEST, LAST_DIGEST
from cfgen.runs.folder import RunRecord
from cfgen.timeline import Plan
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


def build_chunk_source(
    job: RenderJob,
    loaded: LoadedModels,
    text: Mapping[str, Tensor],
    *,
    offload: Offload,
    group: Group | None = None,
) -> tuple[ChunkSource, HeadParallel | None]:
    """Put together all that makes latents, or a process's share of them.

    Args:
        job: What to render.
        loaded: Its model.
        text: What `OpenedModel.embed` gives.
        offload: Where its weights wait.
        group: The processes that make them together, None for this one alone.

    Returns:
        It, and how tokens and heads are shared out.

    Raises:
        CfgenError: The model is of other sizes, or cannot be computed with so.
    """
    config, runtime, plan, generator = job.config, job.runtime, job.plan, loaded.generator
    sizes = generator.geometry
    if (width := next(iter(text.values())).shape[-1]) != sizes.text_dim:
        raise CheckpointError(
            f"the text encoder makes {width} numbers a token, the generator reads {sizes.text_dim}",
            "use files that belong together",
        )
    split = None
    if group is not None:
        rows, columns = sizes.grid(plan.geometry.latent_height, plan.geometry.latent_width)
        split = HeadParallel(group, heads=sizes.num_heads, tokens=rows * columns)
    generator.share_tokens(split)
    ops = build_ops(config.backend, wanted_of(config, runtime, sizes))
    generator.compute_with(ops)
    conditionings, guidance = read_prompts(job, generator, text)
    memory = build_memory(
        config.memory, generator, plan, ops, dtype=runtime.dtype, offload=offload, split=split
    )
    source = ChunkSource(
        generator=generator,
        memory=memory,
        schedule=build_schedule(config.schedule),
        noise=build_noise(config, plan),
        conditionings=conditionings,
        plan=plan,
        guidance=guidance,
        backend=f"{ops.name}, compiled" if config.compile else ops.name,
        capture=ChunkGraph if can_capture_graph(config, runtime, ops, offload) else None,
    )
    return source, split


def can_capture_graph(config: RenderConfig, runtime: Runtime, ops: Ops, offload: Offload) -> bool:
    """Whether a chunk can be one CUDA graph: on a GPU, where nothing waits for the host."""
    on_gpu = runtime.device.type == "cuda" and ops.name == "triton"
    alone = config.placement.parallel == 1  # NCCL in a graph was never tried
    return config.cuda_graph and on_gpu and offload == "none" and alone


def prompts_of(config: RenderConfig, plan: Plan | None = None) -> list[str]:
    """What of a render must be encoded: the prompts of its spans, and the empty one for guidance.

    Args:
        config: The render.
        plan: Its plan, if it is made already.
    """
    shown = config.film if plan is None else plan.spans
    without = [] if config.schedule.guidance == 1 else [""]
    return list(dict.fromkeys([*(each.prompt for each in shown), *without]))


def read_prompts(
    job: RenderJob, generator: Generator, text: Mapping[str, Tensor]
) -> tuple[tuple[Conditioning, ...], Guidance | None]:
    """The prompts of a render's spans as the layers read them, and the empty one for guidance.

    Args:
        job: The render.
        generator: Its generator.
        text: What `OpenedModel.embed` gives.
    """
    wanted = prompts_of(job.config, job.plan)
    with torch.inference_mode():
        read = {p: generator.condition(text[p].to(generator.device)) for p in wanted}
    scale = job.config.schedule.guidance
    guidance = None if scale == 1 else Guidance(read[""], scale)
    return tuple(read[span.prompt] for span in job.plan.spans), guidance


def build_memory(
    policy: Policy,
    generator: Generator,
    plan: Plan,
    ops: Ops,
    *,
    dtype: torch.dtype,
    offload: Offload = "none",
    split: HeadParallel | None = None,
) -> PagedMemory:
    """An empty memory of a policy for a generator, with a pool of fixed size.

    With a `split`, the pool has the heads of this process alone.
    """
    sizes = generator.geometry
    grid = sizes.grid(plan.geometry.latent_height, plan.geometry.latent_width)
    heads = sizes.num_heads // (1 if split is None else split.processes)
    chunk = plan.geometry.chunk_latent_frames
    classes = page_classes(policy, plan.latent_frames, chunk)
    pool = KVCache(
        sizes.num_layers,
        classes[0].pages,
        (1, grid[0] * grid[1], heads, sizes.head_dim),
        small=small_pages(classes, grid),
        dtype=dtype,
        device=generator.device,
        place=torch.device("cpu") if offload == "all" else None,
        storage=policy.kv_cache,
        write=ops.write_pages,
    )
    return memory_of(
        policy,
        pool,
        ops,
        latent_frames=plan.latent_frames,
        head_dim=sizes.head_dim,
        grid=grid,
        chunk=longest_pass(plan, policy.recaches),
        heads=split,
    )


def build_schedule(config: ScheduleConfig) -> FewStepSchedule:
    """The noise levels of a chunk's passes."""
    return FewStepSchedule.from_timesteps(
        config.timesteps,
        shift=config.shift,
        warped=config.warp,
        renoise=config.renoise,
        first=config.first_timesteps,
    )


def build_noise(config: RenderConfig, plan: Plan) -> Noise:
    """Where a render's noise comes from."""
    if config.seed is None:
        raise ValueError("noise needs a seed")
    match config.rng:
        case "keyed":
            return KeyedNoise(config.seed)
        case "reference":
            g = plan.geometry
            frames = plan.latent_frames - plan.given.latent_frames
            shape = (1, frames, g.channels, g.latent_height, g.latent_width)
            steps = build_schedule(config.schedule)
            return ReferenceNoise(
                config.seed,
                shape,
                draws=steps.draws - 1,
                first_draws=steps.opening.draws - 1,
                first=plan.given_chunks,
            )
