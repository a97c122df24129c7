"""Policy `slow_fast`: sink, slow memory of surprising key frames, fast memory of the newest frames.

A slot's number is its temporal position. `SlowFastTable` holds the rules of the Context Forcing
paper and of models trained by cfgen, where clean keys decide at the commit pass;
`slow_fast_release` those of the published weights.
Source: arXiv 2602.06028 sections 3-4, equations 7 and 8 (slow range corrected).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cfgen.errors import Problem
from cfgen.fields import Natural, Positive, Range, check
from cfgen.memory.commit_reads import CommitReads, commit_problems, narrowed
from cfgen.memory.policy import AdmissionRule, Storage, WholeFrames
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
from cfgen.memory.slow_fast_release import ReleaseTable
from cfgen.memory.transitions import Transition


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowFastMemory(WholeFrames):
    """Keep the first frames, key frames that differed enough, and the latest frames.

    Attributes:
        variant: The rule of admission: as in the released Context Forcing code, as in its paper, or
            cfgen's own (clean keys against the last admitted key frame).
        sink: Latent frames kept from the start of the clip.
        slow: Key frames kept.
        fast: Latest latent frames kept, the current chunk included.
        tau: A chunk is admitted when its keys' cosine falls below this.
        interval: Chunks between two decisions.
        min_gap: Chunks that must lie between two admitted ones.
        admits: What of an admitted chunk becomes key frames: its first latent frame, as in the
            paper, or all of it (chunk).
        admission_layers: Layers that decide together for all layers, by the mean of their cosines;
            with none, each layer decides for itself.
        global_sink: Whether a shot that begins with `recache` keeps the sink as it was committed,
            unless the clip is still there from its start.
        recache_slow: Whether such a shot keeps the key frames as they were, for identity, or clears
            them and commits more of the newest frames again, which then follow the new prompt.
        commit_reads: What the commit pass may attend to: all; its newest part (fast: no sink of
            earlier chunks, no key frames); or the newest K latent frames, without key frames.
        kv_cache: How the KV cache is stored.
    """

    # The release decides in bfloat16, where 0.95 acts as 0.947 does in float32.
    VARIANTS: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "release": {"tau": "0.947", "interval": "1", "min_gap": "0"},
        "paper": {"tau": "0.95", "interval": "2", "min_gap": "0"},
        "cfgen": {"tau": "0.95", "interval": "1", "min_gap": "1"},
    }

    policy: Literal["slow_fast"] = "slow_fast"
    variant: Literal["release", "paper", "cfgen"] = "cfgen"
    sink: Natural = 3
    slow: Natural = 12
    fast: Positive = 6
    tau: Annotated[float, Range(low=-1, high=1)] = 0.95
    interval: Positive = 1
    min_gap: Natural = 1
    admits: Literal["first", "chunk"] = "first"
    admission_layers: tuple[Natural, ...] = ()
    global_sink: bool = True
    recache_slow: Literal["keep", "clear"] = "keep"
    commit_reads: CommitReads = "all"
    kv_cache: Storage = "auto"

    def __post_init__(self) -> None:
        check(self)

    @property
    def grows(self) -> bool:
        """It does not."""
        return False

    @property
    def admission(self) -> AdmissionRule:
        """When key frames are admitted."""
        return AdmissionRule(self.tau, self.admission_layers)

    def capacity(self, latent_frames: int) -> int:
        """All three parts; key frames are copies, so a short clip can be there twice."""
        return min(self.sink + self.slow + self.fast, 2 * latent_frames)

    def readable(self, latent_frames: int, chunk: int) -> int:
        """All that is kept."""
        return self.capacity(latent_frames)

    def table(self, latent_frames: int) -> SlowFastTable | ReleaseTable:
        """One layer's table under the rule of `variant`."""
        if self.variant == "release":
            return ReleaseTable(
                sink=self.sink,
                slow=self.slow,
                fast=self.fast,
                commit_reads=self.commit_reads,
                global_sink=self.global_sink,
                keep_slow=self.recache_slow == "keep",
            )
        return SlowFastTable(
            sink=self.sink,
            slow=self.slow,
            fast=self.fast,
            interval=self.interval,
            min_gap=self.min_gap,
            admits=self.admits,
            against="previous" if self.variant == "paper" else "admitted",
            commit_reads=self.commit_reads,
            global_sink=self.global_sink,
            keep_slow=self.recache_slow == "keep",
        )

    @property
    def recaches(self) -> int:
        """What is kept, without the key frames if those stay as they are."""
        return self.sink + self.fast + (self.slow if self.recache_slow == "clear" else 0)

    def refuses(self, transition: Transition) -> str | None:
        """Nothing."""
        return None

    def problems(self, *, chunk: int, guidance: float, snapshot: str) -> Iterable[Problem]:
        """Fast memory must hold a chunk; what `release` cannot do beside."""
        yield from commit_problems(self.commit_reads, chunk=chunk)
        if self.fast < chunk:
            reason = f"must hold a chunk of {chunk}, got {self.fast}"
            yield Problem(key="memory.fast", reason=reason)
        if self.admits == "chunk" and self.slow < chunk:
            reason = f"must hold a chunk of {chunk}, which memory.admits keeps, got {self.slow}"
            yield Problem(key="memory.slow", reason=reason)
        if self.variant != "release":
            return
        if guidance != 1:
            reason = "must be 1: variant release decides in every pass, guidance doubles them"
            yield Problem(key="schedule.guidance", reason=reason)
        if self.admits != "first":
            reason = "must be first: variant release copies one latent frame of a chunk"
            yield Problem(key="memory.admits", reason=reason)
        if self.admission_layers:
            reason = "must be empty: variant release reads a decision in the layer that made it"
            yield Problem(key="memory.admission_layers", reason=reason)
        if self.recache_slow == "keep" and not self.global_sink:
            reason = "must be clear: variant release keeps key frames behind a sink that stays"
            yield Problem(key="memory.recache_slow", reason=reason)
        if snapshot == "latents":
            reason = (
                "must be full or off: variant release decides in every pass, so its memory "
                "cannot be worked out again from latents"
            )
            yield Problem(key="snapshot.mode", reason=reason)


class SlowFastTable:
    """One layer's table; decisions fall at the commit pass and are readable from the next chunk on.

    Nothing is copied: pages are immutable once they are committed.

    Args:
        sink: first latent frames of the clip, never dropped.
        slow: most key frames; the oldest goes first.
        fast: newest latent frames, the current chunk included.
        interval: only every `interval`-th chunk is considered.
        min_gap: chunks from one admission to the next, at least.
        admits: what of an admitted chunk becomes key frames, its `first` latent frame or the whole
            `chunk`.
        against: the reference is the `previous` chunk (paper) or the last `admitted` one (cfgen).
        commit_reads: see `commit_reads.narrowed`.
        global_sink: whether `rewind` keeps a sink that lies before all that is told again.
        keep_slow: whether it keeps key frames.
    """

    spare_pages = 0
    steps = 1
    biased = False

    def __init__(
        self,
        *,
        sink: int,
        slow: int,
        fast: int,
        interval: int = 1,
        min_gap: int = 1,
        admits: str = "first",
        against: str = "admitted",
        commit_reads: str = "all",
        global_sink: bool = True,
        keep_slow: bool = True,
    ) -> None:
        self.capacity = sink + slow + fast
        self._sizes = (sink, slow, fast)
        self._global_sink, self._keep_slow = global_sink, keep_slow
        self._again = self._renewed = False
        self._interval, self._min_gap = interval, min_gap
        self._admits_whole_chunks = admits == "chunk"
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
        self._chunk += not self._again
        self._current = [Slot(start + i, page) for i, page in enumerate(pages)]
        room = self._sizes[0] - len(self._sink)
        self._sink += self._current[:room]
        self._fast += self._current[room:]

    def inspects_keys(self, pass_: Pass) -> bool:
        """Commit passes only: clean keys decide."""
        return pass_.commit

    @property
    def admission(self) -> Admission:
        """Whether the chunk may be admitted; the first chunk of all may not."""
        is_open = (
            self._chunk > 0
            and not self._again
            and self._current[0].frame >= self._sizes[0] + len(self._current)
            and self._chunk % self._interval == 0
            and self._chunk - self._admitted_chunk >= self._min_gap
        )
        renews = self._chunk == 0 or self._against == "previous" or self._renewed
        return Admission(is_open, update_reference=renews)

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """Sink, slow, fast at contiguous positions; what this chunk admits is not yet seen."""
        placed = [VisibleSlot(slot, i) for i, slot in enumerate(self.slots())]
        if not pass_.commit:
            return placed
        copies = range(len(self._sink), len(self._sink) + len(self._slow))
        fast, current = len(self._fast), len(self._current)
        return narrowed(placed, self._commit_reads, fast=fast, current=current, copies=copies)

    def commit(self, admitted: bool) -> None:
        """What is admitted joins slow memory, which drops its oldest."""
        self._again = self._renewed = False
        del self._fast[: max(0, len(self._fast) - self._sizes[2])]  # more were told again at once
        if admitted:
            self._slow += self._current if self._admits_whole_chunks else self._current[:1]
            self._admitted_chunk = self._chunk
            del self._slow[: max(0, len(self._slow) - self._sizes[1])]

    def forget(self, newest: int) -> None:
        """Drop the key frames and all of fast memory but the newest."""
        self._slow = []
        del self._fast[: max(0, len(self._fast) - newest)]

    def rewind(self, reach: int, total: int) -> int:
        """Drop fast memory and, if they are not to be kept, key frames and sink."""
        sink, slow, _ = self._sizes
        room = self.capacity - (slow if self._keep_slow else 0)
        whole = reach >= total and total <= room
        if whole or not self._global_sink:
            self._sink = []
        if whole or not self._keep_slow:
            self._slow = []
        self._fast, self._again, self._renewed = [], True, not self._slow
        if whole:
            return total
        kept = sink if self._global_sink else 0
        return min(reach, room - kept, total - kept)

    def slots(self) -> list[Slot]:
        """Sink, slow by age, fast by age."""
        return [*self._sink, *self._slow, *self._fast]

    def state(self) -> Scalars:
        """The three lists, the number of the last chunk and of the last that was admitted."""
        lists = {"sink": self._sink, "slow": self._slow, "fast": self._fast}
        held: Scalars = {name: pairs_of(slots) for name, slots in lists.items()}
        return held | {"chunk": self._chunk, "admitted_chunk": self._admitted_chunk}

    def restore(self, scalars: Mapping[str, object]) -> None:
        """Restore a state that `state` returned."""
        self._sink, self._slow, self._fast = (
            slots_of(scalars[name]) for name in ("sink", "slow", "fast")
        )
        self._chunk = whole(scalars["chunk"])
        self._admitted_chunk = whole(scalars["admitted_chunk"])
