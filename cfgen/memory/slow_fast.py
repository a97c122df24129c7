"""Policy `slow_fast`: sink, slow memory of surprising key frames, fast memory of the newest frames.

A slot's number is its temporal position. `SlowFastTable` holds the rules of the Context Forcing
paper and of models trained by cfgen, where clean keys decide at the commit pass. `ReleaseTable`
holds the bookkeeping of the published weights, where any pass may decide.
Source: arXiv 2602.06028 sections 3-4, equations 7 and 8 (slow range corrected).
"""

from __future__ import annotations

from collections.abc import Mapping

from cfgen.memory.protocols import (
    Admission,
    Pass,
    Scalars,
    Slot,
    VisibleSlot,
    pairs_of,
    slots_of,
    whole,
)


class SlowFastTable:
    """One layer's table; decisions fall at the commit pass and are readable from the next chunk on.

    Nothing is copied: pages are immutable once they are committed.

    Args:
        sink: first latent frames of the clip, never dropped.
        slow: most key frames; the oldest goes first.
        fast: newest latent frames, the current chunk included.
        interval: only every `interval`-th chunk is considered.
        min_gap: chunks from one admission to the next, at least.
        against: the reference is the `previous` chunk (paper) or the last `admitted` one (cfgen).
        commit_reads: `all`, or `fast`: the commit pass reads fast memory only.
    """

    copies = 0

    def __init__(
        self,
        *,
        sink: int,
        slow: int,
        fast: int,
        interval: int = 1,
        min_gap: int = 1,
        against: str = "admitted",
        commit_reads: str = "all",
    ) -> None:
        self.capacity = sink + slow + fast
        self._sizes = (sink, slow, fast)
        self._interval, self._min_gap = interval, min_gap
        self._against, self._commit_reads = against, commit_reads
        self._sink: list[Slot] = []
        self._slow: list[Slot] = []
        self._fast: list[Slot] = []
        self._current: list[Slot] = []
        self._chunk = -1
        self._admitted_chunk = 0

    def evict(self, frames: int) -> None:
        """Drop the oldest of fast memory."""
        sink, _, fast = self._sizes
        entering = max(0, frames - (sink - len(self._sink)))
        excess = len(self._fast) + entering - fast
        if excess > 0:
            del self._fast[:excess]

    def append_chunk(self, start: int, pages: list[int], copies: list[int]) -> None:
        """Fill the sink first, then fast memory."""
        self._chunk += 1
        self._current = [Slot(start + i, page) for i, page in enumerate(pages)]
        room = self._sizes[0] - len(self._sink)
        self._sink += self._current[:room]
        self._fast += self._current[room:]

    def inspects_keys(self, pass_: Pass) -> bool:
        """Commit passes only: clean keys decide."""
        return pass_.commit

    @property
    def admission(self) -> Admission:
        """Whether the chunk's first latent frame is admitted; the first chunk of all is not."""
        is_open = (
            self._chunk > 0
            and self._current[0].frame >= self._sizes[0] + len(self._current)
            and self._chunk % self._interval == 0
            and self._chunk - self._admitted_chunk >= self._min_gap
        )
        return Admission(is_open, update_reference=self._chunk == 0 or self._against == "previous")

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """Sink, slow, fast at contiguous positions; what this chunk admits is not yet seen."""
        placed = [VisibleSlot(slot, i) for i, slot in enumerate(self.slots())]
        if pass_.commit and self._commit_reads == "fast":
            return placed[-max(len(self._fast), len(self._current)) :]
        return placed

    def commit(self, admitted: bool) -> None:
        """An admitted frame joins slow memory, which drops its oldest."""
        if admitted:
            self._slow.append(self._current[0])
            self._admitted_chunk = self._chunk
            del self._slow[: max(0, len(self._slow) - self._sizes[1])]

    def slots(self) -> list[Slot]:
        """Sink, slow by age, fast by age."""
        return [*self._sink, *self._slow, *self._fast]

    def state(self) -> Scalars:
        """The three lists, the number of the last chunk and of the last that was admitted."""
        lists = {"sink": self._sink, "slow": self._slow, "fast": self._fast}
        held: Scalars = {name: pairs_of(slots) for name, slots in lists.items()}
        return held | {"chunk": self._chunk, "admitted_chunk": self._admitted_chunk}

    def restore(self, scalars: Mapping[str, object]) -> None:
        """Be as the table was when it gave this state."""
        self._sink, self._slow, self._fast = (
            slots_of(scalars[name]) for name in ("sink", "slow", "fast")
        )
        self._chunk = whole(scalars["chunk"])
        self._admitted_chunk = whole(scalars["admitted_chunk"])


class ReleaseTable:
    """One layer's table as the released weights expect it.

    Every pass compares its keys with those of the pass before it; the first surprising pass of a
    chunk copies the chunk's first latent frame, as that pass computed it, and reads the copy at
    once. Until key frames replace them, early frames stay where they were written.
    """

    copies = 1

    def __init__(self, *, sink: int, slow: int, fast: int, commit_reads: str = "all") -> None:
        self.capacity = sink + slow + fast
        self._sink, self._slow, self._fast = sink, slow, fast
        self._commit_reads = commit_reads
        self._table: list[Slot] = []
        self._key_frames = 0
        self._current = 0
        self._copy = Slot(-1, -1)

    def evict(self, frames: int) -> None:
        """When the table is full, drop the oldest of the fast slots."""
        excess = len(self._table) + frames - self.capacity
        if excess > 0:
            del self._table[self._sink + self._slow : self._sink + self._slow + excess]

    def append_chunk(self, start: int, pages: list[int], copies: list[int]) -> None:
        """Append the chunk."""
        self._table += [Slot(start + i, page) for i, page in enumerate(pages)]
        self._current = len(pages)
        self._copy = Slot(start, copies[0])

    def inspects_keys(self, pass_: Pass) -> bool:
        """Every pass."""
        return True

    @property
    def admission(self) -> Admission:
        """Admit at most once a chunk, never before the second chunk after the sink."""
        is_open = self._slow > 0 and self._copy.frame >= self._sink + self._current
        return Admission(is_open, update_reference=True)

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """All slots, each at its slot number."""
        table, key_frames = self._with_copy() if admitted else (self._table, self._key_frames)
        placed = [VisibleSlot(slot, i) for i, slot in enumerate(table)]
        if pass_.commit and self._commit_reads == "fast":
            rest = len(placed) - self._sink - key_frames
            return placed[-max(min(self._fast, rest), self._current) :]
        return placed

    def commit(self, admitted: bool) -> None:
        """The copy stays where the passes after it read it."""
        if admitted:
            self._table, self._key_frames = self._with_copy()

    def _with_copy(self) -> tuple[list[Slot], int]:
        """The table and its key frames once the copy is in it."""
        begin, end = self._sink, self._sink + self._slow
        if self._key_frames < self._slow:
            place = begin + self._key_frames
            return [*self._table[:place], self._copy, *self._table[place + 1 :]], (
                self._key_frames + 1
            )
        kept = self._table[begin + 1 : end]
        return [*self._table[:begin], *kept, self._copy, *self._table[end:]], self._key_frames

    def slots(self) -> list[Slot]:
        """Sink, key frames, the rest."""
        return list(self._table)

    def state(self) -> Scalars:
        """Slots, and how many are key frames."""
        return {"slots": pairs_of(self._table), "key_frames": self._key_frames}

    def restore(self, scalars: Mapping[str, object]) -> None:
        """Be as the table was when it gave this state."""
        self._table = slots_of(scalars["slots"])
        self._key_frames = whole(scalars["key_frames"])

    @property
    def key_frames(self) -> int:
        """Key frames held."""
        return self._key_frames
