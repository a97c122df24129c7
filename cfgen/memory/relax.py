"""Policy `relax`: of a long past a few frames are read, one of them chosen by keys; training-free.

A chunk reads the sink, `history` frames out of the middle, the `tail` before it, and itself, one
after another and the chunk at its own numbers. The history is chosen once a chunk, for all layers,
among candidates evenly spread over the later half of what lies between sink and tail: the most
similar to the sink, less `redundancy` times the similarity to the tail. Similar is the cosine of
mean keys in the first layer, without rotation.
Source: Relax Forcing (arXiv 2603.21366), README and configs/methods/relax_forcing.yaml @ 6d2b4fa,
and what its wan/modules/causal_model.py does there.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from cfgen.errors import Problem
from cfgen.fields import Natural, Positive, Range, check
from cfgen.memory.commit_reads import CommitReads, commit_problems, narrowed, newest_of
from cfgen.memory.policy import Storage
from cfgen.memory.protocols import Pass, Slot, VisibleSlot
from cfgen.memory.window import NewestFrames, WindowTable, in_a_row

TRAINED = 21
"""Latent frames of the clips that Self Forcing and its relatives were trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RelaxMemory(NewestFrames):
    """Keep the first frames and many of the latest, and read a few of them.

    Attributes:
        sink: Latent frames kept from the start of the clip, and read.
        size: Latent frames kept, the sink and the current chunk included.
        history: Latent frames read that are chosen out of the middle.
        tail: Latent frames read that come right before the chunk.
        candidates: Latent frames that history is chosen from.
        redundancy: What similarity to the tail counts against a candidate.
        commit_reads: What the commit pass may attend to: all; its newest part (fast: no sink of
            earlier chunks, no key frames); or the newest K latent frames, without key frames.
        kv_cache: How the KV cache is stored.
    """

    policy: Literal["relax"] = "relax"
    sink: Natural = 2
    size: Positive = 120
    history: Positive = 1
    tail: Positive = 1
    candidates: Positive = 4
    redundancy: Annotated[float, Range(low=0, high=100)] = 2.0
    commit_reads: CommitReads = "all"
    kv_cache: Storage = "auto"

    def __post_init__(self) -> None:
        check(self)

    def readable(self, latent_frames: int, chunk: int) -> int:
        """A few, or what a commit pass reads."""
        read = max(
            self.sink + self.history + self.tail + chunk,
            newest_of(self.commit_reads),
        )
        return min(read, self.capacity(latent_frames))

    def table(self, latent_frames: int) -> RelaxTable:
        """One layer's table."""
        return RelaxTable(
            self.size,
            sink=self.sink,
            history=self.history,
            tail=self.tail,
            candidates=self.candidates,
            redundancy=self.redundancy,
            commit_reads=self.commit_reads,
        )

    @property
    def recaches(self) -> int:
        """As many as the models that it is for were trained on: more are not read at once."""
        return min(self.size, TRAINED)

    def problems(self, *, chunk: int, guidance: float, snapshot: str) -> Iterable[Problem]:
        """What is read must be kept."""
        yield from commit_problems(self.commit_reads, chunk=chunk)
        read = self.sink + self.history + self.tail + chunk
        if self.size < read:
            reason = (
                f"must hold the sink of {self.sink}, {self.history} of history, a tail of "
                f"{self.tail} and a chunk of {chunk}, got {self.size}"
            )
            yield Problem(key="memory.size", reason=reason)
        if self.candidates < self.history:
            reason = f"must be at least memory.history of {self.history}, got {self.candidates}"
            yield Problem(key="memory.candidates", reason=reason)


class RelaxTable(WindowTable):
    """One layer's table.

    Args:
        size: latent frames kept, sink and current chunk included.
        sink: first latent frames of the clip that always stay and are always read.
        history: frames chosen out of the middle.
        tail: frames read right before the chunk.
        candidates: frames that history is chosen from.
        redundancy: what similarity to the tail counts.
        commit_reads: see `commit_reads.narrowed`.
    """

    def __init__(
        self,
        size: int,
        *,
        sink: int = 2,
        history: int = 1,
        tail: int = 1,
        candidates: int = 4,
        redundancy: float = 2.0,
        commit_reads: str = "all",
    ) -> None:
        super().__init__(size, sink=sink, commit_reads=commit_reads)
        self._history, self._tail, self._most = history, tail, candidates
        self._redundancy = redundancy
        self._middle: list[int] | None = None

    def asked(self) -> list[list[Slot]]:
        """The sink, the tail and each candidate; nothing while all that is kept may be read."""
        sink, tail = self._slots[: self._sink], self._past[len(self._past) - self._tail :]
        alone = [[self._slots[place]] for place in self._candidates()]
        return [group for group in (sink, tail) if group] + alone if alone else []

    def choose(self, keys: Sequence[Sequence[float]]) -> None:
        """Choose the history for this chunk; with no keys all that is kept is read."""
        if not keys:
            self._middle = None
            return
        places = self._candidates()
        *references, tail = keys[: len(keys) - len(places)]
        scores = {
            place: sum(cosine(key, sink) for sink in references)
            - self._redundancy * cosine(key, tail)
            for place, key in zip(places, keys[len(keys) - len(places) :], strict=True)
        }
        best = sorted(places, key=lambda place: -scores[place])
        self._middle = sorted(best[: self._history])

    @property
    def _past(self) -> list[Slot]:
        return self._slots[: len(self._slots) - self._current]

    def _candidates(self) -> list[int]:
        """Slots that history is chosen from; none where all before the chunk may be read."""
        past = len(self._past)
        if past <= self._sink + self._history + self._tail:
            return []
        middle = past - self._sink - self._tail
        half = middle // 2
        count = min(self._most, middle - half)
        spread = {half + i * (middle - 1 - half) // count for i in range(count)}
        return [self._sink + place for place in sorted(spread)]

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """Sink, history, tail and chunk, one after another; in a commit pass what it may read."""
        newest = self._slots[-1].frame
        if pass_.commit and (count := newest_of(self._commit_reads)):
            oldest = newest - max(count, self._current)
            return in_a_row([slot for slot in self._slots if slot.frame > oldest], newest + 1)
        read = self._slots
        if self._middle is not None:
            chosen = [self._slots[place] for place in self._middle]
            read = [*self._slots[: self._sink], *chosen, *self._past[-self._tail :]]
            read += self._slots[len(self._past) :]
        placed = in_a_row(read, newest + 1)
        if not pass_.commit:
            return placed
        fast = min(len(placed) - self._sink, self._tail + self._current)
        return narrowed(placed, self._commit_reads, fast=fast, current=self._current)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """The cosine of two vectors, 0 if one is of zeros."""

    def product(x: Sequence[float], y: Sequence[float]) -> float:
        return math.fsum(map(operator.mul, x, y))

    norm = math.sqrt(product(a, a) * product(b, b))
    return product(a, b) / norm if norm else 0.0
