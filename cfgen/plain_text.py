"""Texts of others made fit for a terminal."""

from __future__ import annotations

import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Controls (but for tab and line feed), separators of lines, marks of direction, what has no width
but a joiner's, halves of surrogate pairs, tags."""


def printable(text: str, *, octets: bool = False) -> str:
    """Return a text with every character that a terminal would obey or hide written as its escape.

    Tabs and line feeds stay. Escape becomes ``\\x1b``, a right-to-left override ``\\u202e``.

    Args:
        text: What to write.
        octets: Whether what stands for a byte of a file name that is no text (U+DC80 to U+DCFF)
            stays as it is too.
    """
    return _UNSEEN.sub(lambda found: _escape(found[0], octets=octets), text)


def _escape(character: str, *, octets: bool) -> str:
    number = ord(character)
    if octets and 0xDC80 <= number <= 0xDCFF:
        return character
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
