"""The ways in which a machine can make the chunks of one render, and what they have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfgen.bench.clock import allocated_nbytes, now
from cfgen.bench.random_weights import missing_files, random_weights
from cfgen.config.schema import RenderConfig
from cfgen.errors import BackendUnavailable
from cfgen.memory.page_pool import page_dtypes
from cfgen.memory.policy import Storage, page_classes, read_tokens
from cfgen.memory.protocols import Pass
from cfgen.model.generator import Block, Conditioning, Generator
from cfgen.ops.select import Ops, build_ops
from cfgen.ops.triton_backend import refusals
from cfgen.pipeline.chunk_source import build_memory, build_schedule, can_capture_graph
from cfgen.pipeline.device import Runtime
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.memory_estimate import (
    kv_nbytes,
    place,
    pool_nbytes,
    wanted_of,
)
from cfgen.pipeline.models import LoadedModels
from cfgen.pipeline.offload_plan import Offload
from cfgen.pipeline.plan import passes_of
from cfgen.pipeline.torch_compile import compile_blocks
from cfgen.renderer.source import FrameSource
from cfgen.rollout.cuda_graph import ChunkGraph
from cfgen.rollout.loop import Guidance, reencode
from cfgen.rollout.schedule import KeyedNoise
from cfgen.timeline import Plan

LONG_S = 24 * 3600.0
"""A clip in which every memory fills, and which has no end as far as anything is timed."""

FILLED_BY = 4
"""A memory that is not full after so many chunks a slot will never be."""

WORDS = 60
"""Tokens of the prompt."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to make a chunk: a backend, and how the KV cache is kept."""

    backend: str
    storage: Storage

    def __str__(self) -> str:
        """Return ``torch, int8``."""
        return f"{self.backend}, {self.storage}"


@dataclass(frozen=True, kw_only=True)
class BenchSetup:
    """What all ways have in common.

    Attributes:
        config: What to render.
        models: The generator and decoder.
        absent: Why their weights are random; None where they are the model's own.
        offload: What of them waits in main memory.
        weights_nbytes: Bytes of GPU memory that they take.
        runtime: What computes.
        plan: A clip without an end.
        kept: The clip that memory is made for.
        prompt: A random prompt.
        guidance: As the configuration wants it.
    """

    config: RenderConfig
    models: LoadedModels
    absent: str | None
    offload: Offload
    weights_nbytes: int
    runtime: Runtime
    plan: Plan
    kept: Plan
    prompt: Conditioning
    guidance: Guidance | None

    @property
    def generator(self) -> Generator:
        """The generator."""
        return self.models.generator

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are computed in."""
        return self.runtime.dtype

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of a latent frame."""
        clip = self.plan.geometry
        return self.generator.geometry.grid(clip.latent_height, clip.latent_width)

    @property
    def tokens(self) -> int:
        """Tokens of a latent frame."""
        return self.grid[0] * self.grid[1]

    @property
    def slots(self) -> int:
        """Latent frames that a pass reads at most, the chunk's own included."""
        kept = self.kept
        return self.config.memory.readable(kept.latent_frames, kept.geometry.chunk_latent_frames)

    @property
    def frames(self) -> int:
        """Frames of a chunk."""
        return self.plan.chunk(1).frames

    @property
    def passes(self) -> int:
        """ChunkDenoiser of the generator over a chunk, the commit pass included."""
        return passes_of(self.config.schedule)

    def page_dtypes(self, way: Variant) -> tuple[torch.dtype, torch.dtype]:
        """What pages keep keys and values in."""
        return page_dtypes(self._config_of(way).memory.kv_cache, self.dtype)

    def ops(self, way: Variant) -> Ops:
        """The ops of one way.

        Raises:
            BackendUnavailable: They cannot run here; says no more than why.
        """
        wanted = wanted_of(self._config_of(way), self.runtime, self.generator.geometry)
        if way.backend == "triton" and (reasons := refusals(wanted)):
            raise BackendUnavailable("; ".join(reasons))
        return build_ops(way.backend, wanted)

    def pool_nbytes(self, way: Variant) -> int:
        """Bytes of the KV cache."""
        clip, chunk = self.kept.latent_frames, self.kept.geometry.chunk_latent_frames
        classes = page_classes(self.config.memory, clip, chunk)
        sizes, storage = self.generator.geometry, self._config_of(way).memory.kv_cache
        return pool_nbytes(storage, sizes, self.grid, classes, self.dtype)

    def rotated_nbytes(self, way: Variant, ops: Ops) -> int:
        """Bytes of the rotated keys and of the values that a backend holds besides."""
        if ops.pages is not None:
            return 0
        clip, chunk = self.kept.latent_frames, self.kept.geometry.chunk_latent_frames
        read = read_tokens(self.config.memory, clip, chunk, self.grid)
        every = kv_nbytes(self.generator.geometry, read, self.dtype)
        layer_by_layer = set(self.page_dtypes(way)) != {self.dtype} or self.offload == "all"
        return every // self.generator.geometry.num_layers if layer_by_layer else every

    def source(self, way: Variant, ops: Ops) -> FrameSource:
        """What makes frames one way, put together as `build_source` does; its memory is empty."""
        return FrameSource(
            generator=self.generator,
            memory=build_memory(
                self._config_of(way).memory,
                self.generator,
                self.kept,
                ops,
                dtype=self.dtype,
                offload=self.offload,
            ),
            schedule=build_schedule(self.config.schedule),
            noise=KeyedNoise(0),
            conditionings=(self.prompt,),
            vae=self.models.decoder,
            plan=self.plan,
            guidance=self.guidance,
            backend=ops.name,
            capture=ChunkGraph
            if can_capture_graph(self.config, self.runtime, ops, self.offload)
            else None,
        )

    def _config_of(self, way: Variant) -> RenderConfig:
        """The configuration with the KV cache of one way."""
        memory = replace(self.config.memory, kv_cache=way.storage)
        return replace(self.config, memory=memory)


def prepare(config: RenderConfig, *, may_stand_in: bool) -> BenchSetup:
    """Load the model of a render, or random weights of its size. Pins the threads of this process.

    Args:
        config: What to render; how long counts only where memory grows with the clip.
        may_stand_in: Whether random weights may take the place of ones that are not on the disk.

    Raises:
        CfgenError: The model is missing and must not be, damaged, or does not fit.
    """
    job = RenderJob(replace(config, duration_s=LONG_S))
    runtime, plan = job.runtime, job.plan
    torch.set_num_threads(runtime.threads)
    lasting = RenderJob(config, job.model) if config.memory.grows else job
    absent = missing_files(job.model) if may_stand_in else None
    asked = config.placement.offload
    offload: Offload
    if absent is None:
        offload = place(lasting).offload
        models = job.model.load(dtype=runtime.dtype, device=runtime.device, offload=offload)
    else:
        offload = "none" if asked == "auto" else asked
        models = random_weights(
            config.model, dtype=runtime.dtype, device=runtime.device, offload=offload
        )
    if config.compile:
        compile_blocks(models.generator)
    scale = config.schedule.guidance
    return BenchSetup(
        config=config,
        models=models,
        absent=absent,
        offload=offload,
        weights_nbytes=allocated_nbytes(runtime.device),
        runtime=runtime,
        plan=plan,
        kept=lasting.plan,
        prompt=_prompt(models.generator, WORDS),
        guidance=None if scale == 1 else Guidance(_prompt(models.generator, 1), scale),
    )


def _prompt(generator: Generator, words: int) -> Conditioning:
    """A random prompt of so many tokens, as the layers of a generator read it."""
    sizes = generator.geometry
    text = torch.zeros(1, sizes.text_len, sizes.text_dim)
    text[:, :words] = torch.randn(text[:, :words].shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return generator.condition(text.to(generator.device))


def fill(source: FrameSource) -> int:
    """Fill the memory of a source with random keys and values; the number of its next chunk.

    Those of a latent frame have something in common, as real ones have, so that it matters which
    page is read and how it is turned.
    """
    memory, generator = source.memory, source.generator
    blocks = [block.self_attn for block in generator.blocks if isinstance(block, Block)]
    clip, sizes = source.plan.geometry, generator.geometry
    rows, columns = sizes.grid(clip.latent_height, clip.latent_width)
    frames, dtype = clip.chunk_latent_frames, blocks[0].q.dtype
    random = torch.Generator(generator.device).manual_seed(0)

    def noise(tokens: int) -> Tensor:
        shape = (2, 1, frames, tokens, sizes.dim)
        return torch.randn(shape, generator=random, device=generator.device)

    commit = Pass(len(source.schedule.sigmas), commit=True)
    most = FILLED_BY * max(table.capacity for table in memory.tables)
    for index in range(most):
        if all(len(table.slots()) == table.capacity for table in memory.tables):
            return index
        with torch.inference_mode():
            view = memory.begin(frames)
            k, v = (noise(rows * columns) + noise(1)).flatten(2, 3).to(dtype)
            for attention in blocks:
                view.at(commit).write(attention.layer, k, v, attention.norms)
            memory.commit(view)
            memory.remember(torch.randn(source.shape, generator=random, device=generator.device))
            clean, text = generator.level(0.0), source.conditionings[0]
            reencode(generator, memory, clean, text, step=commit.index)
    return most


def least_s(setting: BenchSetup) -> float:
    """Seconds that a chunk takes if all of it is as fast as the largest of its matrix products."""
    sizes, device = setting.generator.geometry, setting.generator.device
    block = next(block for block in setting.generator.blocks if isinstance(block, Block))
    tokens = setting.plan.geometry.chunk_latent_frames * setting.tokens
    x = torch.randn(1, tokens, sizes.dim, device=device, dtype=setting.dtype)
    times = []
    for _ in range(2):
        began = now(device)
        with torch.inference_mode():
            block.ffn[0](x)
        times.append(now(device) - began)
    one = sizes.dim * sizes.ffn_dim
    read = setting.slots * setting.tokens
    all_of_layer = 2 * one + 6 * sizes.dim**2 + 2 * read * sizes.dim
    return min(times) * all_of_layer / one * sizes.num_layers * setting.passes
