"""A process that dies at any write: from then on nothing reaches the disk, not even cleaning up.

Only calls that change something under one folder count, so that a test can stop at each in turn.
"""

from __future__ import annotations

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


class Disk:
    """Counts the changes under `folder` and dies at change number `at`.

    Attributes:
        changes: What was done, a word each.
    """

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder, self.at = folder, at
        self.changes: list[str] = []
        self.dead = False

    def change(self, what: str, target: object) -> None:
        if self._ours(target):
            if self.dead or len(self.changes) == self.at:
                self.dead = True
                raise Crash(what)
            self.changes.append(what)

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
        except Crash:
            super().write(bytes(data)[: len(data) // 2])
            raise
        return super().write(data)


@contextmanager
def dying(folder: Path, at: int | None) -> Iterator[Disk]:
    """Within the block, the process dies at change number `at` under `folder`; None for never."""
    disk = Disk(folder, at)
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
        return call(target, *arguments, **named)

    return counted
