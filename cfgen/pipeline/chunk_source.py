"""Puts together what makes the latents of a render: model, memory, noise levels, noise, prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cfgen.config.schema import RenderConfig, ScheduleConfig
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
from cfgen.pipeline.device import Runtime
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.memory_estimate import wanted_of
from cfgen.pipeline.models import LoadedModels
from cfgen.pipeline.offload_plan import Offload
from cfgen.pipeline.shots import longest_pass
from cfgen.renderer.source import ChunkSource
from cfgen.rollout.cuda_graph import ChunkGraph
from cfgen.rollout.loop import Guidance
from cfgen.rollout.schedule import FewStepSchedule, KeyedNoise, Noise, ReferenceNoise
from cfgen.timeline import Plan


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
