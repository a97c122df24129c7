"""The memory of a student's rollouts: drawn anew for each, or one policy by its own rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cfgen.errors import UsageError
from cfgen.memory.paged import PagedMemory
from cfgen.memory.policy import Policy
from cfgen.model.generator import Generator
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


Memories = Callable[[Script, Generator, tuple[int, int, int], np.random.Generator], RolloutMemory]
"""Makes the memory of a rollout, for films of a script and latents of so many frames, rows and
columns; what it draws, it draws by the last argument."""


def drawn_memories(settings: MemorySettings) -> Memories:
    """One of several policies a rollout, admission by chance; see `training_memory`."""

    def make(
        script: Script,
        generator: Generator,
        latents: tuple[int, int, int],
        rng: np.random.Generator,
    ) -> RolloutMemory:
        chunks = len(script.shots)
        policy = draw_policy(settings, rng, chunks)
        admission = TrainingAdmission.drawn(settings, rng, script.starts, chunks)

        def on_chunk(chunk: int) -> None:
            admission.chunk = chunk

        return RolloutMemory(training_memory(policy, admission, generator, latents), on_chunk)

    return make


def own_memories(policy: Policy) -> Memories:
    """A policy as renders have it, which decides on the keys of the one film of a rollout.

    Raises:
        UsageError: from the maker, for several films, for which one decision would be made.
    """

    def make(
        script: Script, generator: Generator, latents: tuple[int, int, int], _: np.random.Generator
    ) -> RolloutMemory:
        films = len(script.prompts[0])
        if films > 1 and policy.admission is not None:
            raise UsageError(
                f"memory {policy.policy} decides on each film by itself, got a batch of {films}",
                "set batch to 1, and micro_batches to more",
            )
        return RolloutMemory(training_memory(policy, None, generator, latents))

    return make
