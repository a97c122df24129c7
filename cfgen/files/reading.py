"""Reads files: regular ones only, and of bounded size where they are read whole.

A pipe or a device under a file's name would let a reader wait for ever, and an endless file would
fill the memory. Everything in cfgen that opens a file for reading goes through here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import TextIO

from cfgen.errors import UsageError

RECORD_LIMIT = 64 << 20
"""Bytes that a text or a record (JSON, YAML, a journal, a lock, a list) may have."""

WEIGHTS = (".safetensors", ".gguf", ".pt", ".pth", ".ckpt", ".bin")
"""Endings of files of weights."""

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_binary(path: Path) -> BufferedReader:
    """Open a regular file for reading; a pipe, socket or device is never waited for.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    _require_regular(path, os.stat(path).st_mode)  # before it is opened: that may act on a device
    descriptor = os.open(path, _FLAGS)
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, *, limit: int = RECORD_LIMIT) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file.
        limit: Bytes that it may have.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger than `limit`.
    """
    with open_binary(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 20} MiB", str(path))
    return content


def read_text(
    path: Path, *, encoding: str = "utf-8", errors: str = "strict", limit: int = RECORD_LIMIT
) -> str:
    """Return the text of a regular file, its line ends as ``\\n``.

    Raises:
        OSError: See `read_bytes`.
        ValueError: It is not text of this encoding.
    """
    text = read_bytes(path, limit=limit).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_stream(stream: TextIO, *, limit: int = RECORD_LIMIT) -> str:
    """Return what is left of a stream, such as stdin.

    Raises:
        UsageError: It has more than `limit` characters.
    """
    text = stream.read(limit + 1)
    if len(text) > limit:
        raise UsageError(f"what comes by stdin is larger than {limit >> 20} MiB")
    return text


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(
            errno.EINVAL, "it is a pipe, a socket or a device, not a regular file", str(path)
        )


def nbytes_under(folder: Path) -> int:
    """Bytes of all files in a folder, without what links lead to and what vanishes meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
