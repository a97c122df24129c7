"""One layer's table of policy `compressed`: levels of memory, newest to oldest, of rising patches.

What leaves a level is encoded again, from its latents, with the patch of the next one. Which frame
stands in which page follows from how many there are; what has no page yet, or is to be renewed, is
named by `settle` once a chunk is committed.

Where chunks are made from the end of a clip, the past is what plays after them. Frames are numbered
as they are made then, too: those of a chunk from its last one back, so that the newest frame is
always the one next to what is made next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cfgen.memory.commit_reads import narrowed
from cfgen.memory.page_sizes import WHOLE, Patch
from cfgen.memory.protocols import (
    Admission,
    Encoding,
    Pass,
    Scalars,
    Slot,
    VisibleSlot,
    pairs_of,
    slots_of,
    whole,
)

GAP, FIRST_GAP = 2, 3
"""Most chunks of the clip's length that are left free between the sink and a chunk that is made
from the end, and before the first of those. Source: FramePack demo_gradio.py @ 97fe5db
(`latent_paddings`)."""


class Level(NamedTuple):
    """A stretch of the past.

    Attributes:
        frames: Latent frames in it; None for all that are older.
        patch: What a token of its pages stands for; a page holds `patch[0]` latent frames.
    """

    frames: int | None
    patch: Patch

    def pages(self, frames: int) -> int:
        """Most pages of it where there are so many frames at most."""
        held = frames if self.frames is None else min(self.frames, frames)
        return -(-max(0, held) // self.patch[0])


def merged(levels: Sequence[Level]) -> list[Level]:
    """Neighbours of one patch as one level: nothing changes where one becomes the other."""
    found: list[Level] = []
    for level in levels:
        if found and found[-1].patch == level.patch:
            newer, frames = found.pop().frames, level.frames
            together = None if newer is None or frames is None else newer + frames
            level = level._replace(frames=together)
        found.append(level)
    return found


class CompressedTable:
    """One layer's table.

    Args:
        levels: From the newest to the oldest, the first of whole frames; without the chunk.
        sink: First latent frames of the clip, which stay as they were committed.
        reordered: Whether positions are counted back from the chunk, which always has the same,
            and the sink has the first; else they are those of the clip.
        renew: Whether pages are written again when pages older than they are have changed.
        commit_reads: See `commit_reads.narrowed`.
        inverted_frames: Latent frames of a clip whose chunks, but for the sink, are made from its
            end; positions are reordered, and those of the past lie behind the chunk. None where
            chunks are made from the start.
    """

    spare_pages = 0
    steps = 1
    biased = False

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        sink: int = 0,
        reordered: bool = False,
        renew: bool = True,
        commit_reads: str = "all",
        inverted_frames: int | None = None,
    ) -> None:
        self.levels = merged(levels)
        self._sink_size, self._renew, self._commit_reads = sink, renew, commit_reads
        depth = sum(level.frames or 0 for level in self.levels)
        self.capacity = sink + sum(level.pages(depth) for level in self.levels)
        self._chunk_at = sink + depth if reordered or inverted_frames is not None else None
        self._inverted_frames, self._chunk = inverted_frames, 0
        self._sink: list[Slot] = []
        self._held: list[list[Slot]] = [[] for _ in self.levels]
        self._starts: list[int] = []
        self._oldest = self._total = 0
        self._own = self._open = 0
        self._is_encoding = False

    def evict(self, frames: int) -> None:
        """Nothing: what must go has gone when the chunk before was settled."""

    def append_chunk(self, start: int, pages: list[int], copies: list[int]) -> None:
        """The chunk stands behind the newest level."""
        self._held[0] += map(Slot, self._as_played(range(start, start + len(pages))), pages)
        self._starts.append(start)
        self._total, self._own = start, len(pages)
        self._stand(len(pages))

    def inspects_keys(self, pass_: Pass) -> bool:
        """Never: this policy does not look at keys."""
        return False

    @property
    def admission(self) -> Admission:
        """None: nothing is ever admitted."""
        return Admission(allowed=False, update_reference=False)

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """Sink and levels, the oldest first, as far as the one that is written now."""
        levels = list(zip(self.levels, self._held, strict=True))[self._open :]
        shown = [
            VisibleSlot(slot, self._place(slot.frame, level.patch[0]))
            for level, held in reversed(levels)
            for slot in held
        ]
        at_start = self._chunk_at is not None
        sink = [
            VisibleSlot(slot, i if at_start else slot.frame) for i, slot in enumerate(self._sink)
        ]
        if not pass_.commit or self._is_encoding:
            return [*sink, *shown]
        fast = len(self._held[0])
        return narrowed([*sink, *shown], self._commit_reads, fast=fast, current=self._own)

    @property
    def is_inverted(self) -> bool:
        """See `protocols.CompressingTable`."""
        return self._inverted_frames is not None

    def _as_played(self, frames: Sequence[int]) -> Sequence[int]:
        """Rising numbers of frames in the order in which a pass has them."""
        return frames[::-1] if self.is_inverted else frames

    def _stand(self, frames: int) -> None:
        """Have the next chunk of so many latent frames stand where it does from the end of a clip.

        It leaves room for what plays between the sink and it, as far as the network knows such. A
        last frame that is given is a chunk, too: where chunks have one frame, it is the first.
        Source: FramePack demo_gradio.py @ 97fe5db (`latent_padding_size`).
        """
        if self._inverted_frames is None:
            return
        left = max(0, self._inverted_frames - self._total - frames) // frames
        is_first = self._total - self._sink_size < frames
        self._chunk = frames
        self._chunk_at = self._sink_size + min(left, FIRST_GAP if is_first else GAP) * frames

    def _place(self, frame: int, span: int) -> int:
        """The temporal position of the first of `span` latent frames in a page of no sink."""
        if self._chunk_at is None:
            return frame
        if self.is_inverted:
            return self._chunk_at + self._chunk - (frame + span - self._total)
        return self._chunk_at + frame - self._total

    def commit(self, admitted: bool) -> None:
        """The chunk is part of the past."""
        self._held[0].sort()
        self._total += self._own
        self._stand(self._own)

    def settle(self) -> list[Encoding]:
        """See `protocols.CompressingTable`."""
        first = self._held[0]
        while first and first[0].frame < self._sink_size:
            self._sink.append(first.pop(0))
        named: list[Encoding] = []
        stale = False
        last = len(self.levels) - 1
        layout = self._layout()
        self._starts = [start for start in self._starts if layout[0] and start > layout[0][0]]
        for number, wanted in reversed(list(enumerate(layout))):
            held, now = self._held[number], set(wanted)
            kept = [slot for slot in held if slot.frame in now]
            there = {slot.frame for slot in kept}
            begin = next((i for i, frame in enumerate(wanted) if frame not in there), len(wanted))
            if stale and self._renew and number < last:
                begin = 0
            again = wanted[begin:]
            self._held[number] = [slot for slot in kept if slot.frame not in set(again)]
            stale = stale or bool(again) or len(kept) < len(held)
            named += self._passes(number, again)
        return named

    def _layout(self) -> list[list[int]]:
        """The first latent frame of each page of each level, as it is to be."""
        begin, end = max(self._oldest, self._sink_size), self._total
        layout = []
        for level in self.levels:
            span, count = level.patch[0], level.pages(end - begin)
            layout.append([end - span * (count - i) for i in range(count)])
            end = begin if level.frames is None else end - level.frames
        return layout

    def _passes(self, number: int, frames: list[int]) -> list[Encoding]:
        """How pages of a level are encoded: together, and whole frames in the chunks they were."""
        if not frames:
            return []
        patch = self.levels[number].patch
        inner = [start for start in self._starts if start > frames[0]] if patch == WHOLE else []
        borders = [frames[0], *inner, frames[-1] + 1]
        absent = max(0, max(self._oldest, self._sink_size) - frames[0])
        parts = zip(borders, borders[1:], strict=False)
        return [
            Encoding(number, patch, tuple(f for f in frames if begin <= f < end), absent)
            for begin, end in parts
        ]

    def begin_encoding(self, encoding: Encoding, pages: Sequence[int]) -> None:
        """See `protocols.CompressingTable`."""
        self._open, self._own = encoding.level, len(pages)
        self._is_encoding = True
        self._held[encoding.level] += map(Slot, self._as_played(encoding.frames), pages)

    def end_encoding(self) -> None:
        """See `protocols.CompressingTable`."""
        self._held[self._open].sort()
        self._open, self._is_encoding = 0, False

    def forget(self, newest: int) -> None:
        """Drop pages that hold anything between the sink and the newest."""
        self._oldest = max(self._oldest, self._total - newest)
        self._held = [[s for s in held if s.frame >= self._oldest] for held in self._held]

    def rewind(self, reach: int, total: int) -> int:
        """Drop the newest level; or all, if all of the clip is there in whole frames."""
        window = self._held[0]
        count = min(reach, len(window))
        if reach >= total == len(self._sink) + len(window) and not any(self._held[1:]):
            self._sink, count = [], total
        del window[max(0, len(window) - count) :]
        self._total = total - count
        self._starts = [start for start in self._starts if start < self._total]
        return count

    def slots(self) -> list[Slot]:
        """Sink and levels, the oldest first."""
        return [*self._sink, *(slot for held in reversed(self._held) for slot in held)]

    def state(self) -> Scalars:
        """Slots, which frames they are of, and where chunks began."""
        return {
            "sink": pairs_of(self._sink),
            "levels": [pairs_of(held) for held in self._held],
            "starts": list(self._starts),
            "oldest": self._oldest,
            "total": self._total,
        }

    def restore(self, scalars: Mapping[str, object]) -> None:
        """Restore a state that `state` returned."""
        levels, starts = scalars["levels"], scalars["starts"]
        if not isinstance(levels, list) or not isinstance(starts, list):
            raise TypeError("levels and starts must be lists")
        if len(levels) != len(self.levels):
            raise ValueError(f"the state has {len(levels)} levels, the table {len(self.levels)}")
        self._sink, self._held = slots_of(scalars["sink"]), [slots_of(held) for held in levels]
        self._starts = [whole(start) for start in starts]
        self._oldest, self._total = whole(scalars["oldest"]), whole(scalars["total"])
