"""Whoever reads may go away, and a terminal may lack letters: the work goes on."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from cfgen.cli.console import Console
from cfgen.cli.streams import write
from cfgen.errors import PrintError, UsageError
from cfgen.files.writing import json_bytes
from cfgen.renderer.events import ChunkDone, Warned
from cfgen.runs.records import read_mapping
from tests.cli.conftest import FakeBuild


class Gone(io.StringIO):
    """A stream that fails, at once or at the flush, as a pipe, a terminal or a disk does."""

    def __init__(self, error: Exception, *, tty: bool = False, late: bool = False) -> None:
        super().__init__()
        self.error, self.tty, self.late = error, tty, late

    def __str__(self) -> str:
        how = f"{type(self.error).__name__} {getattr(self.error, 'errno', '')}"
        return f"{how}{' terminal' if self.tty else ''}{' late' if self.late else ''}"

    def write(self, text: str) -> int:
        if not self.late:
            raise self.error
        return len(text)

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        return self.tty

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "no descriptor")


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EBADF, "Bad file descriptor"),
    ValueError("I/O operation on closed file"),
]
STREAMS = [None, *(Gone(e, tty=t, late=late) for e in ERRORS for t in (0, 1) for late in (0, 1))]
CHUNK = ChunkDone(index=0, chunks=2, frames_done=9, frames_total=33, elapsed_s=1.0)


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_nothing_on_stderr_stops_anything(
    monkeypatch: pytest.MonkeyPatch, stream: Gone | None
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console()
    console.configure(verbose=True)
    console.start(fps=16)
    console.show(CHUNK)
    console.show(Warned(message="a word", hint="another"))
    console.status()
    console.note("on the way")
    console.error(UsageError("no", "hint"))
    console.bug(ValueError("x"))
    console.close()


@pytest.mark.parametrize("stream", STREAMS, ids=str)
@pytest.mark.parametrize("json", [False, True])
def test_events_on_stdout_stop_nothing_and_a_finished_film_is_finished(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stream: Gone | None,
    json: bool,
) -> None:
    console = Console()
    console.configure(json=json)
    monkeypatch.setattr(sys, "stdout", stream)
    console.start(fps=16)
    console.show(CHUNK)
    console.show(CHUNK)
    console.made("a.mp4", {"output": "a.mp4"})
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert "a.mp4 is finished, and stdout cannot tell it" in said
    assert said.count("the work goes on") == int(json)


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_a_result_that_cannot_be_told_is_an_error(
    monkeypatch: pytest.MonkeyPatch, stream: Gone | None
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises((PrintError, BrokenPipeError)):
        Console().result("a", {})


@pytest.mark.parametrize("json", [False, True])
def test_a_render_whose_reader_is_gone_ends_well(
    cfgen: Callable[..., Result], build: FakeBuild, monkeypatch: pytest.MonkeyPatch, json: bool
) -> None:
    def gone(stream: object, text: str, **options: object) -> None:
        if stream is sys.stdout:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("cfgen.cli.streams.write", gone)
    options = ["--json"] if json else []
    result = cfgen("render", "a kite", "-o", "a.mp4", "--duration", "3s", *options)
    assert result.exit_code == 0, result.output
    assert Path("a.mp4").exists()


@pytest.mark.parametrize(
    ("encoding", "text", "octets"),
    [
        ("utf-8", "日本.mp4", "日本.mp4".encode()),
        ("utf-8", "f\udcff.mp4", b"f\xff.mp4"),
        ("cp1252", "café.mp4", b"caf\xe9.mp4"),
        ("cp1252", "日本.mp4", b"\\u65e5\\u672c.mp4"),
        ("ascii", "café.mp4", b"caf\\xe9.mp4"),
        ("ascii", "f\udcff.mp4", b"f\xff.mp4"),
        ("latin-1", "日\udcff", b"\\u65e5\\udcff"),
    ],
)
def test_every_stream_is_written_to(encoding: str, text: str, octets: bytes) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    write(stream, text, octets=True)
    write(stream, "end")
    assert raw.getvalue() == octets + b"\nend\n"


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "latin-1"])
@pytest.mark.parametrize("octets", [False, True])
def test_no_bytes_that_are_no_text_reach_a_terminal(encoding: str, octets: bool) -> None:
    raw = io.BytesIO()
    stream = Terminal(raw, encoding=encoding, newline="\n")
    write(stream, "f\udc9b2J", octets=octets)
    assert raw.getvalue() == b"f\\udc9b2J\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_stderr_that_lacks_a_letter_gets_its_escape(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
    Console().note("日本")
    assert raw.getvalue() == b"\\u65e5\\u672c\n"


@pytest.mark.parametrize("name", ["plain", "日本", "f\udcff", "\udc80\udcff"])
def test_a_record_holds_any_file_name(name: str) -> None:
    assert read_mapping(json_bytes({"output": name}, indent=1)) == {"output": name}
