from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from cfgen.cli.console import Console
from cfgen.errors import UsageError
from cfgen.renderer.events import ChunkDone, Finished, Warned


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def _terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Attach stderr to a terminal of 80 columns; call it in the test: pytest sets stderr before."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return stream


def _chunk(index: int) -> ChunkDone:
    return ChunkDone(
        index=index,
        chunks=14,
        frames_done=9 + 12 * index,
        frames_total=160,
        elapsed_s=1.0 + index,
    )


def _finished() -> Finished:
    return Finished(
        output=Path("a.mp4"), frames=160, seconds=10.0, elapsed_s=15.0, sidecar=Path("a.mp4.json")
    )


def test_on_a_terminal_one_bar_tells_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = _terminal(monkeypatch)
    console = Console()
    console.start(fps=16)
    for index in range(14):
        console.show(_chunk(index))
    console.show(_finished())
    console.result("a.mp4", {})
    text = terminal.getvalue()
    assert "chunk 14 of 14, 10.3 of 10.0 s, 12.0 frames/s, ETA 0:00" in text
    assert text.rstrip().endswith("160 frames, 10.0 s of video in 15.0 s")
    assert capsys.readouterr().out == "a.mp4\n"


def test_a_warning_stands_above_the_bar_and_an_error_below(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _terminal(monkeypatch)
    console = Console()
    console.start(fps=16)
    console.show(_chunk(0))
    console.show(Warned(message="mini has never seen the word 'zebra'"))
    console.error(UsageError("no such thing"))
    text = terminal.getvalue()
    assert text.index("'zebra'") < text.index("error: no such thing")
    assert text.endswith("error: no such thing\n")


def test_quiet_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _terminal(monkeypatch)
    console = Console()
    console.configure(quiet=True)
    console.start(fps=16)
    console.show(_chunk(0))
    console.show(_finished())
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False)],
)
def test_colour_follows_terminal_and_no_color(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool
) -> None:
    terminal = _terminal(monkeypatch)
    monkeypatch.delenv("NO_COLOR")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Console().error(UsageError("no such thing"))
    assert ("\x1b[31m" in terminal.getvalue()) is coloured


def test_force_color_colours_what_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    Console().error(UsageError("no such thing"))
    assert "\x1b[31merror:\x1b[0m no such thing" in capsys.readouterr().err
