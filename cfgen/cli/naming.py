"""File names made from prompts, safe on every file system."""

from __future__ import annotations

import unicodedata

MAX_SLUG_BYTES = 80


def slug(text: str, max_nbytes: int = MAX_SLUG_BYTES) -> str:
    """Return `text` as part of a file name: lower-case letters and digits joined by hyphens.

    Letters of any script stay; the length is limited in bytes of UTF-8, which is what file systems
    count, and never cuts a letter. Text without letters or digits becomes ``video``.
    """
    normal = unicodedata.normalize("NFKC", text).lower()
    words = "".join(char if char.isalnum() else " " for char in normal).split()
    short = "-".join(words).encode()[:max_nbytes].decode(errors="ignore")
    return short.strip("-") or "video"


def default_name(prompt: str, seed: int) -> str:
    """Return the output file name for a prompt and a seed."""
    return f"{slug(prompt)}-{seed}.mp4"
