"""Policy `slow_fast`: sink, slow memory of surprising key frames, fast memory of the newest frames.

A slot's number is its temporal position. `SlowFastTable` holds the rules of the Context Forcing
paper and of models trained by cfgen, where clean keys decide at the commit pass. `ReleaseTable`
holds the bookkeeping of the published weights, where any pass may decide.
Source: arXiv 2602.06028 sections 3-4, equations 7 and 8 (slow range corrected).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from cfgen.memory.base import Pass, Placed, Scalars, Slot, pairs_of, slots_of, whole

D = TypeVar("D")


class SlowFastTable(Generic[D]):
    """One layer's table; decisions fall at the commit pass and are readable from the next chunk on.

    Args:
        sink: first latent frames of the clip, never dropped.
        slow: most key frames; the oldest goes first.
        fast: newest latent frames, the current chunk included.
        decide: whether keys are surprising beside the reference.
        interval: only every `interval`-th chunk is considered.
        min_gap: chunks from one admission to the next, at least.
        against: the reference is the `previous` chunk (paper) or the last `admitted` one (cfgen).
        commit_reads: `all`, or `fast`: the commit pass reads fast memory only.
    """

    def __init__(
        self,
        *,
        sink: int,
        slow: int,
        fast: int,
        decide: Callable[[D, D], bool],
        interval: int = 1,
        min_gap: int = 1,
        against: str = "admitted",
        commit_reads: str = "all",
    ) -> None:
        self.capacity = sink + slow + fast
        self._sizes = (sink, slow, fast)
        self._decide = decide
        self._interval, self._min_gap = interval, min_gap
        self._against, self._commit_reads = against, commit_reads
        self._sink: list[Slot] = []
        self._slow: list[Slot] = []
        self._fast: list[Slot] = []
        self._current: list[Slot] = []
        self._pending: list[Slot] = []
        self._reference: D | None = None
        self._chunk = -1
        self._admitted_chunk = 0

    def evict(self, frames: int) -> None:
        """Drop the oldest of fast memory."""
        sink, _, fast = self._sizes
        entering = max(0, frames - (sink - len(self._sink)))
        excess = len(self._fast) + entering - fast
        if excess > 0:
            del self._fast[:excess]

    def enter(self, start: int, pages: list[int]) -> None:
        """Fill the sink first, then fast memory."""
        self._chunk += 1
        self._current = [Slot(start + i, page) for i, page in enumerate(pages)]
        room = self._sizes[0] - len(self._sink)
        self._sink += self._current[:room]
        self._fast += self._current[room:]

    def watches(self, pass_: Pass) -> bool:
        """Commit passes only: clean keys decide."""
        return pass_.commit

    def observe(self, pass_: Pass, keys: D, copy: Callable[[int], int]) -> bool:
        """Admit the chunk's first latent frame if its keys are surprising.

        Nothing is copied: pages are immutable.
        """
        sink = self._sizes[0]
        first = self._current[0]
        eligible = (
            self._reference is not None
            and first.frame >= sink + len(self._current)
            and self._chunk % self._interval == 0
            and self._chunk - self._admitted_chunk >= self._min_gap
        )
        admitted = eligible and self._reference is not None and self._decide(self._reference, keys)
        if admitted:
            self._pending = [first]
            self._admitted_chunk = self._chunk
        if admitted or self._reference is None or self._against == "previous":
            self._reference = keys
        return admitted

    def visible(self, pass_: Pass) -> list[Placed]:
        """Sink, slow, fast at contiguous positions; what this chunk admits is not yet seen."""
        placed = [Placed(slot, i) for i, slot in enumerate(self.slots())]
        if pass_.commit and self._commit_reads == "fast":
            return placed[-max(len(self._fast), len(self._current)) :]
        return placed

    def commit(self) -> None:
        """An admitted frame joins slow memory, which drops its oldest."""
        self._slow += self._pending
        del self._slow[: max(0, len(self._slow) - self._sizes[1])]
        self._pending = []

    def slots(self) -> list[Slot]:
        """Sink, slow by age, fast by age."""
        return [*self._sink, *self._slow, *self._fast]

    def state(self) -> tuple[Scalars, D | None]:
        """The three lists, the number of the last chunk and of the last that was admitted."""
        lists = {"sink": self._sink, "slow": self._slow, "fast": self._fast}
        held: Scalars = {name: pairs_of(slots) for name, slots in lists.items()}
        numbers = {"chunk": self._chunk, "admitted_chunk": self._admitted_chunk}
        return held | numbers, self._reference

    def restore(self, scalars: Mapping[str, object], reference: D | None) -> None:
        """Be as the table was when it gave this state."""
        self._sink, self._slow, self._fast = (
            slots_of(scalars[name]) for name in ("sink", "slow", "fast")
        )
        self._chunk = whole(scalars["chunk"])
        self._admitted_chunk = whole(scalars["admitted_chunk"])
        self._reference = reference


class ReleaseTable(Generic[D]):
    """One layer's table as the released weights expect it.

    Every pass compares its keys with those of the pass before it; the first surprising pass of a
    chunk copies the chunk's first latent frame, as that pass computed it, and reads the copy at
    once. Until key frames replace them, early frames stay where they were written.
    """

    def __init__(
        self,
        *,
        sink: int,
        slow: int,
        fast: int,
        decide: Callable[[D, D], bool],
        commit_reads: str = "all",
    ) -> None:
        self.capacity = sink + slow + fast
        self._sink, self._slow, self._fast = sink, slow, fast
        self._decide = decide
        self._commit_reads = commit_reads
        self._table: list[Slot] = []
        self._key_frames = 0
        self._newest: int | None = None
        self._start = 0
        self._current = 0
        self._reference: D | None = None

    def evict(self, frames: int) -> None:
        """When the table is full, drop the oldest of the fast slots."""
        excess = len(self._table) + frames - self.capacity
        if excess > 0:
            del self._table[self._sink + self._slow : self._sink + self._slow + excess]

    def enter(self, start: int, pages: list[int]) -> None:
        """Append the chunk."""
        self._table += [Slot(start + i, page) for i, page in enumerate(pages)]
        self._start, self._current = start, len(pages)

    def watches(self, pass_: Pass) -> bool:
        """Every pass."""
        return True

    def observe(self, pass_: Pass, keys: D, copy: Callable[[int], int]) -> bool:
        """Admit at most once a chunk, never before the second chunk after the sink."""
        reference, self._reference = self._reference, keys
        closed = self._slow == 0 or self._start < self._sink + self._current
        if (
            closed
            or self._newest == self._start
            or reference is None
            or not self._decide(reference, keys)
        ):
            return False
        slot = Slot(self._start, copy(self._table[-self._current].page))
        if self._key_frames < self._slow:
            self._table[self._sink + self._key_frames] = slot
            self._key_frames += 1
        else:
            oldest = self._sink
            self._table[oldest : oldest + self._slow] = [
                *self._table[oldest + 1 : oldest + self._slow],
                slot,
            ]
        self._newest = self._start
        return True

    def visible(self, pass_: Pass) -> list[Placed]:
        """All slots, each at its slot number."""
        placed = [Placed(slot, i) for i, slot in enumerate(self._table)]
        if pass_.commit and self._commit_reads == "fast":
            rest = len(placed) - self._sink - self._key_frames
            return placed[-max(min(self._fast, rest), self._current) :]
        return placed

    def commit(self) -> None:
        """Nothing is left to settle."""

    def slots(self) -> list[Slot]:
        """Sink, key frames, the rest."""
        return list(self._table)

    def state(self) -> tuple[Scalars, D | None]:
        """Slots, how many are key frames, the chunk that was admitted last."""
        held = {"slots": pairs_of(self._table), "key_frames": self._key_frames}
        return {**held, "newest": -1 if self._newest is None else self._newest}, self._reference

    def restore(self, scalars: Mapping[str, object], reference: D | None) -> None:
        """Be as the table was when it gave this state."""
        self._table = slots_of(scalars["slots"])
        self._key_frames = whole(scalars["key_frames"])
        newest = whole(scalars["newest"])
        self._newest = None if newest < 0 else newest
        self._reference = reference

    @property
    def key_frames(self) -> int:
        """Key frames held."""
        return self._key_frames
