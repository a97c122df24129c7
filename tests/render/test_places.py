"""Places as they are: links, names with a hyphen, folders that cannot be synced, litter."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfgen.errors import BudgetError, CfgenError, OutputRefused, WriterError
from cfgen.files.writing import create_exclusive, sync_folder
from cfgen.renderer import place
from cfgen.runs.contents import clear, require_own
from cfgen.video.output import pasted, resume_command, run_of, target_of

LITTER = (
    ".DS_Store",
    "._run.json",
    ".AppleDouble",
    "Icon\r",
    "@eaDir",
    "Thumbs.db",
    "ehthumbs.db",
    "Desktop.ini",
    ".directory",
    ".nfs0000000000a1b2c3",
    ".fuse_hidden0000000100000001",
    ".smbdelete0001",
    ".syncthing.run.json.tmp",
    "~syncthing~run.json.tmp",
    ".dropbox.cache",
    ".goutputstream-ABC123",
    ".run.json.~1a2b",
    ".sync_0123.db-wal",
    ".tmp.drivedownload",
    "run.json.!sync",
    "run.json.1a2b3c4d.partial",
    ".unison.run.json.0123.unison.tmp",
    ".csync_journal.db-shm",
    ".run.json.Xy12Zq",
    ".journal-2.jsonl.aB3dE9",
    "run.json@SynoEAStream",
    ".apdisk",
    ".~lock.run.json#",
)


@pytest.mark.parametrize("name", LITTER)
@pytest.mark.parametrize("folder", [False, True])
def test_litter_makes_no_stranger_of_a_run_folder(tmp_path: Path, name: str, folder: bool) -> None:
    (tmp_path / "run.json").write_text("{}")
    if folder:
        (tmp_path / name / "inner").mkdir(parents=True)
    else:
        (tmp_path / name).write_text("x")
    require_own(tmp_path)
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "run.part.json",
        "journal.part.jsonl",
        "journal-2.0a1b2c3d.part.jsonl",
        "log.0a1b2c3d.part.txt",
        "lock.0123456789abcdef",
        "snapshots-3",
    ],
)
def test_what_a_killed_process_left_is_of_cfgen(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("half")
    require_own(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "DS_Store", "run.json.bak", ".hidden", "a.mp4", ".run.json.notes", "my.partial"],
)
def test_what_is_somebody_s_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / name).write_text("precious")
    with pytest.raises(OutputRefused, match="which is not of cfgen"):
        clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "run.json"])


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX alone")
@pytest.mark.parametrize(
    ("number", "goes_on"),
    [
        (errno.EINVAL, True),
        (errno.ENOTSUP, True),
        (errno.ENOSYS, True),
        (errno.EBADF, True),
        (errno.EIO, False),
        (errno.ENOSPC, False),
        (errno.EROFS, False),
    ],
)
def test_a_folder_that_cannot_be_synced_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, goes_on: bool
) -> None:
    assert sync_folder(tmp_path)

    def fails(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    if goes_on:
        assert not sync_folder(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            sync_folder(tmp_path)


@pytest.mark.parametrize("name", ["a.mp4", "-name.mp4", "--help.mp4", "a b.mp4", "it's.mp4"])
def test_names_in_hints_can_be_pasted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (f"cfgen -o {pasted(name)}", resume_command(run_of(Path(name)))):
        word = shlex.split(command)[-1]
        assert not word.startswith("-")
        assert Path(word).stem == Path(name).stem


@pytest.mark.parametrize("there", [True, False])
def test_an_output_that_is_a_link_means_its_target(tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "target.mp4", tmp_path / "link.mp4"
    if there:
        target.write_bytes(b"old")
    link.symlink_to(target)
    assert target_of(link) == target.resolve()


@pytest.fixture
def left(tmp_path: Path) -> Iterator[None]:
    """Whatever a place cannot do, nothing is left in it."""
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("left")
def test_a_place_that_can_all_is_told_nothing_of(tmp_path: Path) -> None:
    assert place.try_place(tmp_path) == ()


@pytest.mark.usefixtures("left")
def test_what_a_place_cannot_do_is_told_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(path: Path) -> int:
        return create_exclusive(path) if not path.exists() else os.open(path, os.O_RDWR)

    monkeypatch.setattr(place, "create_exclusive", again)
    monkeypatch.setattr(place, "sync_folder", lambda _: False)
    told = [warning.message for warning in place.try_place(tmp_path)]
    assert [words in text for words, text in zip(LACKS, told, strict=True)] == [True, True]


LACKS = ("lets two processes make one file", "cannot be told to write names down")


@pytest.mark.usefixtures("left")
@pytest.mark.parametrize(
    ("call", "number", "error"),
    [
        ("replace", errno.EEXIST, OutputRefused),
        ("replace", errno.EPERM, OutputRefused),
        ("replace", errno.ENOTSUP, OutputRefused),
        ("fsync", errno.EIO, WriterError),
        ("open", errno.EROFS, WriterError),
        ("open", errno.EACCES, WriterError),
        ("open", errno.ENOSPC, BudgetError),
        ("open", errno.EDQUOT, BudgetError),
    ],
)
def test_a_place_that_lacks_what_must_be_is_refused_before_the_model_loads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    error: type[CfgenError],
) -> None:
    real = getattr(os, call)

    def fails(*given: object, **options: object) -> int:
        if call == "open" and not (isinstance(given[1], int) and given[1] & os.O_CREAT):
            return int(real(*given, **options))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(error):
        place.try_place(tmp_path)
    monkeypatch.undo()


@pytest.mark.usefixtures("left")
def test_a_place_that_renames_without_doing_so_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", lambda _new, _old: None)
    with pytest.raises(OutputRefused, match="does not do what it says"):
        place.try_place(tmp_path)
