"""The one place that opens files for writing: whole or not at all, never through a link.

Nothing takes its final name before it is complete and on the disk: a temporary name beside the
final one, fsync, rename, fsync of the folder. A file that has its final name is whole.

A name may be taken by somebody else: by a link that leads elsewhere, by a child of a render that
was killed, by another process. So a new file is made under a name that nobody has (O_EXCL), an old
one is opened only if it is a plain file (O_NOFOLLOW), and both by way of their folder's descriptor,
so that a folder that is replaced meanwhile leads nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from cfgen.errors import BudgetError, WriterError
from cfgen.files.reading import open_binary

Block = bytes | memoryview

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_COMMON = _NOFOLLOW | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_BY_FOLDER = os.open in os.supports_dir_fd
_LINK = "it is a link, and cfgen writes through none"


def write_file(
    path: Path, content: bytes | Iterable[Block], *, sync: bool = True, shared: bool = False
) -> str:
    """Write a file under a temporary name and then give it its own.

    Args:
        path: The file; its folder must exist.
        content: All of it, or its pieces.
        sync: Whether to wait until content and name are on the disk. Without it, the content
            outlives the process, but not always the machine.
        shared: Whether several processes may write the file at once; the last one has it.

    Returns:
        SHA-256 of the content, as hexadecimal digits.

    Raises:
        OSError: The disk refused; the file is as it was.
    """
    digest = hashlib.sha256()
    part = own_name(path) if shared else part_of(path)
    try:
        with create(part) as file:
            for block in [content] if isinstance(content, bytes) else content:
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


def part_of(path: Path) -> Path:
    """Return the temporary name of a file: ``clip.mp4`` is ``clip.part.mp4`` until it is good."""
    return path.with_name(f"{path.stem}.part{path.suffix}")


def own_name(path: Path) -> Path:
    """A temporary name that no other process uses: ``x.mp4`` is ``x.1f0c93ab.part.mp4``."""
    return path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")


def link_or_copy(file: Path, target: Path) -> None:
    """Have a file, whose content is never changed in place, under another name too.

    Args:
        file: The file, or a folder of files.
        target: The other name; what has it is replaced at once.

    Raises:
        OSError: The disk refused; `target` is as it was.
    """
    made = own_name(target)
    if file.is_dir():
        made.mkdir()
        for each in files_of(file):
            link_or_copy(each, made / each.name)
        _replace(made, target)
        return
    try:
        try:
            os.link(file, made)
        except OSError:  # no links there, or another disk
            with open_binary(file) as old, create(made) as new:
                shutil.copyfileobj(old, new)
        sync_file(made)
        os.replace(made, target)
        made.unlink(missing_ok=True)  # two names of one file are left by `replace` as they are
    except BaseException:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
        raise


def take_name(made: Path, part: Path) -> None:
    """Give what ffmpeg made the name under which it is measured; if it made nothing, that tells."""
    discard(part)
    with contextlib.suppress(FileNotFoundError):
        os.rename(made, part)


def publish(*paths: Path) -> None:
    """Give complete files their final names, first making sure that all of them are on the disk.

    Args:
        paths: Final names, all in one folder; each file stands under its `part_of` name.

    Raises:
        OSError: The disk refused.
    """
    for path in paths:
        for file in files_of(part_of(path)):
            sync_file(file)
        if part_of(path).is_dir():
            sync_folder(part_of(path))
    for path in paths:
        _replace(part_of(path), path)
    sync_folder(paths[0].parent)


def _replace(made: Path, path: Path) -> None:
    """Give a file or a folder of files its name; a folder cannot take that of another at once."""
    if made.is_dir() and path.is_dir():
        old = own_name(path)
        os.rename(path, old)
        os.rename(made, path)
        discard(old)
    else:
        os.replace(made, path)


def discard(path: Path) -> None:
    """Remove a file, or a folder of files; harmless where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files_of(path: Path) -> list[Path]:
    """The file itself, or the files of a folder in the order of their names."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def nbytes_of(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    return sum(file.stat().st_size for file in files_of(path))


def json_bytes(facts: object, *, indent: int | None = None) -> bytes:
    """JSON in UTF-8, for people to read; a name of a file that is no text is written in escapes.

    Args:
        facts: Plain values.
        indent: As for `json.dumps`.
    """
    try:
        return json.dumps(facts, ensure_ascii=False, indent=indent).encode()
    except UnicodeEncodeError:
        return json.dumps(facts, indent=indent).encode()


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
    """Return the hexadecimal SHA-256 digest of a file, or of the files and names of a folder."""
    if path.is_dir():
        lines = (f"{file.name} {sha256_of(file)}\n".encode() for file in files_of(path))
        return sha256_of_blocks(lines)
    with open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_blocks(blocks: Iterable[Block]) -> str:
    """Return the hexadecimal SHA-256 digest of what a file would hold."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def create(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing; whatever has its name, a link too, goes first.

    Raises:
        OSError: The disk refused.
    """
    path.unlink(missing_ok=True)
    with io.open(path, "xb", opener=_opener) as file:  # noqa: UP020 - tests let io.open fail
        yield file


def create_exclusive(path: Path) -> int:
    """Make a file that is not there, and return a descriptor to read and write it.

    Raises:
        FileExistsError: The name is taken, by a link too.
        OSError: The disk refused.
    """
    return _opener(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def open_in_place(path: Path) -> int:
    """Return a descriptor to read and write a file that is there, whatever other names it has.

    Raises:
        FileNotFoundError: It is not there.
        OSError: It is a link or no regular file, or the disk refused.
    """
    return _opener(path, os.O_RDWR)


def open_append(path: Path) -> int:
    """Return a descriptor that adds to the end of a file, which is made if it is not there.

    A file that has a second name somewhere (a hard link) is copied first and loses only this one.

    Raises:
        OSError: It is a link or no regular file, or the disk refused.
    """
    _part_from_other_names(path)
    return _opener(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def append(path: Path) -> BinaryIO:
    """Open a file as `open_append` does, as a file object.

    Raises:
        OSError: It is a link or no regular file, or the disk refused.
    """
    _part_from_other_names(path)
    return io.open(path, "ab", opener=_opener)  # noqa: UP020 - tests let io.open fail


def open_update(path: Path) -> BinaryIO:
    """Open a file that is there, to write over parts of it.

    A file that has a second name somewhere (a hard link) is copied first and loses only this one.

    Raises:
        OSError: It is a link or no regular file, or the disk refused.
    """
    _part_from_other_names(path)
    return io.open(path, "rb+", opener=_opener)  # noqa: UP020 - tests let io.open fail


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk.

    Raises:
        OSError: It is a link or no regular file, or the disk refused.
    """
    with io.open(path, "rb+", opener=_opener) as file:  # noqa: UP020 - tests let io.open fail
        os.fsync(file.fileno())


_UNSYNCABLE = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTTY}
)
"""What CIFS, FUSE and others say that cannot sync a folder; a broken disk says EIO."""


def sync_folder(folder: Path) -> bool:
    """Wait until the names in a folder are on the disk, where the system can do that.

    Returns:
        Whether the file system can.

    Raises:
        OSError: The disk refused.
    """
    if os.name != "posix":
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSYNCABLE:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def _part_from_other_names(path: Path) -> None:
    """Put a copy in the place of a file with several names."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink < 2:
        return
    part = own_name(path)
    try:
        with open_binary(path) as old, create(part) as new:
            while block := old.read(1 << 20):
                new.write(block)
            new.flush()
            os.fsync(new.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _opener(name: str | Path, flags: int) -> int:
    """Open a plain file by way of its folder's descriptor, where the system has such."""
    path, flags = Path(name), flags | _COMMON
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY) if _BY_FOLDER else None
    try:
        place = str(path) if folder is None else path.name
        descriptor = os.open(place, flags, 0o666, dir_fd=folder)
    except OSError as error:
        raise _named(error, path) from None
    finally:
        if folder is not None:
            os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a device, not a regular file", str(path))
    return descriptor


def _named(error: OSError, path: Path) -> OSError:
    """An error of opening, with the whole path and the words for what this module refuses."""
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return OSError(errno.ELOOP, _LINK, str(path))
    if error.errno == errno.ENXIO:
        return OSError(errno.EINVAL, "it is a pipe, not a regular file", str(path))
    return OSError(error.errno, error.strerror, str(path))


def require_own_folders(path: Path, root: Path) -> None:
    """Refuse a path whose folders below `root` lead elsewhere.

    Args:
        path: What will be written.
        root: A folder above it, which may be a link itself: who named it chose it.

    Raises:
        OSError: One of the folders between them is a link.
    """
    for folder in path.parents:
        if folder == root or not folder.is_relative_to(root):
            return
        if folder.is_symlink():
            raise OSError(errno.ELOOP, f"{folder} {_LINK[3:]}", str(path))
