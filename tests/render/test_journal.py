"""Whatever happens to a journal, no line is believed that was not written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cfgen.runs.journal import ChunkLine, Journal, SegmentLine, SessionLine, VideoLine
from cfgen.runs.records import with_checksum

LINES = [
    SessionLine(chunk=0, began="2026-01-01T00:00:00+00:00", host="h", pid=3),
    *(
        ChunkLine(
            index=i,
            frames=9 + 3 * (i > 0),
            frames_sha256=f"{i:064}",
            latents_sha256=f"{i + 5:064}",
            elapsed_s=0.25 * i,
            memory={"slots": 3.0 * i, "nbytes": 10},
        )
        for i in range(3)
    ),
    SegmentLine(index=0, frames=33, nbytes=1000, sha256="a" * 64, frames_sha256="b" * 64),
    VideoLine(frames=33, nbytes=1000, sha256="c" * 64, frames_sha256="b" * 64),
]


def written(path: Path) -> bytes:
    path.unlink(missing_ok=True)
    journal = Journal(path, run="run")
    for i, line in enumerate(LINES):
        journal.append(line, sync=i % 2 == 0)
    return path.read_bytes()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    journal = Journal(path, run="run")
    assert journal.lines == LINES
    assert journal.problem is None
    assert [line.index for line in journal.of(ChunkLine)] == [0, 1, 2]
    assert Journal(tmp_path / "none", run="run").lines == []


def test_a_journal_from_before_tiles_were_noted_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    check, lines = "run", []
    for line in written(path).splitlines():
        facts = {key: value for key, value in json.loads(line).items() if key != "check"}
        for name in ("tile", "on_cpu"):
            facts.pop(name, None)
        lines.append(with_checksum(facts, before=check))
        check = str(lines[-1]["check"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal = Journal(path, run="run")
    assert journal.problem is None
    assert journal.lines == LINES
    assert [(line.tile, line.on_cpu) for line in journal.of(ChunkLine)] == [(0, False)] * 3
    journal.append(replace(LINES[1], index=3, tile=16, on_cpu=True))
    again = Journal(path, run="run")
    assert (again.of(ChunkLine)[3].tile, again.of(ChunkLine)[3].on_cpu) == (16, True)


def test_lines_may_be_rewritten_and_followed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    journal = Journal(path, run="run")
    journal.rewrite(LINES[:3])
    journal.append(LINES[3])
    assert Journal(path, run="run").lines == LINES[:4]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_damaged_journal_ends_before_the_damage(tmp_path_factory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    content = bytearray(written(path))
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    at = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip", "zero", "drop line", "swap lines"]))
    line = sum(end <= at for end in ends)
    if kind == "cut":
        content = content[:at]
    elif kind == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "zero":
        content[at:] = bytes(len(content) - at)
    else:
        pieces = bytes(content).splitlines(keepends=True)
        if kind == "drop line":
            del pieces[line]
        elif line + 1 < len(pieces):
            pieces[line], pieces[line + 1] = pieces[line + 1], pieces[line]
        content = bytearray(b"".join(pieces))
    path.write_bytes(content)
    journal = Journal(path, run="run")
    assert journal.lines == LINES[: len(journal.lines)]
    if kind not in ("cut", "drop line", "swap lines"):
        assert len(journal.lines) == line
        assert journal.problem is not None
    assert len(journal.lines) >= min(line, len(LINES) - 1)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "ignore")))
def test_anything_may_stand_in_the_file(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "anything.jsonl"
    path.write_bytes(content)
    assert Journal(path, run="run").lines == []
