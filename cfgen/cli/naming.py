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
    words = "".join(char if _is_letter(char) else " " for char in normal).split()
    bare = [word.lstrip(_marks(word)) for word in words]
    short = "-".join(filter(None, bare)).encode()[:max_nbytes].decode(errors="ignore")
    return short.strip("-") or "video"


def _is_letter(char: str) -> bool:
    """Whether it is a letter, a digit, or a mark on one: a vowel of Hindi, a tone of Vietnamese."""
    return char.isalnum() or unicodedata.category(char) in ("Mn", "Mc")


def _marks(word: str) -> str:
    """The marks in a word, with which none can begin."""
    return "".join(char for char in word if not char.isalnum())


def default_name(prompt: str, seed: int) -> str:
    """Return the output file name for a prompt and a seed."""
    return f"{slug(prompt)}-{seed}.mp4"
