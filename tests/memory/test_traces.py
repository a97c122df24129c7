"""The slot traces of the released code and of the paper, line by line.

Of each line everything is compared but `eq8`: positions of the paper's equation 8, which leave gaps
while memory fills; ours are contiguous.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from cfgen.memory.protocols import Pass
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.memory.slow_fast_release import ReleaseTable
from tests.golden.cases import FOLDER
from tests.memory.spied import Read, Spied

SINK, SLOW, FAST, CHUNK, PASSES = 3, 12, 6, 3, 5
SIZES = {"sink": SINK, "slow": SLOW, "fast": FAST}


class Segments(NamedTuple):
    """A line's three lists: sink, slow, the rest."""

    sink: list[str]
    slow: list[str]
    rest: list[str]

    @classmethod
    def parse(cls, text: str) -> Segments:
        return cls(*(part.split() for part in text.split("|")))

    @property
    def flat(self) -> list[str]:
        return [*self.sink, *self.slow, *self.rest]


def lines(name: str) -> list[dict[str, str]]:
    """Every line as its fields; a line with anything unknown in it fails."""
    fields = r"(\w+)=\s*([^;=]*?)(?=\s+\w+=|\s*;\s*|$)"
    found = []
    for line in (FOLDER / "policy" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        found.append(dict(re.findall(fields, line)))
        assert not re.sub(fields, "", line).strip(" ;"), line
    return found


def written(read: list[Read]) -> list[str]:
    return [f"{r.frame}.{r.written}" for r in read]


def positions(read: list[Read]) -> list[int]:
    return [r.position for r in read]


@pytest.mark.parametrize("case", ["always", "alternate"])
def test_release_trace(case: str) -> None:
    rows = lines(f"release_{case}.txt")
    assert len(rows) == 45 * PASSES
    spied = Spied(lambda: ReleaseTable(**SIZES), pages=22)
    for row in rows:
        chunk, index = int(row["chunk"]), int(row["pass"])
        rolled = 0
        if index == 0:
            before = spied.memory.frames(0)
            spied.begin(CHUNK)
            rolled = int(before != spied.memory.frames(0)[:-CHUNK])
        admitted, keys_before = spied.admitted, key_frames(spied)
        spied.below = row["below"] == "1"
        read = spied.run(Pass(index, commit=index == PASSES - 1))
        segments = Segments.parse(row["slots"])
        assert written(read) == segments.flat, row
        assert positions(read) == list(range(len(read)))
        assert spied.start == chunk * CHUNK
        assert key_frames(spied) == int(row["slow"]) == len(segments.slow)
        assert len(segments.sink) == SINK
        assert rolled == int(row["rolled"])
        assert action(spied, keys_before, spied.admitted > admitted, row) == row["action"]
        if index == PASSES - 1:
            spied.commit()
    assert {row["action"].partition("@")[0] for row in rows} >= {"too-early", "already", "fill"}


def key_frames(spied: Spied) -> int:
    """Key frames, the current chunk's among them."""
    return min(SLOW, spied.table.key_frames + spied.admitted)


def action(spied: Spied, keys_before: int, admitted: bool, row: dict[str, str]) -> str:
    """What the table did, in the words of the trace."""
    keys = key_frames(spied)
    if admitted:
        return f"fill@{SINK + keys - 1}" if keys > keys_before else f"shift@{SINK + SLOW - 1}"
    if spied.start < SINK + CHUNK:
        return "too-early"
    return "already" if spied.admitted else "none"


@pytest.mark.parametrize("case", ["always", "alternate"])
def test_paper_trace(case: str) -> None:
    rows = lines(f"paper_copy_{case}.txt")
    assert len(rows) == 45
    spied = Spied(lambda: SlowFastTable(**SIZES, interval=2, against="previous"))
    for row in rows:
        segments = Segments.parse(row["view"])
        asked = spied.asked
        reads = spied.chunk(CHUNK, [row["below"] == "1"] * PASSES)
        frames = [int(frame) for frame in segments.flat]
        for index, read in enumerate(reads):
            current = [f"{frame}.{index}" for frame in frames[-CHUNK:]]
            assert written(read) == [f"{f}.{PASSES - 1}" for f in frames[:-CHUNK]] + current, row
            assert positions(read) == list(range(len(read)))
        assert spied.asked - asked == int(row["evaluated"])
        slow_after = [int(frame) for frame in row["slow_after"].split()]
        after = spied.memory.frames(0)
        assert after[SINK : len(after) - len(segments.rest)] == slow_after
        assert change([int(f) for f in segments.slow], slow_after, row) == row["action"]
        assert (spied.admitted == 1) == row["action"].startswith("admit")
    assert any("evict" in row["action"] for row in rows) == (case == "always")


def change(before: list[int], after: list[int], row: dict[str, str]) -> str:
    """How slow memory changed, in the words of the trace."""
    if before == after:
        return "none"
    assert after[-1] == int(row["chunk"]) * CHUNK
    dropped = [frame for frame in before if frame not in after]
    return f"admit-evict-{dropped[0]}" if dropped else "admit"


def test_all_traces_are_played() -> None:
    found = Path(FOLDER / "policy").iterdir()
    names = {path.name for path in found if not path.name.startswith("compressed_")}
    played = {
        f"{kind}_{case}.txt"
        for kind in ("release", "paper_copy")
        for case in ("always", "alternate")
    }
    assert names == played
