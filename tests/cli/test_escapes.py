"""Nothing that others wrote reaches the terminal as an order: every way out of the one printer."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from cfgen.cli.app import app
from cfgen.cli.console import Console
from cfgen.errors import UsageError
from cfgen.plain_text import printable
from cfgen.renderer.events import ChunkDone, Loaded, Warned

ORDERS = {
    "colour": "\x1b[35m",
    "title": "\x1b]0;owned\x07",
    "clear": "\x1bc",
    "one-byte CSI": "\x9b2J",
    "back": "a\b\b",
    "return": "safe\rhidden",
    "delete": "\x7f",
    "nul": "\x00",
    "override": "\u202egnp.exe",
    "isolate": "\u2066x",
    "line": "\u2028x",
    "surrogate": "\udc9b",
    "tag": "\U000e0041",
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _debug(console: Console, text: str) -> None:
    console.configure(debug=True)
    try:
        raise UsageError(text)
    except UsageError as error:
        console.error(error)


def _chunk(console: Console, text: str) -> None:
    console.start(fps=16)
    console.configure(verbose=True)
    console.show(
        ChunkDone(
            index=0,
            chunks=2,
            frames_done=9,
            frames_total=21,
            elapsed_s=1.0,
            memory={text: 1.0},
        )
    )
    console.note(text)  # above the bar
    console.close()


WAYS: dict[str, Callable[[Console, str], object]] = {
    "result": lambda console, text: console.result(text, {}),
    "note": lambda console, text: console.note(text),
    "warning": lambda console, text: console.warn(text, text),
    "error": lambda console, text: console.error(UsageError(text, text)),
    "traceback": _debug,
    "defect": lambda console, text: console.bug(ValueError(text)),
    "event": lambda console, text: console.show(Warned(message=text, hint=text)),
    "loaded": lambda console, text: console.show(
        Loaded(model=text, seconds=1.0, backend=text, details=(text,))
    ),
    "chunk": _chunk,
}


@pytest.mark.parametrize("json_lines", [False, True])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_no_order_reaches_the_terminal(
    way: str, colour: bool, json_lines: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for order in ORDERS.values():
        out, err = (Terminal() if colour else io.StringIO() for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        console = Console()
        console.configure(json=json_lines)
        WAYS[way](console, f"a{order}b")
        assert order not in out.getvalue() + err.getvalue(), ascii(order)
        if json_lines:
            for line in out.getvalue().splitlines():
                json.loads(line)
                assert line.isascii()
                assert line.isprintable()


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_escaped_can_still_be_read(order: str) -> None:
    found = printable(f"a{ORDERS[order]}b")
    assert found.startswith(("a", "safe"))
    assert found.endswith("b")
    assert "\\" in found
    found.encode()


@pytest.mark.parametrize("text", ["a fox, un zorro 狐 🦊👩‍🚀", "two\nlines\tand a tab", "\\x1b"])
def test_what_is_harmless_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "arguments",
    [
        ["render", "--\x1b]0;x\x07"],
        ["\x1b[31mx"],
        ["render", "x", "--seed", "\x1b[2J"],
        ["presets", "show", "\x1b[2J"],
        ["inspect", "\x1b[2J.safetensors"],
        ["render", "\x1b[2J", "--set", "\x1b[2J=1", "--dry-run"],
        ["resume", "\x1b[2J.cfgen"],
    ],
)
def test_wrong_arguments_are_told_without_orders(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments, color=True)
    assert done.exit_code in (2, 3)
    assert "\x1b" not in done.output
    assert "\x07" not in done.output
