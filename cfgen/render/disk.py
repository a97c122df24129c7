"""Writes that last: nothing takes its final name before it is complete and on the disk.

Everything that cfgen keeps of a render goes through here: a temporary name beside the final one,
fsync, rename, fsync of the folder. A file that has its final name is whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from cfgen.atomic_files import create, sync_file, sync_folder
from cfgen.errors import BudgetError, WriterError
from cfgen.regular_files import open_binary

Block = bytes | memoryview


def part_of(path: Path) -> Path:
    """Return the temporary name of a file: ``clip.mp4`` is ``clip.part.mp4`` until it is good."""
    return path.with_name(f"{path.stem}.part{path.suffix}")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an error that names the file.

    Raises:
        BudgetError: The disk is full.
        WriterError: Anything else.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BudgetError(
                f"the disk is full: could not write {path}", "free some space, then resume"
            ) from exc
        raise WriterError(
            f"could not write {path}: {exc.strerror}", "check the disk and run the command again"
        ) from exc


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file."""
    with open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_blocks(blocks: Iterable[Block]) -> str:
    """Return the hexadecimal SHA-256 digest of what a file would hold."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def write_file(
    path: Path, blocks: Iterable[Block], *, sync: bool = True, shared: bool = False
) -> str:
    """Write a file under its temporary name and then give it its own.

    Args:
        path: The file; its folder must exist.
        blocks: The content, piece by piece.
        sync: Whether to wait until content and name are on the disk. Without it, the content
            outlives the process, but not always the machine.
        shared: Whether several processes may write the file at once; the last one has it.

    Returns:
        SHA-256 of the content, as hexadecimal digits.

    Raises:
        OSError: The disk refused; the file is as it was.
    """
    digest = hashlib.sha256()
    part = part_of(path.with_stem(f"{path.stem}.{secrets.token_hex(4)}") if shared else path)
    try:
        with create(part) as file:
            for block in blocks:
                digest.update(block)
                file.write(block)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)
    return digest.hexdigest()


def publish(*paths: Path) -> None:
    """Give complete files their final names, first making sure that all of them are on the disk.

    Args:
        paths: Final names, all in one folder; each file stands under its `part_of` name.

    Raises:
        OSError: The disk refused.
    """
    for path in paths:
        sync_file(part_of(path))
    for path in paths:
        os.replace(part_of(path), path)
    sync_folder(paths[0].parent)
