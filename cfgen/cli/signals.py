"""Signals from the first import on: each ends the command with 128 and its number, and a sentence.

A signal that the process inherited as ignored, as `nohup` has it, stays ignored. What a handler
raises is no `Exception`, so that nothing takes it for a fault of a file; where a library swallows
it all the same, `heard` still tells of it. This module needs
little, so that it comes first.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from cfgen.errors import Halt

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that ask to stop."""

Handler = Callable[[int, FrameType | None], object]

_PATIENCE = 2
"""Signals that are raised in the main thread; the next one ends the process where it stands."""


_heard: list[int] = []


def heard() -> Halt | None:
    """The signal that asked to stop at once, if one did since `heed`, raised or swallowed."""
    return Halt(_heard[0]) if _heard else None


def halted(error: BaseException) -> Halt | None:
    """The signal that an error comes from, directly or not; None if none came."""
    if isinstance(error, Halt):
        return error
    if isinstance(error, KeyboardInterrupt):
        return heard() or Halt(signal.SIGINT)
    return heard()


def heed() -> None:
    """Let every signal that asks to stop raise `Halt`, unless it is ignored already."""
    _heard.clear()
    install(dict.fromkeys(stopping(), _halt))


def stopping() -> list[int]:
    """The signals that ask to stop and are not ignored by inheritance."""
    there = [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]
    return [number for number in there if not ignored(number)]


def ignored(number: int) -> bool:
    """Whether a signal is ignored, or handled by something that is not Python."""
    return signal.getsignal(number) in (signal.SIG_IGN, None)


def install(handlers: dict[int, Handler]) -> dict[int, object]:
    """Set handlers and return those that were there."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def restore(handlers: dict[int, object], *, done: bool) -> None:
    """Put handlers back that `install` returned.

    Args:
        handlers: Those that were there.
        done: Whether the work is done, so that there is nothing left to stop.
    """
    for number, handler in handlers.items():
        late = _spent if done and handler is _halt else handler
        signal.signal(number, late)  # type: ignore[arg-type]


def settle(exit_code: int) -> None:
    """Let what the command came to stand: another signal ends the process at once with it.

    Only where `heed` was called: a program that uses cfgen keeps its own handlers.
    """
    for number in stopping():
        if signal.getsignal(number) in (_halt, _spent):
            signal.signal(number, lambda _number, _frame: os._exit(exit_code))


def run(command: Callable[[], None]) -> None:
    """Run a command line, its imports included, under `heed`.

    Args:
        command: It ends by SystemExit.
    """
    heed()
    atexit.register(_let_the_interpreter_end)  # the first that is registered runs last
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        settle(code)
        if heard():  # what was cut off half imported cannot be trusted to end well
            _leave(code)
        raise
    except BaseException as error:
        halt = halted(error)
        if halt is None:
            raise
        settle(halt.exit_code)
        with contextlib.suppress(OSError):
            os.write(2, f"error: {halt.why} before anything was begun\n".encode())
        _leave(halt.exit_code)


def _let_the_interpreter_end() -> None:
    """Ignore what would stop a command that is over.

    While Python takes itself down it gives signals their default back, unless they are ignored: one
    that comes then would end the process as if nothing had been done.
    """
    for number in stopping():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)


def _halt(number: int, frame: FrameType | None) -> None:
    _heard.append(number)
    if len(_heard) > _PATIENCE:
        os._exit(128 + number)
    raise Halt(number)


def _spent(number: int, frame: FrameType | None) -> None:
    """Nothing: what the signal would stop is done."""


def _leave(exit_code: int) -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[union-attr]
    os._exit(exit_code)
