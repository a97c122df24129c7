"""SHA-256 of files, worked out once for a file that does not change, and kept between runs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from pathlib import Path

from cfgen import homes
from cfgen.checkpoint.container import unreadable

WORTH_KEEPING = 50_000_000
"""Bytes from which on a digest is kept on the disk; smaller files are read as fast."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/cfgen`, by default in `~/.cache`."""
    return homes.require("cache") / "cfgen"


def digest(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits.

    A file with the path, size, time of change and inode of an earlier call is not read again.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        facts = path.stat()
        stamp = (facts.st_size, facts.st_mtime_ns, facts.st_ino)
        return _digest(path.resolve(), *stamp)
    except OSError as error:
        raise unreadable(path, error) from error


@functools.lru_cache(maxsize=256)
def _digest(path: Path, size: int, changed: int, inode: int) -> str:
    stamp = f"{path}\0{size}\0{changed}\0{inode}"
    name = hashlib.sha256(stamp.encode(errors="surrogateescape")).hexdigest()
    worth = size >= WORTH_KEEPING and homes.folder_of("cache") is not None
    kept = cache_folder() / "digests" / name if worth else Path(os.devnull)
    if worth and (known := _kept(kept)):
        return known
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    facts = path.stat()
    if worth and (facts.st_size, facts.st_mtime_ns) == (size, changed):
        _keep(kept, found)
    return found


def _kept(place: Path) -> str | None:
    try:
        text = place.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _keep(place: Path, found: str) -> None:
    """Write atomically; a cache that cannot be written is no reason to stop."""
    temporary = place.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(found, encoding="ascii")
        os.replace(temporary, place)
