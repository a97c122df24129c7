"""The digests that name the blobs of the Hugging Face cache, worked out from their content."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from cfgen.files.reading import open_binary

_GIT_DIGITS = 40
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 (64 digits) or a git hash (40 digits)."""
    return _DIGEST.fullmatch(text) is not None


def digest_of(path: Path, *, like: str) -> str:
    """Return the digest of a file, of the kind that `like` is.

    Args:
        path: The file.
        like: A digest: SHA-256 of the content, as git-LFS names files, or SHA-1 of
            ``blob <size>\\0`` and the content, as git does.

    Raises:
        OSError: The file cannot be read.
    """
    with open_binary(path) as file:
        found = hashlib.sha256()
        if len(like) == _GIT_DIGITS:
            nbytes = os.fstat(file.fileno()).st_size
            found = hashlib.sha1(b"blob %d\0" % nbytes, usedforsecurity=False)
        return hashlib.file_digest(file, lambda: found).hexdigest()


def is_whole(path: Path, digest: str, *, nbytes: int | None = None) -> bool:
    """Whether a file can be read and has this digest and, if it is known, this size."""
    try:
        right_size = nbytes is None or path.stat().st_size == nbytes
        return right_size and digest_of(path, like=digest) == digest
    except OSError:
        return False
