"""One process at a time works on a render: a file that the system locks, with a heartbeat in it.

The package filelock locks the open file (flock, on Windows LockFileEx). The system gives this lock
back when its owner dies, however that happens, and never while its owner is suspended.

Machines that share a folder do not everywhere see each other's locks. So the owner also writes a
new count into the file every few seconds, and who gets the system's lock on a file that another
machine left watches it first, by a clock of its own: clocks that differ or are set back do no harm.
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
from typing import Self

from filelock import lock_descriptor

from cfgen.errors import LockHeld
from cfgen.files.reading import open_binary, read_bytes
from cfgen.files.writing import create_exclusive, disk_errors, open_in_place
from cfgen.runs.records import parse_as, read_mapping

BEAT_S = 5.0
"""Seconds between two signs of life."""
PATIENCE_S = 30.0
"""Seconds without one after which an owner on another machine counts as dead."""
SETTLED_S = 1.0
"""Seconds after which machines that take a dead owner's lock at once see who wrote last."""
_LOOK_S = 0.2
_NBYTES = 512
"""Bytes of a lock file; as many for every owner, so that one is written over by another at once."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: Name of the machine, for people.
        system: What tells a running system from any other, empty where that is unknown.
        pid: Number of the process in that system, for people.
        token: Random, one for each taking of a lock.
        beat: Count of signs of life.
    """

    host: str
    system: str
    pid: int
    token: str
    beat: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """A lock file. Use it in a ``with`` block.

    Args:
        path: The file; its folder must exist.
        patience_s: Seconds to watch an owner for whom only signs of life speak.
        beat_s: Seconds between two signs of life of ours.
    """

    def __init__(
        self, path: Path, *, patience_s: float = PATIENCE_S, beat_s: float = BEAT_S
    ) -> None:
        self.path = path
        self._patience_s, self._beat_s = patience_s, beat_s
        self._mine: Owner | None = None
        self._file, self._seeking = -1, threading.Lock()
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
            while self._mine is None:
                self._file, lives = self._opened()
                try:
                    self._take(lives=lives, watched=watched)
                finally:
                    if self._mine is None:
                        os.close(self._file)
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether it is still ours: a machine that does not see the system's lock may have it."""
        if self._mine is None:
            return False
        try:
            owner = _parsed(self._read()) if _is(self._file, self.path) else read_owner(self.path)
        except OSError:
            return False
        return owner is not None and owner.token == self._mine.token

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        if self._mine is None:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        held, self._mine = self.held, None
        if os.name == "nt":  # it removes no file that anybody has open
            os.close(self._file)
        if held:
            with contextlib.suppress(OSError):
                self.path.unlink()
        if os.name != "nt":
            os.close(self._file)

    def _opened(self) -> tuple[int, bool | None]:
        """Open the file and lock it; whether who left it lives, as `look` tells.

        Raises:
            LockHeld: The system knows of a living owner.
        """
        ends = time.monotonic() + _LOOK_S  # somebody may just look at it, see `look`
        while True:
            try:
                file, new = create_exclusive(self.path), True
            except FileExistsError:
                try:
                    file, new = open_in_place(self.path), False
                except FileNotFoundError:
                    continue
            locked = lock_of(file)
            if locked is not False and _is(file, self.path):
                return file, False if new else _lives(read_owner(self.path), locked)
            os.close(file)
            if locked is False and time.monotonic() > ends:
                raise self._refusal()
            time.sleep(_LOOK_S / 10)

    def _take(self, *, lives: bool | None, watched: tuple[Owner | None] | None) -> None:
        """Write into the open file who holds it, unless it was given back meanwhile."""
        left, empty = read_owner(self.path), os.fstat(self._file).st_size == 0
        if lives is None and not empty and (left,) != watched:
            self._watch(left)
        if not _is(self._file, self.path):
            return
        token = secrets.token_hex(8)
        try:
            self._write(Owner(socket.gethostname(), this_system(), os.getpid(), token, 0))
        except BaseException:
            if empty:
                self.path.unlink()
            raise
        if lives is None:
            time.sleep(SETTLED_S)
            if not self.held:
                self._mine = None
                raise self._refusal()

    def _watch(self, owner: Owner | None) -> None:
        """Watch an owner, None for one that cannot be read.

        Raises:
            LockHeld: It gave a sign of life, or is not given the time to.
        """
        ends = time.monotonic() + self._patience_s
        while self._patience_s > 0 and read_owner(self.path) == owner:
            if time.monotonic() >= ends or not self.path.exists():
                return
            time.sleep(min(_LOOK_S, self._patience_s))
        if self.path.exists():
            raise self._refusal()

    def _refusal(self) -> LockHeld:
        return LockHeld(
            f"{self.path.parent} is in use by {read_owner(self.path) or 'another process'}",
            f"wait until it is done, or stop it; if it surely runs no more, remove {self.path}",
        )

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_s):
            if self._mine is not None and self.held:
                with contextlib.suppress(OSError):
                    self._write(replace(self._mine, beat=self._mine.beat + 1))

    def _write(self, mine: Owner) -> None:
        """Write who holds the lock into the open file, over whatever it says."""
        text = json.dumps(asdict(mine)).ljust(_NBYTES - 1) + "\n"
        with self._seeking:
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, text.encode())
            os.fsync(self._file)
        self._mine = mine

    def _read(self) -> bytes:
        with self._seeking:
            os.lseek(self._file, 0, os.SEEK_SET)
            return os.read(self._file, 2 * _NBYTES)


def look(path: Path) -> tuple[Owner | None, bool | None]:
    """Who holds a lock, as far as can be read, and whether it lives; None if only time can tell.

    The system knows of its own processes, and keeps the lock of one that is suspended or waits for
    a slow disk. An owner on another machine lives until it is silent for `PATIENCE_S`.
    """
    try:
        with open_binary(path) as file:
            locked, owner = lock_of(file.fileno()), read_owner(path)
    except FileNotFoundError:
        return None, False
    except OSError:
        return None, None
    return owner, _lives(owner, locked)


def read_owner(path: Path) -> Owner | None:
    """Who holds a lock, or None if the file is not there or says nothing that can be read."""
    try:
        return _parsed(read_bytes(path, limit=2 * _NBYTES))
    except OSError:
        return None


def owner_of(path: Path) -> Owner | None:
    """Who holds a lock; None if nobody does or surely a dead process."""
    owner, lives = look(path)
    return None if lives is False else owner


def this_system() -> str:
    """What tells this running system from any other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def lock_of(file: int) -> bool | None:
    """Have the system lock an open file: whether it did; None on a file system without locks."""
    try:
        return lock_descriptor(file, blocking=False)
    except OSError:
        return None


def _lives(owner: Owner | None, locked: bool | None) -> bool | None:
    """Whether the owner of a file lives that the system did, or did not, lock for us."""
    if locked is False:
        return True
    here = owner is not None and owner.system and owner.system == this_system()
    return False if locked and here else None


def _parsed(content: bytes) -> Owner | None:
    try:
        facts = read_mapping(content)
        facts.pop("born", None)  # of earlier commits, as is a count in a text
        return parse_as(Owner, {**facts, "beat": int(facts.get("beat", ""))})
    except (ValueError, TypeError):
        return None


def _is(file: int, path: Path) -> bool:
    """Whether an open file has that name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
