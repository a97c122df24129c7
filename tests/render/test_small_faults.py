"""What a process that was killed between two writes leaves is nothing, or a whole render."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cfgen.errors import OutputRefused
from cfgen.files.writing import part_of, sha256_of
from cfgen.renderer.branch import retry_from
from cfgen.runs.contents import JOURNAL, clear, make_empty
from cfgen.runs.folder import RunFolder, RunRecord, write_record
from cfgen.runs.journal import ChunkLine, Journal, VideoLine
from cfgen.runs.recovery import audit
from cfgen.timeline import make_plan
from cfgen.units import bytes_words
from cfgen.video.output import holds_render, refuse_existing, sidecar_of
from cfgen.video.shape import VideoShape

RECORD = RunRecord(output="a.mp4", overwrite=False, config={}, fingerprint={}, created="")
LINE = ChunkLine(index=0, frames=9, frames_sha256="a", latents_sha256="b", elapsed_s=1.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_empty(tmp_path / "a.cfgen")
    return tmp_path / "a.cfgen"


def test_a_branch_killed_before_its_record_is_nothing(path: Path) -> None:
    Journal(part_of(path / JOURNAL), run=RECORD.digest).rewrite([LINE])
    assert not holds_render(path)
    refuse_existing(path.parent / "a.mp4", path)
    clear(path)


def test_a_branch_killed_after_its_record_is_whole(path: Path) -> None:
    Journal(part_of(path / JOURNAL), run=RECORD.digest).rewrite([LINE])
    write_record(path, RECORD)
    assert holds_render(path)
    for _ in range(2):
        assert RunFolder(path).journal.lines == [LINE]
    assert not part_of(path / JOURNAL).exists()


def test_a_part_never_replaces_a_journal(path: Path) -> None:
    Journal(path / JOURNAL, run=RECORD.digest).rewrite([LINE])
    Journal(part_of(path / JOURNAL), run=RECORD.digest).rewrite([])
    write_record(path, RECORD)
    assert RunFolder(path).journal.lines == [LINE]


def _finished(path: Path, *, damage: bool) -> RunFolder:
    video = path.parent / "a.mp4"
    video.write_bytes(b"film")
    digest = sha256_of(video)
    sidecar_of(video).write_text(f'{{"facts": {{"sha256": "{digest}"}}}}')
    end = VideoLine(frames=9, nbytes=4, sha256=digest, frames_sha256="a")
    Journal(path / JOURNAL, run=RECORD.digest).rewrite([LINE, end])
    write_record(path, RECORD)
    if damage:
        video.write_bytes(b"fi1m")
    return RunFolder(path)


def test_a_resume_that_is_killed_leaves_the_right_to_replace_the_damaged_film(path: Path) -> None:
    folder = _finished(path, damage=True)
    plan = make_plan(9 / 16, VideoShape(width=64, height=64), segment_chunks=1)
    assert folder.finished is None
    folder.require_replaceable()
    folder.journal.rewrite(audit(folder, plan).journal)  # and killed
    RunFolder(path).require_replaceable()


def test_retry_refuses_before_it_changes_anything(path: Path) -> None:
    folder = _finished(path, damage=False)
    content = (path / JOURNAL).read_bytes()
    (path / JOURNAL).write_bytes(content[:-10])  # the line of the video is lost
    folder = RunFolder(path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    @dataclasses.dataclass
    class Point:
        folder: RunFolder

    with pytest.raises(OutputRefused, match=r"a\.mp4"):
        next(retry_from(Point(folder), RECORD))  # type: ignore[arg-type]
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("nbytes", "words"), [(0, "0 B"), (812, "812 B"), (41_000, "41.0 kB"), (1.4e6, "1.4 MB")]
)
def test_small_sizes_are_told(nbytes: float, words: str) -> None:
    assert bytes_words(nbytes) == words
