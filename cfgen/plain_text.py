"""Texts made fit for a terminal: without orders to it, and in columns.

A CJK character is two cells wide, a mark none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

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


def cells(text: str) -> int:
    """Cells of a terminal that a text takes in a column."""
    from rich.cells import cell_len

    return cell_len(shown(text))


def shown(text: str) -> str:
    """A text as it stands in a column: on one line, with escapes for what gives orders."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def padded(text: str, width: int, *, right: bool = False) -> str:
    """A text filled up with spaces to so many cells, flush left or right."""
    space = " " * max(0, width - cells(text))
    return space + shown(text) if right else shown(text) + space


def widths_of(rows: Sequence[Sequence[str]]) -> list[int]:
    """Cells of each column of rows that are equally long."""
    return [max(map(cells, column)) for column in zip(*rows, strict=True)]


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Rows as lines whose columns begin below each other.

    Args:
        rows: Cells of the table, as many in each row.
        right: Numbers of the columns that are flush right.
    """
    widths = widths_of(rows)
    return [
        "  ".join(
            padded(text, width, right=number in right)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _escape(character: str, *, octets: bool) -> str:
    number = ord(character)
    if octets and 0xDC80 <= number <= 0xDCFF:
        return character
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
