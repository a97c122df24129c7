"""Policy `window`: the first frames stay (sink), and the newest; as large as the clip it is `full`.

The window counts sink, past and current chunk together.
Source: Self-Forcing wan/modules/causal_model.py @ 33593df (absolute positions), LongLive v1.0 @
e52d9ef (`use_infinite_attention`: positions are slot numbers), Self Gradient Forcing @ ba16e1b
(arXiv 2607.20368; positions at the top of those that were trained).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from cfgen.errors import Problem
from cfgen.fields import Natural, Positive, check
from cfgen.memory.commit_reads import CommitReads, commit_problems, narrowed
from cfgen.memory.policy import Storage, WholeFrames
from cfgen.memory.protocols import Admission, Pass, Scalars, Slot, VisibleSlot, pairs_of, slots_of
from cfgen.memory.transitions import Transition

Positions = Literal["absolute", "relative", "top"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FullMemory(WholeFrames):
    """Keep every latent frame; memory grows with the clip.

    Attributes:
        commit_reads: What the commit pass may attend to: all; its newest part (fast: no sink of
            earlier chunks, no key frames); or the newest K latent frames, without key frames.
        kv_cache: How the KV cache is stored.
    """

    VARIANTS: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    policy: Literal["full"] = "full"
    commit_reads: CommitReads = "all"
    kv_cache: Storage = "auto"

    def __post_init__(self) -> None:
        check(self)

    @property
    def grows(self) -> bool:
        """It does."""
        return True

    @property
    def admission(self) -> None:
        """Nothing is chosen: everything stays."""

    def capacity(self, latent_frames: int) -> int:
        """The whole clip."""
        return latent_frames

    def readable(self, latent_frames: int, chunk: int) -> int:
        """All that is kept."""
        return self.capacity(latent_frames)

    def table(self, latent_frames: int) -> WindowTable:
        """A window that is never full."""
        return WindowTable(latent_frames, commit_reads=self.commit_reads)

    @property
    def recaches(self) -> int:
        """None: all of a long clip at once would be too much."""
        return 0

    def refuses(self, transition: Transition) -> str | None:
        """What commits again all that is kept."""
        if transition != "recache":
            return None
        return (
            "memory full keeps the whole film, and would have to commit it again at once; choose "
            "another transition or memory"
        )

    def problems(self, *, chunk: int, guidance: float, snapshot: str) -> Iterable[Problem]:
        """A commit pass must read its chunk."""
        return commit_problems(self.commit_reads, chunk=chunk)


class NewestFrames(WholeFrames):
    """What policies have in common that keep the first frames of a clip and the newest `size`."""

    __slots__ = ()

    VARIANTS: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    size: int

    @property
    def grows(self) -> bool:
        """It does not."""
        return False

    @property
    def admission(self) -> None:
        """Nothing is admitted: the newest frames stay."""

    def capacity(self, latent_frames: int) -> int:
        """What is kept, or the clip where that is shorter."""
        return min(self.size, latent_frames)

    def refuses(self, transition: Transition) -> str | None:
        """Nothing."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowMemory(NewestFrames):
    """Keep the first frames and the latest ones.

    Attributes:
        sink: Latent frames kept from the start of the clip.
        size: Latent frames kept, the sink and the current chunk included.
        positions: Temporal positions: of the clip; of the slot in the window; or (top) of the clip
            up to the last of `trained`, where the newest frames then stay, behind a gap.
        trained: Latent frames of the clips that the model was trained on, for `top`.
        global_sink: Whether a shot that begins with `recache` keeps the sink as it was committed,
            unless the window still holds the clip from its start.
        commit_reads: What the commit pass may attend to: all; its newest part (fast: no sink of
            earlier chunks, no key frames); or the newest K latent frames, without key frames.
        kv_cache: How the KV cache is stored.
    """

    policy: Literal["window"] = "window"
    sink: Natural = 3
    size: Positive = 21
    positions: Positions = "relative"
    trained: Positive = 21
    global_sink: bool = True
    commit_reads: CommitReads = "all"
    kv_cache: Storage = "auto"

    def __post_init__(self) -> None:
        check(self)

    def readable(self, latent_frames: int, chunk: int) -> int:
        """All that is kept."""
        return self.capacity(latent_frames)

    def table(self, latent_frames: int) -> WindowTable:
        """One layer's table."""
        return WindowTable(
            self.size,
            sink=self.sink,
            positions=self.positions,
            trained=self.trained,
            commit_reads=self.commit_reads,
            global_sink=self.global_sink,
        )

    @property
    def recaches(self) -> int:
        """The window."""
        return self.size

    def problems(self, *, chunk: int, guidance: float, snapshot: str) -> Iterable[Problem]:
        """A window must have room for a chunk beside its sink, and positions for all of it."""
        yield from commit_problems(self.commit_reads, chunk=chunk)
        if self.positions == "top" and self.size > self.trained:
            reason = (
                f"must be {self.trained} at most with positions: top, which are those of the "
                f"{self.trained} latent frames in memory.trained, got {self.size}"
            )
            yield Problem(key="memory.size", reason=reason)
        if self.size < self.sink + chunk:
            reason = f"must hold the sink of {self.sink} and a chunk of {chunk}, got {self.size}"
            yield Problem(key="memory.size", reason=reason)


def in_a_row(slots: Sequence[Slot], end: int) -> list[VisibleSlot]:
    """Slots one after another, the last of them right before position `end`."""
    return [VisibleSlot(slot, end - len(slots) + i) for i, slot in enumerate(slots)]


class WindowTable:
    """One layer's table.

    Args:
        size: latent frames kept, sink and current chunk included.
        sink: first latent frames of the clip that always stay.
        positions: `absolute`: a page sits at its frame number; `relative`: at its slot number;
            `top`: the sink at its slot numbers, the others one after another, so that the newest
            sits at its frame number, but never beyond `trained` - 1.
        trained: latent frames whose positions the model knows, `size` at least; for `top`.
        commit_reads: see `commit_reads.narrowed`.
        global_sink: whether `rewind` keeps a sink that lies before all other slots.
    """

    spare_pages = 0
    steps = 1
    biased = False

    def __init__(
        self,
        size: int,
        *,
        sink: int = 0,
        positions: Positions = "absolute",
        trained: int = 21,
        commit_reads: str = "all",
        global_sink: bool = True,
    ) -> None:
        self.capacity = size
        self._sink = sink
        self._global_sink = global_sink
        self._positions, self._trained = positions, trained
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
        """All slots; in a commit pass those that it may read."""
        placed = list(map(VisibleSlot, self._slots, self._places()))
        if not pass_.commit:
            return placed
        fast = len(placed) - self._sink
        return narrowed(placed, self._commit_reads, fast=fast, current=self._current)

    def _places(self) -> Iterable[int]:
        """The temporal position of each slot."""
        match self._positions:
            case "absolute":
                return [slot.frame for slot in self._slots]
            case "relative":
                return range(len(self._slots))
            case "top":
                sink = min(self._sink, len(self._slots))
                end = min(self._slots[-1].frame + 1, self._trained)
                return [*range(sink), *range(end - (len(self._slots) - sink), end)]

    def commit(self, admitted: bool) -> None:
        """Nothing is left to settle."""

    def forget(self, newest: int) -> None:
        """Drop what lies between the sink and the newest."""
        del self._slots[self._sink : max(self._sink, len(self._slots) - newest)]

    def rewind(self, reach: int, total: int) -> int:
        """Drop all but, if it is to be kept, the sink; if all of the clip is there, that too."""
        # Source: LongLive v1.0 pipeline/interactive_causal_inference.py @ e52d9ef. It computes the
        # newest `size` frames, of which the first `sink` are neither kept nor read: not so here.
        if reach >= total and total <= self.capacity:
            self._slots = []
            return total
        kept = self._sink if self._global_sink else 0
        del self._slots[kept:]
        return min(reach, self.capacity - kept, total - kept)

    def slots(self) -> list[Slot]:
        """Sink, then the rest by age."""
        return list(self._slots)

    def state(self) -> Scalars:
        """The slots."""
        return {"slots": pairs_of(self._slots)}

    def restore(self, scalars: Mapping[str, object]) -> None:
        """Restore a state that `state` returned."""
        self._slots = slots_of(scalars["slots"])
