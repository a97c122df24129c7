"""How fast a preset renders on this machine: the same chunks by every backend and KV cache.

A chunk is timed as it is late in a long clip, its memory full: of random keys, since no kernel is
faster or slower for them. The ways take turns, so that whatever else the machine does slows all of
them alike. Nothing is written to disk.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import psutil
import torch
from torch import Tensor

from cfgen.build import build_memory, captures
from cfgen.chunk_graph import ChunkGraph
from cfgen.compiled import compile_blocks
from cfgen.config.schema import FullMemory, RenderConfig, Storage
from cfgen.errors import BackendUnavailable, BudgetError, CheckpointError, NotFinite
from cfgen.fingerprint import processor
from cfgen.machine import device_of, dtype_of, threads_of
from cfgen.memory.base import Pass
from cfgen.model.generator import Block, Conditioning, Generator
from cfgen.model.tiled import is_out_of_memory
from cfgen.needs import kv_nbytes, page_dtypes, pages_of, place, wanted_of
from cfgen.ops.select import Ops, build_ops
from cfgen.ops.triton_backend import refusals
from cfgen.placement import Offload
from cfgen.render.plan import Geometry, Plan, make_plan
from cfgen.render.source import FrameSource
from cfgen.rollout import Chunk, Guidance
from cfgen.schedule import FewStepSchedule, KeyedNoise
from cfgen.stand_in import stand_in
from cfgen.weights import LoadedModels, files_of, load_models, loras_of

LONG_S = 24 * 3600.0
"""A clip in which every memory fills and no chunk is the last."""

FILLED_BY = 4
"""A memory that is not full after so many chunks a slot will not be."""

WORDS = 60
"""Tokens of the prompt."""

SLOW_S = 10.0
"""A chunk that takes longer is told of as soon as it is made."""

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How far a chunk may be from the torch backend's, as a share of its norm, by what computes it."""

STORED = {"auto": 0.0, "bf16": 5e-2, "int8": 1e-1, "fp8": 1e-1}
"""And how far by what keeps its KV cache."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to make a chunk: a backend, `auto` not being one, and how the KV cache is kept."""

    backend: str
    storage: Storage


@dataclass(frozen=True, slots=True)
class Refused:
    """A way that cannot go here, and why."""

    way: Way
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What was found of one way.

    Attributes:
        way: The way.
        keys: Number type that pages keep keys in.
        values: Number type that they keep values in.
        seconds: Of each chunk, denoised and committed.
        cache_nbytes: The KV cache, and what the backend holds of it besides.
        gpu_nbytes: Most GPU memory with the weights; None on a CPU.
        error: Distance of a chunk from that of the way it is compared with, as a share of the norm;
            None for that way itself, or without one.
        tolerance: The most that may be.
    """

    way: Way
    keys: str
    values: str
    seconds: tuple[float, ...]
    cache_nbytes: int
    gpu_nbytes: int | None
    error: float | None
    tolerance: float

    @property
    def chunk_s(self) -> float:
        """Median."""
        return statistics.median(self.seconds)

    @property
    def agrees(self) -> bool:
        """Whether its chunk is that of the way it is compared with; so it is without one."""
        return self.error is None or self.error <= self.tolerance


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was measured, and of what.

    Attributes:
        absent: Why weights are random; None where they are the preset's own.
        frames: Frames of a chunk.
        passes: Passes of the generator over a chunk, the commit pass included.
        tokens: Of a latent frame.
        slots: Latent frames in memory, the chunk's own included.
        decode_s: Seconds to decode a chunk, median.
        base: What the others are compared with: the first way by the torch backend, if there is.
        ways: In the order asked for.
        refused: What cannot go here.
        auto: The backend that a render takes here.
    """

    device: str
    dtype: str
    threads: int
    absent: str | None
    frames: int
    passes: int
    tokens: int
    slots: float
    decode_s: float
    base: Figures | None
    ways: tuple[Figures, ...]
    refused: tuple[Refused, ...]
    auto: str

    def ratio(self, figures: Figures) -> float | None:
        """How many times as fast as the base a way is; None unless they agree."""
        if self.base is None or not figures.agrees:
            return None
        return self.base.chunk_s / figures.chunk_s

    def frames_per_s(self, figures: Figures, *, decoded: bool = False) -> float:
        """Frames a second, decoding left out unless asked for."""
        return self.frames / (figures.chunk_s + (self.decode_s if decoded else 0.0))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What all ways have in common.

    Attributes:
        config: What to render.
        models: The generator and decoder.
        absent: See `Report`.
        offload: What of them waits in main memory.
        plan: A long clip.
        kept: The clip that memory is made for.
        prompt: A random prompt.
        guidance: As the configuration wants it.
    """

    config: RenderConfig
    models: LoadedModels
    absent: str | None
    offload: Offload
    plan: Plan
    kept: Plan
    prompt: Conditioning
    guidance: Guidance | None

    def source(self, way: Way, ops: Ops) -> FrameSource:
        """What makes frames one way, put together as `build_source` does."""
        schedule, generator = self.config.schedule, self.models.generator
        return FrameSource(
            generator=generator,
            memory=build_memory(
                replace(self.config.memory, storage=way.storage),
                generator,
                self.kept,
                ops,
                dtype=dtype_of(self.config),
                offload=self.offload,
            ),
            schedule=FewStepSchedule.from_timesteps(
                schedule.timesteps,
                shift=schedule.shift,
                warped=schedule.warp,
                renoise=schedule.renoise,
            ),
            noise=KeyedNoise(0),
            conditioning=self.prompt,
            vae=self.models.decoder,
            plan=self.plan,
            guidance=self.guidance,
            backend=ops.name,
            capture=ChunkGraph if captures(self.config, ops, self.offload) else None,
        )


def prepare(config: RenderConfig, *, may_stand_in: bool) -> Scene:
    """Load the model of a preset, or random weights of its size. Pins the threads of this process.

    Args:
        config: What to render; its duration counts only where memory grows with the clip.
        may_stand_in: Whether random weights may take the place of ones that are not on the disk.

    Raises:
        CfgenError: The model is missing and must not be, damaged, or does not fit.
    """
    torch.set_num_threads(threads_of(config))
    plan = _plan(config, LONG_S)
    kept = _plan(config, config.duration_s) if isinstance(config.memory, FullMemory) else plan
    dtype, device = dtype_of(config), device_of(config)
    absent = _absent(config) if may_stand_in else None
    if absent is None:
        offload = place(config, kept).offload
        models = load_models(config.model, dtype=dtype, device=device, offload=offload)
    else:
        asked = config.placement.offload
        offload = "none" if asked == "auto" else asked
        models = stand_in(config.model, dtype=dtype, device=device, offload=offload)
    if config.compile:
        compile_blocks(models.generator)
    scale = config.schedule.guidance
    return Scene(
        config=config,
        models=models,
        absent=absent,
        offload=offload,
        plan=plan,
        kept=kept,
        prompt=_prompt(models.generator, WORDS),
        guidance=None if scale == 1 else Guidance(_prompt(models.generator, 1), scale),
    )


def _plan(config: RenderConfig, seconds: float) -> Plan:
    width, height = config.frame_size
    chunk = config.model.chunk_latent_frames
    return make_plan(
        seconds, Geometry(width=width, height=height, chunk_latent_frames=chunk, fps=16)
    )
