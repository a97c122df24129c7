"""The errors that cfgen raises on purpose, and the exit code and stable code string of each.

CfgenError
├── UsageError           2  a flag or value that cannot be used
│   └── PresetError      2  a preset, a YAML file or the values resolved from them
├── PrintError           1  stdout cannot be written to
├── SetupError           3  this machine or its files refuse, before any work
│   ├── BackendUnavailable  3  the asked-for ops cannot run here
│   ├── FfmpegMissing    3  no ffmpeg, or one without the needed encoder
│   ├── InputRefused     3  a picture or film to begin with that cannot be used
│   ├── OutputRefused    3  the output exists, or its folder is missing or not writable
│   └── LockHeld         3  another process works on it
├── CheckpointError      3  weights are damaged, incomplete or of an unknown layout
├── SnapshotError        3  a render cannot be resumed
│   ├── SnapshotMismatch 3  the snapshot belongs to other settings
│   └── SnapshotCorrupt  3  the snapshot is damaged
├── BudgetError          3  not enough disk or memory
├── NotFinite            1  a chunk came out as no numbers
├── ClusterLost          1  the machines that did the work are gone
├── ProcessLost          1  a process that renders the same film ended
├── WriterError          1  ffmpeg failed while encoding
└── Interrupted        130  stopped by a signal (143 for SIGTERM, 129 for SIGHUP)

The message says what is wrong, what was given and what is allowed; the hint says what to do next.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 2000
"""Letters of a message about a file, at most: names in a hostile file have any length."""


class CfgenError(Exception):
    """Root of every error that a user can act on.

    Attributes:
        exit_code: The exit status of the command that ends with this error.
        code: A string for programs (``--json``); it never changes once released.
        message: One sentence: what is wrong, where, what is allowed.
        hint: What to do next, or None.
    """

    exit_code: int = 1
    code: str = "error"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(CfgenError):
    """A flag, an argument or a value cannot be used."""

    exit_code = 2
    code = "usage"


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration.

    Attributes:
        key: Dotted key, such as ``memory.sink``; empty for a file as a whole.
        reason: What is wrong, what was given and what is allowed.
        where: The origin of the value (``run.yaml:3``, ``--size``), or empty when not yet known.
    """

    key: str
    reason: str
    where: str = ""

    def __str__(self) -> str:
        """Return ``where: key: reason``; a flag or a variable names its key by itself."""
        in_file = ":" in self.where or self.where in ("", "--set")
        parts = (self.where, self.key if in_file else "", self.reason)
        return ": ".join(part for part in parts if part)


class PresetError(UsageError):
    """A preset, a YAML file or the values resolved from them are wrong; lists every problem.

    Attributes:
        problems: Each single problem, in the order in which it was found.
    """

    code = "preset"

    def __init__(self, problems: Sequence[Problem], hint: str | None = None) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            message = str(self.problems[0])
        else:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            message = f"the configuration has {len(self.problems)} problems:{lines}"
        super().__init__(message, hint)


class PrintError(CfgenError):
    """What a command was asked for cannot be written to stdout."""

    code = "print"


class SetupError(CfgenError):
    """Something on this machine refuses the work before it starts."""

    exit_code = 3
    code = "setup"


class BackendUnavailable(SetupError):
    """The ops backend that was asked for cannot run here."""

    code = "backend-unavailable"


class FfmpegMissing(SetupError):
    """There is no ffmpeg, or the one that is there lacks an encoder."""

    code = "ffmpeg-missing"


class InputRefused(SetupError):
    """A picture or a film that a render is to begin with cannot be used."""

    code = "input-refused"


class OutputRefused(SetupError):
    """The output file exists already, or its folder is missing or not writable."""

    code = "output-refused"


class LockHeld(SetupError):
    """Another process works on it."""

    code = "in-use"


class CheckpointError(CfgenError):
    """Weights are missing, damaged, incomplete or of an unknown layout.

    What a file brings into the message (names, another library's words) cannot break its line.
    """

    exit_code = 3
    code = "checkpoint"

    def __init__(self, message: str, hint: str | None = None) -> None:
        shown = "".join(c if c.isprintable() else " " for c in message)
        super().__init__(shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} ...", hint)


class SnapshotError(CfgenError):
    """A render cannot be resumed."""

    exit_code = 3
    code = "snapshot"


class SnapshotMismatch(SnapshotError):
    """The snapshot was made with other settings than the ones given."""

    code = "snapshot-mismatch"


class SnapshotCorrupt(SnapshotError):
    """The snapshot is damaged."""

    code = "snapshot-corrupt"


class BudgetError(CfgenError):
    """The disk or the memory is too small for the work."""

    exit_code = 3
    code = "budget"


class NotFinite(CfgenError):
    """A chunk holds numbers that are not finite, which no picture can be made of."""

    exit_code = 1
    code = "not-finite"


class ClusterLost(CfgenError):
    """The machines that did the work cannot be reached any more; it can be gone on with."""

    exit_code = 1
    code = "cluster-lost"


class ProcessLost(CfgenError):
    """One of several processes that render a film together ended, or cannot be reached."""

    exit_code = 1
    code = "process-lost"


class WriterError(CfgenError):
    """The video could not be written.

    Attributes:
        exit_status: The exit status of ffmpeg, or None if it never started or still ran.
        stderr_tail: The last lines that ffmpeg wrote to stderr, oldest first.
    """

    exit_code = 1
    code = "writer"

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        exit_status: int | None = None,
        stderr_tail: Sequence[str] = (),
    ) -> None:
        super().__init__(message, hint)
        self.exit_status = exit_status
        self.stderr_tail = tuple(stderr_tail)

    def __str__(self) -> str:
        """Return the message with ffmpeg's exit status and last lines."""
        status = "" if self.exit_status is None else f" (ffmpeg exit status {self.exit_status})"
        return self.message + status + "".join(f"\n  ffmpeg: {line}" for line in self.stderr_tail)


class Interrupted(CfgenError):
    """The work was stopped by a signal.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """

    exit_code = 130
    code = "interrupted"

    def __init__(self, message: str, hint: str | None = None, *, exit_code: int = 130) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class Halt(BaseException):
    """A signal asks to stop at once.

    It is no `Exception`, so that nothing takes it for a fault of what it was at work on, and no
    KeyboardInterrupt, which click ends the process for.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit status that a shell gives a process that ended by the signal."""
        return 128 + self.number

    @property
    def why(self) -> str:
        """What happened, in a word."""
        return "interrupted" if self.number == signal.SIGINT else "terminated"
