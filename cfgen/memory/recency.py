"""Policy `recency`: a window in which older history counts less; training-free.

Denoising passes take something off the scores of frames before the previous chunk. The sink sits
right before the oldest frame that is read beside it.
Source: Recency Forcing (arXiv 2609.19729, appendix B), by the description of the settings and the
formula in Commit Forcing's integrations/recency_forcing @ 5ed6592.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from cfgen.errors import Problem
from cfgen.fields import Natural, Positive, Range, check
from cfgen.memory.commit_reads import CommitReads, commit_problems, narrowed, newest_of
from cfgen.memory.policy import Storage
from cfgen.memory.protocols import Pass, VisibleSlot
from cfgen.memory.window import NewestFrames, WindowTable, in_a_row

SHARPNESS = 0.1
"""The exponent of step t, counted from 1, is this times 2^t."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecencyMemory(NewestFrames):
    """Keep the first frames and the latest ones, and heed older history less.

    Attributes:
        sink: Latent frames kept from the start of the clip.
        size: Latent frames kept, the sink and the current chunk included.
        reads: Newest latent frames that denoising passes read beside the sink, the current chunk
            included.
        strength: What is taken off the scores of frames that are `reach` chunks before the
            previous chunk, or more.
        reach: Chunks over which the scores fall.
        positions: Temporal positions of the newest frames: of the clip, or (top) of the clip up to
            the last of `trained`; the frames before them and the sink follow without a gap.
        trained: Latent frames of the clips that the model was trained on, for `top`.
        commit_reads: What the commit pass may attend to: all; its newest part (fast: no sink of
            earlier chunks, no key frames); or the newest K latent frames, without key frames.
        kv_cache: How the KV cache is stored.
    """

    policy: Literal["recency"] = "recency"
    sink: Natural = 3
    size: Positive = 24
    reads: Positive = 18
    strength: Annotated[float, Range(low=0, high=100)] = 4.0
    reach: Positive = 4
    positions: Literal["absolute", "top"] = "absolute"
    trained: Positive = 21
    commit_reads: CommitReads = "all"
    kv_cache: Storage = "auto"

    def __post_init__(self) -> None:
        check(self)

    def readable(self, latent_frames: int, chunk: int) -> int:
        """The sink and what is read beside it, or what a commit pass reads."""
        read = max(self.sink + self.reads, newest_of(self.commit_reads))
        return min(read, self.capacity(latent_frames))

    def table(self, latent_frames: int) -> RecencyTable:
        """One layer's table."""
        return RecencyTable(
            self.size,
            sink=self.sink,
            reads=self.reads,
            strength=self.strength,
            reach=self.reach,
            trained=self.trained if self.positions == "top" else None,
            commit_reads=self.commit_reads,
        )

    @property
    def recaches(self) -> int:
        """What a chunk can read of itself."""
        return self.reads

    def problems(self, *, chunk: int, guidance: float, snapshot: str) -> Iterable[Problem]:
        """What is read must hold a chunk and be kept, and with `top` have positions."""
        yield from commit_problems(self.commit_reads, chunk=chunk)
        if not chunk <= self.reads <= self.size - self.sink:
            reason = (
                f"must hold a chunk of {chunk}, and be {self.size - self.sink} at most, what "
                f"memory.size keeps beside the sink, got {self.reads}"
            )
            yield Problem(key="memory.reads", reason=reason)
        if self.positions == "top" and self.sink + self.reads > self.trained:
            reason = (
                f"must be {self.trained - self.sink} at most with positions: top, which are those "
                f"of the {self.trained} latent frames in memory.trained, got {self.reads}"
            )
            yield Problem(key="memory.reads", reason=reason)
        if self.positions == "top" and newest_of(self.commit_reads) > self.trained:
            reason = f"must be newest:{self.trained} at most with positions: top"
            yield Problem(key="memory.commit_reads", reason=reason)


class RecencyTable(WindowTable):
    """One layer's table.

    Args:
        size: latent frames kept, sink and current chunk included.
        sink: first latent frames of the clip that always stay.
        reads: newest frames read beside the sink.
        strength: what is taken off at most.
        reach: chunks over which scores fall.
        trained: latent frames whose positions the model knows; None for all.
        commit_reads: see `commit_reads.narrowed`.
    """

    steps = 4
    biased = True

    def __init__(
        self,
        size: int,
        *,
        sink: int,
        reads: int,
        strength: float = 4.0,
        reach: int = 4,
        trained: int | None = None,
        commit_reads: str = "all",
    ) -> None:
        super().__init__(size, sink=sink, commit_reads=commit_reads)
        self._reads, self._strength, self._reach = reads, strength, reach
        self._highest = trained

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """The sink and the newest; in a commit pass those of all that it may read, unbiased."""
        newest = self._slots[-1].frame
        end = newest + 1 if self._highest is None else min(newest + 1, self._highest)
        if pass_.commit and (count := newest_of(self._commit_reads)):
            oldest = newest - max(count, self._current)
            return in_a_row([slot for slot in self._slots if slot.frame > oldest], end)
        sink, rest = (
            self._slots[: self._sink],
            self._slots[self._sink :][-max(self._reads, self._current) :],
        )
        placed = in_a_row([*sink, *rest], end)
        if pass_.commit:
            return narrowed(placed, self._commit_reads, fast=len(rest), current=self._current)
        biased = (each._replace(bias=self._bias(each.slot.frame, pass_)) for each in placed)
        return [*placed[: len(sink)], *list(biased)[len(sink) :]]

    def _bias(self, frame: int, pass_: Pass) -> float:
        """What is added to the scores of a frame: the less, the later the step and the older it is.

        -strength dt^gamma, where dt = min(1, (d - 1) / reach) of the d-th chunk before the current
        one, and gamma = SHARPNESS 2^t in step t.
        """
        start = self._slots[-self._current].frame
        chunks = -(-(start - frame) // self._current)
        share = min(1.0, max(0, chunks - 1) / self._reach)
        return -self._strength * share ** (SHARPNESS * 2 ** (pass_.index + 1)) if share else 0.0
