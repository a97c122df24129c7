"""Policy `slow_fast`, variant `release`: the bookkeeping that the published weights expect.

Any pass may decide, not only the commit pass. Source: the released Context Forcing code, as its
behaviour was recorded (arXiv 2602.06028).
"""

from __future__ import annotations

from collections.abc import Mapping

from cfgen.memory.commit_reads import narrowed
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


class ReleaseTable:
    """One layer's table as the released weights expect it.

    Every pass compares its keys with those of the pass before it; the first surprising pass of a
    chunk copies the chunk's first latent frame, as that pass computed it, and reads the copy at
    once. Until key frames replace them, early frames stay where they were written.
    """

    spare_pages = 1
    steps = 1
    biased = False

    def __init__(
        self,
        *,
        sink: int,
        slow: int,
        fast: int,
        commit_reads: str = "all",
        global_sink: bool = True,
        keep_slow: bool = True,
    ) -> None:
        self.capacity = sink + slow + fast
        self._global_sink, self._keep_slow, self._again = global_sink, keep_slow, False
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
        is_open = (
            self._slow > 0 and not self._again and self._copy.frame >= self._sink + self._current
        )
        return Admission(is_open, update_reference=True)

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """All slots, each at its slot number."""
        table, key_frames = self._with_copy() if admitted else (self._table, self._key_frames)
        placed = [VisibleSlot(slot, i) for i, slot in enumerate(table)]
        if not pass_.commit:
            return placed
        copies = range(self._sink, self._sink + key_frames)
        fast = min(self._fast, len(placed) - self._sink - key_frames)
        current = self._current
        return narrowed(placed, self._commit_reads, fast=fast, current=current, copies=copies)

    def commit(self, admitted: bool) -> None:
        """The copy stays where the passes after it read it."""
        self._again = False
        if admitted:
            self._table, self._key_frames = self._with_copy()

    def _with_copy(self) -> tuple[list[Slot], int]:
        """The table and its key frames once the copy is in it.

        Slots: [sink | slow | fast]. While slow memory is not full of key frames, its slots still
        hold early frames of the clip, and a key frame replaces the first of these where it stands.
        Later the oldest key frame goes and the others move one slot, hence one position, towards
        the sink.
        """
        begin, end = self._sink, self._sink + self._slow
        if self._key_frames < self._slow:
            place = begin + self._key_frames
            return [*self._table[:place], self._copy, *self._table[place + 1 :]], (
                self._key_frames + 1
            )
        kept = self._table[begin + 1 : end]
        return [*self._table[:begin], *kept, self._copy, *self._table[end:]], self._key_frames

    def forget(self, newest: int) -> None:
        """Drop the key frames and what lies between them and the newest."""
        rest = self._table[self._sink + self._key_frames :]
        self._table = [*self._table[: self._sink], *rest[max(0, len(rest) - newest) :]]
        self._key_frames = 0

    def rewind(self, reach: int, total: int) -> int:
        """Drop the newest frames and, if they are not to be kept, all other slots.

        Told again, frames stand as early ones do: until key frames replace them.
        """
        self._again = True
        room = self.capacity - (self._slow if self._keep_slow else 0)
        if reach >= total and total <= room:
            self._table, self._key_frames = [], 0
            return total
        kept = self._sink if self._global_sink else 0
        count = min(reach, room - kept, total - kept)
        if not self._keep_slow:
            self._table, self._key_frames = self._table[:kept], 0
        first, fixed = total - count, self._sink + self._key_frames
        early = [slot for slot in self._table[fixed:] if slot.frame < first]
        self._table = [*self._table[:fixed], *early]
        return count

    def slots(self) -> list[Slot]:
        """Sink, key frames, the rest."""
        return list(self._table)

    def state(self) -> Scalars:
        """Slots, and how many are key frames."""
        return {"slots": pairs_of(self._table), "key_frames": self._key_frames}

    def restore(self, scalars: Mapping[str, object]) -> None:
        """Restore a state that `state` returned."""
        self._table = slots_of(scalars["slots"])
        self._key_frames = whole(scalars["key_frames"])

    @property
    def key_frames(self) -> int:
        """Key frames held."""
        return self._key_frames
