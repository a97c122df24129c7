"""Columns stay below each other whatever script, marks or escapes stand in them."""

from __future__ import annotations

import itertools

import pytest
from rich.cells import cell_len

from cfgen.cli.columns import cut, labelled, wrapped
from cfgen.pipeline.naming import slug
from cfgen.plain_text import aligned, cells, padded

TEXTS = {
    "plain": ("kite", 4),
    "Japanese": ("\u65e5\u672c", 4),
    "Korean": ("\ud55c\uad6d", 4),
    "full width": ("\uff21", 2),
    "half width": ("\uff76", 1),
    "a mark": ("e\u0301", 1),
    "Hindi": ("\u0915\u093f\u0924", 2),
    "emoji": ("\U0001f98a", 2),
    "an order": ("\x1b[2J", 7),
    "a line": ("a\nb", 4),
    "no text": ("\udcff", 6),
    "empty": ("", 0),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_takes_the_cells_that_it_is_shown_in(name: str) -> None:
    text, width = TEXTS[name]
    assert cells(text) == width
    for right in (False, True):
        assert cell_len(padded(text, 12, right=right)) == 12
        assert padded(text, 0, right=right) == padded(text, width, right=right)


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_cut_fits(name: str) -> None:
    text = TEXTS[name][0]
    for width in (3, 4, 5, 9, 40):
        assert cell_len(cut(text, width)) <= width
        long = cut(text * 30 + "x" * 50, width)
        assert width - 8 < cell_len(long) <= width
        assert long.endswith("...")


@pytest.mark.parametrize("name", TEXTS)
def test_lines_of_a_long_text_fit_and_keep_every_word(name: str) -> None:
    word = TEXTS[name][0].replace("\n", "") or "-"
    text = " ".join([word] * 40)
    lines = wrapped(text, 20)
    assert all(cells(line) <= 20 for line in lines)
    assert " ".join(lines) == text
    assert wrapped(word * 30, 5) == [word * 30]
    first, *others = labelled("kind", text)
    assert first == f"kind      {wrapped(text, 70)[0]}"
    assert others == [f"{'':10}{line}" for line in wrapped(text, 70)[1:]]


@pytest.mark.parametrize("right", [(), (0,), (0, 1)])
def test_columns_begin_below_each_other(right: tuple[int, ...]) -> None:
    texts = [text for text, _ in TEXTS.values()]
    rows = [(a, b, "|") for a, b in itertools.product(texts, texts)]
    lines = aligned(rows, right=right)
    assert {cell_len(line) for line in lines} == {7 + 2 + 7 + 2 + 1}
    assert all(line.endswith("|") and "\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "\u0915\u093f\u0924\u093e\u092c \u0932\u093e\u0932",
            "\u0915\u093f\u0924\u093e\u092c-\u0932\u093e\u0932",
        ),
        ("e\u0301te\u0301", "\xe9t\xe9"),
        ("x\u0323\u0302 y", "x\u0323\u0302-y"),
        ("\u0301 a", "a"),
        ("\u0301", "video"),
    ],
)
def test_marks_stay_on_their_letters_in_names(text: str, name: str) -> None:
    assert slug(text) == name
