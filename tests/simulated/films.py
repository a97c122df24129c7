"""Whole films on the simulated device, chunk by chunk, beside the same film on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfgen.config.loader import load
from cfgen.pipeline.build import build_source
from cfgen.pipeline.job import RenderJob
from cfgen.renderer.source import FrameSource
from tests.simulated.gpu import SimulatedGpu, Wait

PROMPT = "a red balloon drifts over snowy hills"
SETTINGS = (
    "model.sizes=[48x32]",
    "schedule.timesteps=[1000, 500]",
    "schedule.guidance=1",
    "threads=1",
    "dtype=float32",
)


@dataclass
class Made:
    """A film, and what its chunks made the host wait for.

    Attributes:
        latents: Of each chunk, [1, F, C, H, W].
        frames: Of each chunk, uint8 [n, height, width, 3].
        waits: From a chunk's beginning until it is in the memory.
        decoding: From then until its frames are there.
        source: What made it.
    """

    source: FrameSource
    latents: list[Tensor] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    waits: list[Counter[Wait]] = field(default_factory=list)
    decoding: list[Counter[Wait]] = field(default_factory=list)

    def distance(self, other: Made) -> float:
        """Relative distance of the latents of two films."""
        mine, theirs = (torch.cat(film.latents, 1).cpu().double() for film in (self, other))
        return float((mine - theirs).norm() / theirs.norm())


def job_of(model: Path, settings: Sequence[str], *, device: str = "cuda") -> RenderJob:
    """A film of the tiny model, in chunks of three latent frames."""
    shots = any(setting.startswith("shots=") for setting in settings)
    values = {} if shots else {"prompt": PROMPT, "duration": "3.6s"}
    chosen = [f"model.path={model}", *SETTINGS, f"device={device}", *settings]
    return RenderJob(
        load(values | {"seed": "3", "output": "unused.mp4"}, assignments=chosen).config
    )


def source_of(model: Path, settings: Sequence[str], *, device: str = "cuda") -> FrameSource:
    """What makes such a film."""
    return build_source(job_of(model, settings, device=device))


def film(source: FrameSource, gpu: SimulatedGpu | None = None, *, decode: bool = True) -> Made:
    """Make a film; a chunk is begun before the frames of the one before it are waited for."""
    made, making = Made(source), source.making()
    state, plan = source.vae.start(), source.plan

    def counted() -> Counter[Wait]:
        return Counter() if gpu is None else gpu.counted()

    counted()
    pending = None
    for index in plan.order:
        making.start(index)
        begun = counted()
        if pending is not None:
            made.frames.append(pending.wait())
            made.decoding[-1] += counted()
        chunk = making.finish()
        made.waits.append(begun + counted())
        made.latents.append(chunk.latents)
        pending = source.decoding(chunk, state) if decode else None
        made.decoding.append(counted())
    if pending is not None:
        made.frames.append(pending.wait())
    return made
