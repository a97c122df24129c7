"""Texts laid out on the lines of a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cfgen.plain_text import cells, shown

WIDTH = 80
"""Cells of a line."""

LABEL = 10
"""Cells of the label before a text."""

_SPACES = re.compile(r"[ \t\n]+")


def cut(text: str, width: int) -> str:
    """A text in at most so many cells; `...` stands for what is left out."""
    if cells(text) <= width:
        return shown(text)
    kept = shown(text)[: 4 * width]
    while kept and cells(kept) > width - 3:
        kept = kept[:-1]
    return f"{kept}..."


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
