"""One process at a time works on a render: a lock file that its owner keeps fresh.

The owner writes a new count into the file every few seconds. Who finds the file waits to see the
count change, by a clock of its own, so clocks that differ or are set back do no harm. On the same
machine a dead owner is told by its process number at once. An owner writes to the file that it
made and never by name, so one that slept too long cannot push out its successor.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from cfgen.errors import SetupError
from cfgen.render.disk import disk_errors

BEAT_S = 5.0
"""Seconds between two signs of life."""
PATIENCE_S = 20.0
"""Seconds without one after which an owner on another machine counts as dead."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: Name of the machine.
        pid: Number of the process.
        born: What tells the process from a later one with the same number, or empty.
        token: Random, one for each taking of a lock.
        beat: Count of signs of life.
    """

    host: str
    pid: int
    born: str
    token: str
    beat: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """A lock file. Use it in a ``with`` block.

    Args:
        path: The file; its folder must exist.
        patience_s: Seconds to watch an owner on another machine for.
        beat_s: Seconds between two signs of life of ours.

    Raises:
        SetupError: On entry, if another process holds it.
    """

    def __init__(
        self, path: Path, *, patience_s: float = PATIENCE_S, beat_s: float = BEAT_S
    ) -> None:
        self.path = path
        self._patience_s, self._beat_s = patience_s, beat_s
        self._mine: Owner | None = None
        self._file = -1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._mine is None:
            self.acquire()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, from a dead owner too.

        Raises:
            SetupError: A living process holds it.
            BudgetError, WriterError: The disk refused.
        """
        with disk_errors(self.path):
            while not self._create():
                owner = read_owner(self.path)
                if owner is not None and not self._dead(owner):
                    raise SetupError(
                        f"{self.path.parent} is in use by {owner}",
                        "wait until it is done, or stop it",
                    )
                self._remove(owner)
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether it is still ours: another may take it from a process that slept too long."""
        owner = read_owner(self.path)
        return owner is not None and self._mine is not None and owner.token == self._mine.token

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        if self._mine is None:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.held:
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._file)
        self._mine = None

    def _create(self) -> bool:
        pid = os.getpid()
        mine = Owner(socket.gethostname(), pid, born_of(pid), secrets.token_hex(8), 0)
        # Complete before it has its name: a lock that others can see can be read.
        written = self.path.with_name(f"{self.path.name}.{mine.token}")
        file = os.open(written, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(file, _text(mine))
            os.link(written, self.path)
        except BaseException as error:
            os.close(file)
            if isinstance(error, FileExistsError):
                return False
            raise
        finally:
            written.unlink()
        self._mine, self._file = mine, file
        return True

    def _dead(self, owner: Owner) -> bool:
        if owner.host == socket.gethostname() and os.name == "posix":
            return _gone(owner)
        ends = time.monotonic() + self._patience_s
        while time.monotonic() < ends:
            time.sleep(min(0.2, self._patience_s))
            if read_owner(self.path) != owner:
                return False
        return True

    def _remove(self, dead: Owner | None) -> None:
        """Put a dead owner's file away; only one of several that try finds it under its name."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            found = read_owner(aside)
            if found is not None and found != dead:
                # Somebody was quicker and holds it rightly: give it back.
                with contextlib.suppress(OSError):
                    os.link(aside, self.path)
            aside.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_s):
            if self._mine is not None:
                self._mine = replace(self._mine, beat=self._mine.beat + 1)
                with contextlib.suppress(OSError):
                    os.pwrite(self._file, _text(self._mine), 0)


def read_owner(path: Path) -> Owner | None:
    """Who holds a lock, or None if the file is not there or says nothing that can be read."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Owner(
            str(facts["host"]),
            int(facts["pid"]),
            str(facts["born"]),
            str(facts["token"]),
            int(facts["beat"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def owner_of(path: Path) -> Owner | None:
    """Who holds a lock; None if nobody does or, as far as this machine can tell, a dead process."""
    owner = read_owner(path)
    return None if owner is None or _gone(owner) else owner


def born_of(pid: int) -> str:
    """What tells a process from a later one with the same number; empty where that is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return f"{boot}/{stat.rpartition(')')[2].split()[19]}"


def _gone(owner: Owner) -> bool:
    """Whether the owner is surely dead: a process of this machine that is not there any more."""
    if owner.host != socket.gethostname() or os.name != "posix":
        return False
    return owner.born != born_of(owner.pid) or not _runs(owner.pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _text(owner: Owner) -> bytes:
    """One line, as long for every count, so that it can be written over."""
    return f"{json.dumps(asdict(owner) | {'beat': f'{owner.beat:012}'})}\n".encode()
