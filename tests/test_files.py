"""Files are written through no link and onto nothing of others; what is read is a regular file."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cfgen.errors import UsageError
from cfgen.files import reading, writing

posix = pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    """Whoever waits for a pipe fails, instead of the whole run of tests."""

    def hangs(*_: object) -> None:
        raise TimeoutError("it hangs")

    if os.name != "posix":
        yield
        return
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _created(path: Path) -> None:
    with writing.create(path) as file:
        file.write(b"new")


def _appended(path: Path) -> None:
    with writing.append(path) as file:
        file.write(b"new")


def _updated(path: Path) -> None:
    with writing.open_update(path) as file:
        file.write(b"new")


WRITERS: dict[str, Callable[[Path], object]] = {
    "create": _created,
    "create_exclusive": lambda path: os.close(writing.create_exclusive(path)),
    "open_append": lambda path: os.close(writing.open_append(path)),
    "append": _appended,
    "open_update": _updated,
    "write_file": lambda path: writing.write_file(path, b"new", shared=True),
    "sync_file": writing.sync_file,
}


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Refusing is well, hanging is not, though a `TimeoutError` is an `OSError`."""
    try:
        yield
    except TimeoutError:
        raise
    except OSError:
        pass


@posix
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard"])
def test_what_a_link_leads_to_is_never_touched(writer: str, kind: str, tmp_path: Path) -> None:
    victim, place = tmp_path / "victim", tmp_path / "folder" / "name.json"
    place.parent.mkdir()
    if kind != "dangling":
        victim.write_bytes(b"precious")
    if kind == "hard":
        os.link(victim, place)
    else:
        place.symlink_to(victim)
    with _refusing():
        WRITERS[writer](place)
    assert not victim.exists() if kind == "dangling" else victim.read_bytes() == b"precious"


@posix
@pytest.mark.parametrize("writer", WRITERS)
def test_no_writer_waits_for_a_pipe(writer: str, tmp_path: Path) -> None:
    place = tmp_path / "name.json"
    os.mkfifo(place)
    with _refusing():
        WRITERS[writer](place)


@posix
def test_a_file_with_two_names_goes_on_alone(tmp_path: Path) -> None:
    (tmp_path / "backup").write_bytes(b"one\n")
    os.link(tmp_path / "backup", tmp_path / "journal")
    _appended(tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == b"one\nnew"
    assert (tmp_path / "backup").read_bytes() == b"one\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        writing.write_file(tmp_path / "a.json", b"new", shared=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@posix
def test_folders_that_lead_elsewhere_are_told(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (root / "own").mkdir(parents=True)
    (root / "linked").symlink_to(outside)
    writing.require_own_folders(root / "own" / "file", root)
    with pytest.raises(OSError, match="linked is a link"):
        writing.require_own_folders(root / "linked" / "deep" / "file", root)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    import socket

    here = os.getcwd()
    os.chdir(path.parent)  # the whole path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def _endless(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


ODD: dict[str, Callable[[Path], None]] = {
    "pipe": _pipe,
    "device": _device,
    "socket": _socket,
    "endless": _endless,
    "folder": Path.mkdir,
}


@posix
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("reader", [reading.read_bytes, reading.read_text])
def test_only_regular_files_of_bounded_size_are_read(
    odd: str, reader: Callable[[Path], object], tmp_path: Path
) -> None:
    ODD[odd](tmp_path / "odd")
    with pytest.raises(OSError, match="it is") as caught:
        reader(tmp_path / "odd")
    assert caught.value.strerror


def test_a_stream_without_end_is_refused() -> None:
    assert reading.read_stream(io.StringIO("a fox")) == "a fox"
    with pytest.raises(UsageError, match="stdin is larger"):
        reading.read_stream(io.StringIO("x" * 100), limit=99)


def test_text_is_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("é\r\nb\rc\n".encode())
    assert reading.read_text(tmp_path / "a") == "é\nb\nc\n"
