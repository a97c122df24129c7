"""Digests of files, kept between runs and never stale."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cfgen.checkpoint.identify import digests
from cfgen.errors import CheckpointError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(digests, "WORTH_KEEPING", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights.bin"
    path.write_bytes(b"one, two, three")
    digests._digest.cache_clear()
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_digest_is_kept_between_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert digests.digest(file) == sha256(file)
    digests._digest.cache_clear()
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
    assert digests.digest(file) == sha256(file)


def test_a_changed_file_is_read_again(file: Path) -> None:
    before = digests.digest(file)
    stamp = file.stat()
    file.write_bytes(b"one, two, seven")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert digests.digest(file) == sha256(file) != before


@pytest.mark.parametrize("content", [b"", b"no digest", b"\xff\xfe", b"0" * 63])
def test_a_damaged_entry_counts_as_absent(file: Path, content: bytes) -> None:
    digests.digest(file)
    (kept,) = (digests.cache_folder() / "digests").iterdir()
    kept.write_bytes(content)
    digests._digest.cache_clear()
    assert digests.digest(file) == sha256(file)


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert digests.digest(file) == sha256(file)


def test_small_files_leave_nothing_behind(file: Path) -> None:
    file.write_bytes(b"small")
    digests.digest(file)
    assert not digests.cache_folder().exists()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        digests.digest(tmp_path / "nothing")
