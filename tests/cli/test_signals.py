"""Signals end a command with 128 and their number, at any moment, and ignored ones stay ignored."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from cfgen.cli import signals
from cfgen.cli.batch import _line
from cfgen.cli.console import Console
from cfgen.cli.run_render import graceful_signals
from cfgen.errors import CheckpointError, Halt, Interrupted
from tests.cli.conftest import FakeBuild

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

KINDS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
RENDER = ("render", "a kite", "-o", "a.mp4", "--duration", "3s")


@pytest.fixture(autouse=True)
def as_they_were() -> Iterator[None]:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._heard.clear()


@pytest.mark.parametrize(("number", "exit_code"), KINDS)
@pytest.mark.parametrize(
    "becomes",
    [
        None,
        CheckpointError("describes no UMT5 encoder: terminated"),
        RecursionError("maximum recursion depth exceeded"),
        ImportError("cannot import name 'x' from partially initialized module 'torch'"),
        SystemError("returned a result with an exception set"),
    ],
    ids=str,
)
def test_a_signal_while_loading_is_told_whatever_it_became(
    cfgen: Callable[..., Result],
    build: FakeBuild,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    exit_code: int,
    becomes: Exception | None,
) -> None:
    def loads(*_: object, **__: object) -> FakeBuild:
        try:
            os.kill(os.getpid(), number)
            time.sleep(0.1)
        except Halt:
            if becomes is None:
                raise
        if becomes is not None:
            raise becomes
        raise AssertionError("no signal came")

    monkeypatch.setattr("cfgen.pipeline.rendering.build_render", loads)
    signals.heed()
    result = cfgen(*RENDER)
    assert result.exit_code == exit_code, result.output
    assert "before the first chunk: nothing was begun" in result.stderr
    assert "Traceback" not in result.stderr
    assert "defect" not in result.stderr


@pytest.mark.parametrize(("number", "exit_code"), KINDS)
def test_a_signal_that_a_library_swallowed_stops_before_the_first_chunk(
    cfgen: Callable[..., Result],
    build: FakeBuild,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    exit_code: int,
) -> None:
    built = build.build_render

    def loads(*given: object, **named: object) -> FakeBuild:
        with pytest.raises(Halt):
            send(number)
        return built(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("cfgen.pipeline.rendering.build_render", loads)
    signals.heed()
    result = cfgen(*RENDER)
    assert (result.exit_code, Path("a.mp4").exists()) == (exit_code, False)
    assert "nothing was begun" in result.stderr


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM"])
def test_inherited_ignores_stay(name: str) -> None:
    number = getattr(signal, name)
    signal.signal(number, signal.SIG_IGN)
    signals.heed()
    with graceful_signals(Console(), _never, again=""):
        assert signal.getsignal(number) is signal.SIG_IGN
        os.kill(os.getpid(), number)
        time.sleep(0.05)
    assert signal.getsignal(number) is signal.SIG_IGN
    assert signals.heard() is None


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("\n", ""), ("one", "one"), ("one\ntwo", "one ...")]
)
def test_a_clip_without_a_word_of_what_stopped_it_is_reported(text: str, line: str) -> None:
    assert _line(text) == line


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)


def _never(why: str, *, exit_code: int) -> None:
    raise AssertionError("it is ignored")


@pytest.mark.parametrize(("number", "exit_code"), KINDS)
def test_the_first_signal_stops_gently_and_the_second_at_once(number: int, exit_code: int) -> None:
    signals.heed()
    told: list[tuple[str, int]] = []

    def work() -> None:
        with graceful_signals(
            Console(), lambda why, *, exit_code: told.append((why, exit_code)), again="go on"
        ):
            send(number)
            assert [code for _, code in told] == [exit_code]
            with contextlib.suppress(Exception):  # as libraries have it
                send(number)
            pytest.fail("nothing takes a signal for a fault")

    with pytest.raises(Interrupted) as caught:
        work()
    assert caught.value.exit_code == exit_code


def test_after_the_work_is_done_a_signal_changes_nothing() -> None:
    signals.heed()
    with graceful_signals(Console(), _never, again=""):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
    assert signals.heard() is None


@pytest.mark.parametrize("number", [number for number, _ in KINDS])
def test_a_signal_while_python_takes_itself_down_changes_nothing(number: int) -> None:
    code = (
        "import os, sys\n"
        "from cfgen.cli import signals\n"
        "class Late:\n"
        f"    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, {int(number)})\n"
        "late = Late()\n"
        "signals.run(lambda: sys.exit(3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 3, done.stderr


def test_a_program_that_uses_cfgen_keeps_its_own_handlers() -> None:
    mine = signal.getsignal(signal.SIGTERM)
    with graceful_signals(Console(), _never, again=""):
        assert signal.getsignal(signal.SIGTERM) is not mine
    assert signal.getsignal(signal.SIGTERM) is mine
    signals.settle(3)
    assert signal.getsignal(signal.SIGTERM) is mine


@pytest.mark.parametrize("moment", [0.0, 0.6])
def test_a_signal_at_a_random_moment_of_the_start_ends_with_a_sentence(
    tmp_path: Path, moment: float
) -> None:
    code = (
        "import os; os.write(1, b'x'); from cfgen.cli import signals; signals.heed();"
        "os.write(1, b'y'); from cfgen.__main__ import main; import sys;"
        "sys.argv = ['cfgen', 'render', 'a kite', '--duration', '3s', '-o', 'a.mp4']; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.read(2) == "xy"
    time.sleep(moment + random.random() / 10)
    number, expected = random.choice(KINDS)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == expected, stderr
    assert any(word in stderr for word in ("error: interrupted", "error: terminated")), stderr
    assert "Traceback" not in stderr
