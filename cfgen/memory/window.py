"""Policy `window`: the first frames stay (sink), and the newest; as large as the clip it is `full`.

The window counts sink, past and current chunk together.
Source: Self-Forcing wan/modules/causal_model.py @ 33593df (absolute positions), LongLive v1.0 @
e52d9ef (`use_infinite_attention`: positions are slot numbers).
"""

from __future__ import annotations

from collections.abc import Mapping

from cfgen.memory.protocols import Admission, Pass, Scalars, Slot, VisibleSlot, pairs_of, slots_of


class WindowTable:
    """One layer's table.

    Args:
        size: latent frames kept, sink and current chunk included.
        sink: first latent frames of the clip that always stay.
        relative: positions are slot numbers; otherwise a page sits at its frame number.
        commit_reads: `all`, or `fast`: the commit pass does not read the sink.
    """

    copies = 0

    def __init__(
        self, size: int, *, sink: int = 0, relative: bool = False, commit_reads: str = "all"
    ) -> None:
        self.capacity = size
        self._sink = sink
        self._relative = relative
        self._commit_reads = commit_reads
        self._slots: list[Slot] = []
        self._current = 0

    def evict(self, frames: int) -> None:
        """Drop the oldest frames behind the sink."""
        excess = len(self._slots) + frames - self.capacity
        if excess > 0:
            del self._slots[self._sink : self._sink + excess]

    def append_chunk(self, start: int, pages: list[int], copies: list[int]) -> None:
        """Append the chunk."""
        self._slots += [Slot(start + i, page) for i, page in enumerate(pages)]
        self._current = len(pages)

    def inspects_keys(self, pass_: Pass) -> bool:
        """Never: this policy does not look at keys."""
        return False

    @property
    def admission(self) -> Admission:
        """None: nothing is ever admitted."""
        return Admission(allowed=False, update_reference=False)

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """All slots; all but the sink of earlier chunks in a commit pass that reads `fast`."""
        placed = [
            VisibleSlot(slot, i if self._relative else slot.frame)
            for i, slot in enumerate(self._slots)
        ]
        if pass_.commit and self._commit_reads == "fast":
            return placed[min(self._sink, len(placed) - self._current) :]
        return placed

    def commit(self, admitted: bool) -> None:
        """Nothing is left to settle."""

    def slots(self) -> list[Slot]:
        """Sink, then the rest by age."""
        return list(self._slots)

    def state(self) -> Scalars:
        """The slots."""
        return {"slots": pairs_of(self._slots)}

    def restore(self, scalars: Mapping[str, object]) -> None:
        """Hold these slots."""
        self._slots = slots_of(scalars["slots"])
