"""Columns of text as a terminal shows them: a CJK character is two cells wide, a mark none."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from cfgen.plain_text import printable

WIDTH = 80
"""Cells of a line."""

LABEL = 10
"""Cells of the label before a text."""

_SPACES = re.compile(r"[ \t\n]+")


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


def cut(text: str, width: int) -> str:
    """A text in at most so many cells; `...` stands for what is left out."""
    if cells(text) <= width:
        return shown(text)
    kept = shown(text)[: 4 * width]
    while kept and cells(kept) > width - 3:
        kept = kept[:-1]
    return f"{kept}..."


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


def wrapped(text: str, width: int) -> list[str]:
    """A text on lines of at most so many cells; words stay whole, also those that are longer."""
    lines = [""]
    for word in _SPACES.split(text.strip(" \t\n")):
        line = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cells(line) > width:
            lines.append(word)
        else:
            lines[-1] = line
    return lines


def labelled(label: str, text: str) -> Iterator[str]:
    """A text after its label, on as many lines as it needs."""
    for number, line in enumerate(wrapped(text, WIDTH - LABEL)):
        yield f"{'' if number else label:{LABEL}}{line}"
