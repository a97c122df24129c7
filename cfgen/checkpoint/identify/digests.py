"""SHA-256 of files, worked out once for a file that does not change, and kept between runs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from pathlib import Path

from cfgen.checkpoint.formats.base import unreadable
from cfgen.files import user_folders
from cfgen.files.reading import open_binary, read_text
from cfgen.files.writing import write_file

WORTH_KEEPING = 50_000_000
"""Bytes from which on a digest is kept on the disk; smaller files are read as fast."""

SAMPLES = 64
"""Pieces of such a file that are looked at before its kept digest is believed."""

_SAMPLE_NBYTES = 4096


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/cfgen`, by default in `~/.cache`."""
    return user_folders.require("cache") / "cfgen"


def digest(path: Path, *, anew: bool = False) -> str:
    """SHA-256 of a file as hexadecimal digits.

    A file is not read again if everything that the system tells of it is as it was at an earlier
    call (size, times of change, inode, device) and so are `SAMPLES` pieces of its content.

    Args:
        path: the file.
        anew: whether no digest is believed that an earlier process kept.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        return _digest(path.resolve(), _stamp(path), not anew)
    except OSError as error:
        raise unreadable(path, error) from error


def _stamp(path: Path) -> tuple[int | str, ...]:
    """What tells that a file is as it was; equal times alone can be set by anybody."""
    with open_binary(path) as file:
        facts = os.fstat(file.fileno())
        size = facts.st_size
        sample = hashlib.sha256()
        if size >= WORTH_KEEPING:
            for number in range(SAMPLES):
                file.seek(max(0, size - _SAMPLE_NBYTES) * number // (SAMPLES - 1))
                sample.update(file.read(_SAMPLE_NBYTES))
    times = (facts.st_mtime_ns, facts.st_ctime_ns)
    return (size, *times, facts.st_ino, facts.st_dev, sample.hexdigest())


@functools.lru_cache(maxsize=256)
def _digest(path: Path, stamp: tuple[int | str, ...], believed: bool) -> str:
    text = "\0".join(map(str, ("2", path, *stamp)))
    name = hashlib.sha256(os.fsencode(text)).hexdigest()
    worth = int(stamp[0]) >= WORTH_KEEPING and user_folders.folder_of("cache") is not None
    kept = cache_folder() / "digests" / name if worth else Path(os.devnull)
    if worth and believed and (known := _kept(kept)):
        return known
    with open_binary(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if worth and _stamp(path) == stamp:
        _keep(kept, found)
    return found


def _kept(place: Path) -> str | None:
    try:
        text = read_text(place, encoding="ascii", limit=1024)
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _keep(place: Path, found: str) -> None:
    """Write atomically; a cache that cannot be written is no reason to stop."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_file(place, found.encode("ascii"), shared=True)
