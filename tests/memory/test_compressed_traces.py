"""What each chunk reads of a compressed past, and what is encoded after it: the golden texts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

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
INVERTED = replace(FRAMEPACK, layout="inverted")
CASES = {
    "far_1": (FAR, ["past", "window"], [1] * 19),
    "far_3": (FAR, ["past", "window"], [3] * 9),
    "framepack_9": (FRAMEPACK, ["start", "4x", "2x", "1x"], [1, 9, 9, 9, 9, 9]),
    "framepack_3": (FRAMEPACK, ["start", "4x", "2x", "1x"], [3] * 8),
    "inverted_9": (INVERTED, ["start", "4x", "2x", "1x"], [1, *[9] * 6]),
    "inverted_3": (INVERTED, ["start", "4x", "2x", "1x"], [1, 1, *[3] * 5]),
}
"""Policy, words for the sink (if there is one) and levels, the oldest first, and chunks."""


def lines(name: str) -> list[str]:
    text = (FOLDER / "policy" / f"compressed_{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def run(first: int, last: int) -> str:
    return f"{first}-{last}" if last > first else str(first)


class Trace:
    """A table that is driven without a model; its pages tell the level that they stand in.

    Frames are told by their numbers in the film, of so many `frames`.
    """

    def __init__(self, policy: CompressedMemory, frames: int = 10**6) -> None:
        table = policy.table(frames)
        assert isinstance(table, CompressedTable)
        self.table, self.sink = table, policy.sink
        self._pages = itertools.count()
        self._level_of: dict[int, int] = {}
        self._frames = frames if policy.order == "inverted" else None

    def film(self, first: int, last: int) -> str:
        """Frames by the numbers of the table as a run of frames of the film."""
        if self._frames is None or last == 0:
            return run(first, last)
        return run(self._frames - last, self._frames - first)

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
        own = tuple(shown[-len(frames) :])
        assert own == (frames if self._frames is None else frames[::-1])
        older = shown[self.sink : -len(frames)]
        assert [*older, *frames] == sorted([*older, *frames]), "it reads what is older, and itself"
        table.end_encoding()
        first, last = frames[0] + encoding.absent, frames[-1] + encoding.patch[0] - 1
        assert last < total
        return f"{encoding.patch[1]}:{self.film(first, last)}"

    def _words(self, placed: Sequence[VisibleSlot], span: int) -> str:
        """Pages of one frame as a run, others each by itself."""
        if not placed:
            return "-"
        first = placed[0]
        if span == 1:
            frames = [each.slot.frame for each in placed]
            times = [each.position - first.position for each in placed]
            ahead = 1 if self._frames is None else -1
            assert frames == [first.slot.frame + ahead * time for time in times]
            return f"{self.film(min(frames), max(frames))}@{first.position}"
        words = []
        for each in sorted(placed, key=lambda each: each.position):
            begin, end = each.slot.frame, each.slot.frame + span
            absent = max(0, self.sink - begin)
            zeros = f"({absent})" if absent else ""
            words.append(f"{self.film(begin + absent, end - 1)}{zeros}@{each.position}")
        return " ".join(words)


@pytest.mark.parametrize("name", CASES)
def test_trace(name: str) -> None:
    policy, words, chunks = CASES[name]
    rows, trace, start = lines(name), Trace(policy, sum(chunks)), 0
    assert len(rows) == len(chunks)
    for number, (row, frames) in enumerate(zip(rows, chunks, strict=True)):
        read, encoded = trace.chunk(start, frames)
        named = zip([*words, "made"], read, strict=True)
        parts = " ; ".join(f"{word}= {told}" for word, told in named)
        assert row == f"chunk={number} {parts} ; then= {' '.join(encoded) or '-'}"
        start += frames


def test_the_room_before_a_chunk_is_that_of_framepack() -> None:
    for count in range(1, 9):
        usual = list(reversed(range(count)))
        expected = usual if count <= 4 else [3, *[2] * (count - 3), 1, 0]
        for at_end in (0, 1):
            trace = Trace(INVERTED, 1 + at_end + 9 * count)
            for start in range(1 + at_end):
                trace.chunk(start, 1)
            for number, room in enumerate(expected):
                read, _ = trace.chunk(1 + at_end + 9 * number, 9)
                assert read[-1].endswith(f"@{1 + 9 * room}")


def test_all_traces_are_played() -> None:
    there = {path.stem for path in (FOLDER / "policy").iterdir() if "compressed" in path.stem}
    assert there == {f"compressed_{name}" for name in CASES}
    assert all(re.fullmatch(r"chunk=\d+ .*", line) for name in CASES for line in lines(name))
