"""The newest frame stands above the bar where the terminal can show it, and nowhere else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from cfgen.cli import progress_bar
from cfgen.cli.progress_bar import ProgressBar, thumbnails


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    thumbnails.cache_clear()
    yield
    thumbnails.cache_clear()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    made = Terminal()
    monkeypatch.setattr(progress_bar, "SteadyStderr", lambda: made)
    monkeypatch.setenv("TERM", "xterm-256color")
    return made


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "preview.jpg"
    PIL.Image.new("RGB", (64, 32), (200, 30, 30)).save(path)
    return path


def test_where_no_terminal_is_nothing_is_drawn(terminal: Terminal, picture: Path) -> None:
    assert thumbnails() is None
    bar = ProgressBar(100)
    bar.update(10, "chunk 1 of 10")
    before = terminal.getvalue()
    bar.show(picture)
    assert terminal.getvalue() == before
    bar.close()
    assert "chunk 1 of 10" in before


@pytest.mark.parametrize(("kind", "sign"), [("SixelImage", "\x1bP"), ("TGPImage", "\U0010eeee")])
def test_a_terminal_with_graphics_shows_the_frame(
    terminal: Terminal,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    sign: str,
) -> None:
    renderable: Any = pytest.importorskip("textual_image.renderable")
    monkeypatch.setattr(progress_bar, "thumbnails", lambda: getattr(renderable, kind))
    monkeypatch.setattr("sys.__stdout__", io.StringIO())
    bar = ProgressBar(100)
    bar.update(10, "chunk 1 of 10")
    bar.show(picture)
    bar.show(picture)
    assert sign in terminal.getvalue()
    bar.tell("a warning above it")
    bar.close()
    assert "a warning above it" in terminal.getvalue()


def test_a_picture_that_is_not_there_is_left_out(
    terminal: Terminal, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def image(path: str, **_: object) -> object:
        with PIL.Image.open(path):
            return ""

    monkeypatch.setattr(progress_bar, "thumbnails", lambda: image)
    bar = ProgressBar(100)
    picture.unlink()
    bar.show(picture)
    bar.close()
