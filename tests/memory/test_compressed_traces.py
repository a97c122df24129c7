"""What each chunk reads of a compressed past, and what is encoded after it: the golden texts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pytest

from cfgen.memory.compressed import CompressedMemory
from cfgen.memory.compressed_table import CompressedTable
from cfgen.memory.protocols import Encoding, Pass, VisibleSlot
from tests.golden.cases import FOLDER

FAR = CompressedMemory()
FRAMEPACK = CompressedMemory(
    sink=1,
    levels=("1:1", "2:2", "16:4"),
    page="cube",
    rotary="pooled",
    layout="reordered",
)
CASES = {
    "far_1": (FAR, ["past", "window"], [1] * 19),
    "far_3": (FAR, ["past", "window"], [3] * 9),
    "framepack_9": (FRAMEPACK, ["start", "4x", "2x", "1x"], [1, 9, 9, 9, 9, 9]),
    "framepack_3": (FRAMEPACK, ["start", "4x", "2x", "1x"], [3] * 8),
}
"""Policy, words for the sink (if there is one) and levels, the oldest first, and chunks."""


def lines(name: str) -> list[str]:
    text = (FOLDER / "policy" / f"compressed_{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def run(first: int, last: int) -> str:
    return f"{first}-{last}" if last > first else str(first)


class Trace:
    """A table that is driven without a model; its pages tell the level that they stand in."""

    def __init__(self, policy: CompressedMemory) -> None:
        table = policy.table(10**6)
        assert isinstance(table, CompressedTable)
        self.table, self.sink = table, policy.sink
        self._pages = itertools.count()
        self._level_of: dict[int, int] = {}

    def chunk(self, start: int, frames: int) -> tuple[list[str], list[str]]:
        """What it reads of each level, the oldest first, the chunk last; what is encoded then."""
        table = self.table
        table.append_chunk(start, self._take(frames, 0), [])
        shown = table.visible_slots(Pass(0), admitted=False)
        assert table.visible_slots(Pass(4, commit=True), admitted=False) == shown
        past, own = shown[:-frames], shown[-frames:]
        whole = [each for each in past if self._level_of[each.slot.page] == 0]
        sink = sum(each.slot.frame < self.sink for each in whole)
        levels = [self._words(past[:sink], 1)] if self.sink else []
        for number, level in reversed(list(enumerate(table.levels))):
            held = [p for p in past[sink:] if self._level_of[p.slot.page] == number]
            levels.append(self._words(held, level.patch[0]))
        table.commit(False)
        encoded = [self._encode(each, start + frames) for each in table.settle()]
        return [*levels, self._words(own, 1)], encoded

    def _take(self, count: int, level: int) -> list[int]:
        pages = list(itertools.islice(self._pages, count))
        self._level_of |= dict.fromkeys(pages, level)
        return pages

    def _encode(self, encoding: Encoding, total: int) -> str:
        table, frames = self.table, encoding.frames
        table.begin_encoding(encoding, self._take(len(frames), encoding.level))
        shown = [each.slot.frame for each in table.visible_slots(Pass(4, commit=True), False)]
        assert tuple(shown[-len(frames) :]) == frames
        assert shown[self.sink :] == sorted(shown[self.sink :]), (
            "it reads what is older, and itself"
        )
        table.end_encoding()
        first, last = frames[0] + encoding.absent, frames[-1] + encoding.patch[0] - 1
        assert last < total
        return f"{encoding.patch[1]}:{run(first, last)}"

    def _words(self, placed: Sequence[VisibleSlot], span: int) -> str:
        """Pages of one frame as a run, others each by itself."""
        if not placed:
            return "-"
        first, last = placed[0], placed[-1]
        if span == 1:
            frames = [each.slot.frame for each in placed]
            times = [each.position - first.position for each in placed]
            assert frames == [first.slot.frame + time for time in times]
            return f"{run(first.slot.frame, last.slot.frame)}@{first.position}"
        words = []
        for each in placed:
            begin, end = each.slot.frame, each.slot.frame + span
            absent = max(0, self.sink - begin)
            zeros = f"({absent})" if absent else ""
            words.append(f"{run(begin + absent, end - 1)}{zeros}@{each.position}")
        return " ".join(words)


@pytest.mark.parametrize("name", CASES)
def test_trace(name: str) -> None:
    policy, words, chunks = CASES[name]
    rows, trace, start = lines(name), Trace(policy), 0
    assert len(rows) == len(chunks)
    for number, (row, frames) in enumerate(zip(rows, chunks, strict=True)):
        read, encoded = trace.chunk(start, frames)
        named = zip([*words, "made"], read, strict=True)
        parts = " ; ".join(f"{word}= {told}" for word, told in named)
        assert row == f"chunk={number} {parts} ; then= {' '.join(encoded) or '-'}"
        start += frames


def test_all_traces_are_played() -> None:
    there = {path.stem for path in (FOLDER / "policy").iterdir() if "compressed" in path.stem}
    assert there == {f"compressed_{name}" for name in CASES}
    assert all(re.fullmatch(r"chunk=\d+ .*", line) for name in CASES for line in lines(name))
