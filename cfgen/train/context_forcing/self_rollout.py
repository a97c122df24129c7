"""The student's own rollout, without gradients, and a record of it that can be replayed.

The chunks before the targets are denoised in full (clean context policy); a target leaves the
few-step schedule at a step drawn for it, where it is to be taught.
Source: arXiv 2602.06028 section 3; the exits are Self-Forcing's.

Axis letters: B batch, F latent frames, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cfgen.errors import UsageError
from cfgen.memory.paged import PagedMemory, PagedView
from cfgen.memory.protocols import Pass
from cfgen.model.generator import Conditioning, Generator
from cfgen.rollout.loop import commit_chunk, predict_flow
from cfgen.rollout.schedule import FewStepSchedule
from cfgen.train.context_forcing.replay import Part, Read, Reads

Committed = Literal["exit", "full"]
"""What memory keeps of a target: how it was at its exit (self-gradient forcing), or denoised in
full (Context Forcing)."""

Draw = Callable[[int, int], Tensor]
"""Noise [B, F, C, h, w] of a chunk and a step."""


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What is kept of a chunk.

    Attributes:
        start: its first latent frame.
        noisy: input of its exit pass, [B, F, C, h, w].
        level: noise level of that pass.
        x0: the clean chunk as that pass predicts it.
        committed: what the commit pass read.
        exit_reads: what the exit pass read from memory.
        commit_reads: what the commit pass did.
    """

    start: int
    noisy: Tensor
    level: float
    x0: Tensor
    committed: Tensor
    exit_reads: Reads
    commit_reads: Reads

    @property
    def frames(self) -> range:
        """Its latent frames."""
        return range(self.start, self.start + self.committed.shape[1])

    def commit_part(self, text: Conditioning) -> Part:
        """The commit pass."""
        level = self.committed.new_zeros(self.committed.shape[:2], dtype=torch.float64)
        return Part(self.start, self.committed, level, [text], self.commit_reads)

    def exit_part(self, text: Conditioning) -> Part:
        """The exit pass."""
        level = torch.full_like(self.noisy[:, :, 0, 0, 0], self.level, dtype=torch.float64)
        return Part(self.start, self.noisy, level, [text], self.exit_reads)


def rollout_chunks(step: int, first: int, last: int, grow: int, rng: np.random.Generator) -> int:
    """Draw the length of a rollout: evenly from `first` up to a horizon that grows to `last`.

    The horizon grows linearly over the first `grow` steps.
    """
    share = min(1.0, step / grow) if grow else 1.0
    return int(rng.integers(first, first + int(share * (last - first)) + 1))


def draw_exits(steps: int, targets: int, rng: np.random.Generator, *, shared: bool) -> list[int]:
    """Draw the step at which each target leaves the schedule: one for all, or each its own."""
    drawn = rng.integers(steps, size=1 if shared else targets)
    return [int(step) for step in np.broadcast_to(drawn, targets)]


@torch.no_grad()
def self_rollout(
    generator: Generator,
    memory: PagedMemory,
    schedule: FewStepSchedule,
    prompts: Sequence[Conditioning],
    draw: Draw,
    exits: Sequence[int],
    *,
    committed: Committed = "exit",
    on_chunk: Callable[[int], None] | None = None,
) -> list[ChunkRecord]:
    """Roll out as many chunks as there are prompts; the last `len(exits)` are the targets.

    Args:
        generator: the student.
        memory: an empty one.
        schedule: noise levels of a chunk.
        prompts: of each chunk.
        draw: where noise comes from.
        exits: the step at which each target leaves the schedule.
        committed: what memory keeps of a target.
        on_chunk: told the number of each chunk before it begins.

    Raises:
        UsageError: the policy copies features of denoising passes, so that they cannot be replayed.
    """
    if not memory.replayable:
        raise UsageError(
            "memory variant release decides in every pass and copies what that pass computed: "
            "training cannot replay it",
            "use variant paper or cfgen",
        )
    last = len(schedule.sigmas) - 1
    records: list[ChunkRecord] = []
    for chunk, text in enumerate(prompts):
        if on_chunk is not None:
            on_chunk(chunk)
        target = chunk - (len(prompts) - len(exits))
        exit_step = exits[target] if target >= 0 else last
        in_full = target < 0 or committed == "full"
        noise = draw(chunk, 0)
        view = memory.begin(noise.shape[1])
        x = noise
        for step in range(last + 1 if in_full else exit_step + 1):
            level = schedule.sigmas[step]
            flow = predict_flow(generator, x, level, text, view, step=step)
            x0 = schedule.clean(x, flow, step)
            if step == exit_step:
                noisy, x0_at_exit = x, x0
            if step < last:
                fresh = draw(chunk, step + 1) if schedule.renoise == "fresh" else None
                x = schedule.next(x0, flow, step, fresh)
        start = records[-1].start + records[-1].committed.shape[1] if records else 0
        reads = (_reads(view, Pass(exit_step)), _reads(view, Pass(last + 1, commit=True)))
        commit_chunk(generator, memory, view, x0, text, step=last + 1)
        sigma = schedule.sigmas[exit_step]
        records.append(ChunkRecord(start, noisy, sigma, x0_at_exit, x0, *reads))
    return records


def _reads(view: PagedView, pass_: Pass) -> Reads:
    """What a pass of a chunk reads in each layer."""
    return [
        [Read(each.slot.frame, each.position) for each in view.chunk.visible_slots(layer, pass_)]
        for layer in range(len(view.chunk.tables))
    ]
