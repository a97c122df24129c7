"""The memory of a student's rollouts: drawn anew for each, or one policy by its own rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cfgen.errors import UsageError
from cfgen.memory.autograd import GraphCache
from cfgen.memory.build import build_memory
from cfgen.memory.paged import PagedMemory
from cfgen.memory.policy import Policy
from cfgen.model.generator import Generator
from cfgen.ops.select import TORCH
from cfgen.train.context_forcing.scripts import Script
from cfgen.train.training_memory import (
    MemorySettings,
    TrainingAdmission,
    draw_policy,
    training_memory,
)


@dataclass(frozen=True, slots=True)
class RolloutMemory:
    """An empty memory, and what is told the number of each chunk before it begins, if anything."""

    memory: PagedMemory
    on_chunk: Callable[[int], None] | None = None


class Memories(Protocol):
    """Makes the memory of a rollout."""

    def __call__(
        self,
        script: Script,
        generator: Generator,
        latents: tuple[int, int, int],
        rng: np.random.Generator,
    ) -> RolloutMemory:
        """A memory for films of a script, of so many latent frames, rows and columns."""


@dataclass(frozen=True, slots=True)
class DrawnMemories:
    """One of several policies a rollout, admission by chance; see `training_memory`."""

    settings: MemorySettings

    def __call__(
        self,
        script: Script,
        generator: Generator,
        latents: tuple[int, int, int],
        rng: np.random.Generator,
    ) -> RolloutMemory:
        """See `Memories`."""
        chunks = len(script.shots)
        policy = draw_policy(self.settings, rng, chunks)
        admission = TrainingAdmission.drawn(self.settings, rng, script.starts, chunks)

        def on_chunk(chunk: int) -> None:
            admission.chunk = chunk

        return RolloutMemory(training_memory(policy, admission, generator, latents), on_chunk)


@dataclass(frozen=True, slots=True)
class OwnMemories:
    """A policy as renders have it, which decides on the keys of the one film of a rollout."""

    policy: Policy

    def __call__(
        self,
        script: Script,
        generator: Generator,
        latents: tuple[int, int, int],
        rng: np.random.Generator,
    ) -> RolloutMemory:
        """See `Memories`.

        Raises:
            UsageError: there are several films, for which one decision would be made.
        """
        films = len(script.prompts[0])
        if films > 1 and self.policy.admission is not None:
            raise UsageError(
                f"memory {self.policy.policy} decides on each film by itself, got a batch of "
                f"{films}",
                "set batch to 1, and micro_batches to more",
            )
        g, (frames, *size) = generator.geometry, latents
        memory = build_memory(
            self.policy,
            GraphCache(g.num_layers, generator.device),
            TORCH,
            latent_frames=frames,
            head_dim=g.head_dim,
            grid=g.grid(*size),
        )
        return RolloutMemory(memory)
