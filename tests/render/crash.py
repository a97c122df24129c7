"""A process that dies at any write, and disks that are full, turn read-only, or lose their power.

Only calls that change something under one folder count, so that a test can stop at each in turn.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OS_CALLS = ("write", "pwrite", "fsync", "replace", "rename", "link", "unlink", "remove", "mkdir")
OS_CALLS += ("rmdir", "ftruncate")


class Crash(BaseException):
    """The end of the process."""


def crash(what: str) -> BaseException | None:
    """The process is dead: nothing it does reaches the disk any more."""
    return Crash(what)


def full(what: str) -> BaseException | None:
    """The disk is full: what takes room fails, the rest goes on."""
    grows = what.startswith(("write", "open", "mkdir", "link"))
    return OSError(errno.ENOSPC, "No space left on device") if grows else None


def read_only(_what: str) -> BaseException | None:
    """The file system became read-only, as Linux makes it after an error of the disk."""
    return OSError(errno.EROFS, "Read-only file system")


class Disk:
    """Counts the changes under `folder` and breaks at change number `at`.

    Attributes:
        changes: What was done, a word each.
        dead: Whether it is broken.
        synced: How much of each file is sure to outlive a power failure.
    """

    def __init__(
        self, folder: Path, at: int | None, fails: Callable[[str], BaseException | None]
    ) -> None:
        self.folder, self.at, self._fails = folder, at, fails
        self.changes: list[str] = []
        self.dead = False
        self.synced: dict[str, int] = {}

    def change(self, what: str, target: object) -> None:
        if self._ours(target):
            if self.dead or len(self.changes) == self.at:
                self.dead = True
                error = self._fails(what)
                if error is not None:
                    raise error
            self.changes.append(what)

    def done(self, what: str, target: object, arguments: tuple[object, ...]) -> None:
        """Keep track of what is on the disk for good."""
        if not self._ours(target):
            return
        if what == "fsync" and isinstance(target, int):
            self.synced[os.readlink(f"/proc/self/fd/{target}")] = os.fstat(target).st_size
        elif what in ("replace", "rename", "link"):
            if str(target) in self.synced:
                self.synced[str(arguments[0])] = self.synced[str(target)]
            else:
                self.synced.pop(str(arguments[0]), None)

    def lose_power(self) -> None:
        """Cut every file back to what was synced of it."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.stat().st_size > self.synced.get(str(path), 0):
                os.truncate(path, self.synced.get(str(path), 0))

    def _ours(self, target: object) -> bool:
        if isinstance(target, int):
            try:
                target = os.readlink(f"/proc/self/fd/{target}")
            except OSError:
                return False
        return str(target).startswith(str(self.folder))


class _File(io.FileIO):
    """A file opened for writing whose writes count; half of the one that dies reaches the disk."""

    disk: Disk

    def write(self, data) -> int:  # type: ignore[override]
        try:
            self.disk.change("write", self.name)
        except BaseException:
            super().write(bytes(data)[: len(data) // 2])
            raise
        return super().write(data)


@contextmanager
def dying(
    folder: Path, at: int | None, fails: Callable[[str], BaseException | None] = crash
) -> Iterator[Disk]:
    """Within the block, the disk breaks at change number `at` under `folder`; None for never."""
    disk = Disk(folder, at, fails)
    with pytest.MonkeyPatch.context() as patch:
        for name in OS_CALLS:
            patch.setattr(os, name, _counted(disk, name, getattr(os, name)))
        opened = io.open

        def counted_open(file, mode="r", *arguments, **named):
            if isinstance(file, str | os.PathLike) and set(mode) & set("wax+") and disk._ours(file):
                disk.change(f"open {mode}", file)
                if "b" in mode and "+" not in mode:
                    counted_file = type("Counted", (_File,), {"disk": disk})
                    return counted_file(str(file), mode.replace("b", ""))
            return opened(file, mode, *arguments, **named)

        patch.setattr(io, "open", counted_open)
        rmtree = shutil.rmtree

        def counted_rmtree(path, *arguments, **named):
            disk.change("rmtree", path)
            return rmtree(path, *arguments, **named)

        patch.setattr(shutil, "rmtree", counted_rmtree)
        yield disk


def _counted(disk: Disk, name: str, call: Callable) -> Callable:
    def counted(target, *arguments, **named):
        disk.change(name, target)
        result = call(target, *arguments, **named)
        disk.done(name, target, arguments)
        return result

    return counted
