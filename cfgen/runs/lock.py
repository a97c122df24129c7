"""One process at a time works on a render: a lock file that its owner keeps fresh.

The owner writes a new count into the file every few seconds. Who finds the file waits to see the
count change, by a clock of its own, so clocks that differ or are set back do no harm. A process of
the same running system that is dead is told at once. An owner writes to the file that it made and
never by name, so one that slept too long cannot push out its successor.

The package filelock (4.3) does not do all of that: its lease goes to another while its owner is
suspended, a killed process that nobody buried keeps it, so does an empty file for ever, and a file
that a network file system numbers anew counts as lost. Its flock tells of none of this, and clients
of shared folders do not see it everywhere.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from cfgen.errors import LockHeld
from cfgen.files.reading import read_bytes
from cfgen.files.writing import create_exclusive, disk_errors
from cfgen.runs.records import parse_as, read_mapping

BEAT_S = 5.0
"""Seconds between two signs of life."""
PATIENCE_S = 30.0
"""Seconds without one after which an owner that cannot be looked up counts as dead."""
_LOOK_S = 0.2
_LIMIT = 1 << 16
"""Bytes of a lock file; what is larger says nothing."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: Name of the machine, for people.
        system: What tells a running system from any other, empty where that is unknown.
        pid: Number of the process in that system.
        born: What tells the process from a later one with the same number.
        token: Random, one for each taking of a lock.
        beat: Count of signs of life.
    """

    host: str
    system: str
    pid: int
    born: str
    token: str
    beat: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def here(self) -> bool:
        """Whether it belongs to this very system, so that it can be looked up."""
        return bool(self.system) and self.system == this_system()

    @property
    def gone(self) -> bool:
        """Whether it is surely dead: a process of this very system that is there no more."""
        return self.here and self.born != born_of(self.pid)


class Lock:
    """A lock file. Use it in a ``with`` block.

    Args:
        path: The file; its folder must exist.
        patience_s: Seconds to watch an owner for that cannot be looked up.
        beat_s: Seconds between two signs of life of ours.
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

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, *, watched: tuple[Owner | None] | None = None) -> None:
        """Take the lock, from a dead owner too.

        Args:
            watched: An owner that the caller watched for long enough without a sign of life; it is
                None where the file says nothing that can be read.

        Raises:
            LockHeld: A living process holds it.
            BudgetError, WriterError: The disk refused.
        """
        with disk_errors(self.path):
            while not self._create():
                owner = read_owner(self.path)
                if may_live(owner, math.inf if (owner,) == watched else 0.0):
                    owner = self._watched(owner)
                self._remove(owner)
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether it is still ours: another may take it from a process that slept too long."""
        if self._mine is None:
            return False
        try:
            named, own = self.path.stat(), os.fstat(self._file)
        except OSError:
            return False
        if (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino):
            return True
        owner = read_owner(self.path)  # some network file systems number a file anew
        return owner is not None and owner.token == self._mine.token

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        if self._mine is None:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        held = self.held
        os.close(self._file)
        self._mine = None
        if held:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _create(self) -> bool:
        pid = os.getpid()
        mine = Owner(
            socket.gethostname(), this_system(), pid, born_of(pid), secrets.token_hex(8), 0
        )
        try:
            file = create_exclusive(self.path)
        except FileExistsError:
            return False
        try:
            os.write(file, _text(mine))
            os.fsync(file)
        except BaseException:
            os.close(file)
            self.path.unlink()
            raise
        self._mine, self._file = mine, file
        return True

    def _watched(self, owner: Owner | None) -> Owner | None:
        """Watch an owner, None for one that cannot be read, and return it if it is dead.

        Raises:
            LockHeld: It gave a sign of life, or is not given the time to.
        """
        ends = time.monotonic() + self._patience_s
        known = owner is not None and owner.here
        while not known and time.monotonic() < ends:
            time.sleep(min(_LOOK_S, self._patience_s))
            if not self.path.exists():
                return owner  # it was given back
            if read_owner(self.path) != owner:
                break
        else:
            if not known and self._patience_s > 0:
                return owner
        raise LockHeld(
            f"{self.path.parent} is in use by {read_owner(self.path) or 'another process'}",
            f"wait until it is done, or stop it; if it surely runs no more, remove {self.path}",
        )

    def _remove(self, dead: Owner | None) -> None:
        """Put a dead owner's file away; only one of several that try finds it under its name."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if read_owner(aside) == dead:
                aside.unlink()
                return
            # Somebody was quicker and holds it rightly: give it back, unless another one came.
            with contextlib.suppress(FileExistsError):
                try:
                    os.link(aside, self.path)
                except FileExistsError:
                    raise
                except OSError:  # a file system without hard links
                    if not self.path.exists():
                        os.rename(aside, self.path)
            with contextlib.suppress(OSError):
                aside.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_s):
            if self._mine is not None:
                self._mine = replace(self._mine, beat=self._mine.beat + 1)
                with contextlib.suppress(OSError):
                    os.lseek(self._file, 0, os.SEEK_SET)
                    os.write(self._file, _text(self._mine))
                    os.fsync(self._file)


def may_live(owner: Owner | None, silent_s: float, *, patience_s: float = PATIENCE_S) -> bool:
    """Whether the owner of a lock that is there may be alive: the one rule on it.

    One that can be looked up lives as long as its process is there, however long it is silent: it
    may be suspended, or wait for a slow disk. Any other lives until it is silent for too long.

    Args:
        owner: The owner, None for one that cannot be read.
        silent_s: Seconds for which it was watched without a sign of life.
        patience_s: Seconds after which an owner that cannot be looked up counts as dead.
    """
    if owner is not None and owner.here:
        return not owner.gone
    return silent_s < patience_s


def must_watch(path: Path) -> bool:
    """Whether only time can tell if the owner of a lock is alive."""
    owner = read_owner(path)
    if owner is None:
        return path.exists()
    return not owner.here


def read_owner(path: Path) -> Owner | None:
    """Who holds a lock, or None if the file is not there or says nothing that can be read."""
    try:
        facts = read_mapping(read_bytes(path, limit=_LIMIT))
        return parse_as(Owner, {**facts, "beat": int(facts.get("beat", ""))})
    except (OSError, ValueError, TypeError):
        return None


def owner_of(path: Path) -> Owner | None:
    """Who holds a lock; None if nobody does or surely a dead process."""
    owner = read_owner(path)
    return None if owner is None or owner.gone else owner


def this_system() -> str:
    """What tells this running system, or the container in it, from any other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born_of(pid: int) -> str:
    """When a process of this system was started, in its own ticks; empty if none runs."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    state, *facts = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else facts[18]  # a zombie does nothing any more


def _text(owner: Owner) -> bytes:
    """One line, as long for every count, so that it can be written over."""
    return f"{json.dumps(asdict(owner) | {'beat': f'{owner.beat:012}'})}\n".encode()
