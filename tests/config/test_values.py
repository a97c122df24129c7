from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfgen.config.values import Range, Size, nearest, parse_duration, parse_size, parse_value


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12.5", 12.5),
        ("30s", 30.0),
        ("0.5s", 0.5),
        (".5", 0.5),
        ("2m30s", 150.0),
        ("2m", 120.0),
        ("1h5m", 3900.0),
        ("1h2m3.5s", 3723.5),
        ("90m", 5400.0),
        ("1:05", 65.0),
        ("0:30", 30.0),
        ("1:02:03", 3723.0),
        (" 10S ", 10.0),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "",
        "nan",
        "inf",
        "1e3",
        "10 s",
        "5s2m",
        "1:75",
        "1:60:00",
        "s",
        "1.2.3",
        "٣",
        "9" * 400,
    ],
)
def test_what_is_no_duration_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write 12.5"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0", "0s", "0:00", "-3", "-1m"])
def test_durations_that_are_not_positive_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be longer than 0 seconds"):
        parse_duration(text)


@given(st.integers(1, 99), st.integers(0, 59), st.integers(0, 59))
def test_clock_and_units_agree(hours: int, minutes: int, seconds: int) -> None:
    clock = parse_duration(f"{hours}:{minutes:02}:{seconds:02}")
    assert clock == parse_duration(f"{hours}h{minutes}m{seconds}s")


@pytest.mark.parametrize("text", ["160x96", "160*96", "160 X 96", " 160x96 "])
def test_sizes_are_read(text: str) -> None:
    assert parse_size(text) == (160, 96)


@pytest.mark.parametrize("text", ["160", "x96", "160x", "-160x96", "160x96x3", "big", "1.5x2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write WIDTHxHEIGHT"):
        parse_size(text)


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1x1"):
        parse_size("0x96")


@pytest.mark.parametrize(
    ("hint", "tree", "value"),
    [
        (int, "7", 7),
        (int | None, "null", None),
        (int | None, "7", 7),
        (float, "1e-3", 0.001),
        (bool, "off", False),
        (bool, "true", True),
        (str, "yes", "yes"),
        (Path | None, "a/b.mp4", Path("a/b.mp4")),
        (Literal["a", "b"], "b", "b"),
        (tuple[float, ...], ["1000", "2.5"], (1000.0, 2.5)),
        (tuple[float, ...], "[1000, 2.5]", (1000.0, 2.5)),
        (tuple[float, ...], "1000,2.5", (1000.0, 2.5)),
        (tuple[Size, ...], ["160x96", ["256", "144"]], ((160, 96), (256, 144))),
        (tuple[Size, ...], "[160x96]", ((160, 96),)),
    ],
)
def test_text_becomes_typed(hint: object, tree: object, value: object) -> None:
    assert parse_value(hint, tree) == value


@pytest.mark.parametrize(
    ("hint", "tree", "reason"),
    [
        (int, "7.5", "must be a whole number, got '7.5'"),
        (float, "much", "must be a number, got 'much'"),
        (float, "nan", "must be a finite number, got 'nan'"),
        (bool, "2", "must be true or false, got '2'"),
        (str, ["a"], "must be one value, got a list"),
        (tuple[float, ...], {"a": "1"}, "must be a list, got a mapping"),
        (Literal["full", "window"], "windw", "must be full or window, got 'windw'; did you mean"),
        (Annotated[int, Range(low=1, high=4)], "5", "must be at least 1 and at most 4, got 5"),
        (Annotated[float, Range(above=0)], "0", "must be greater than 0, got 0.0"),
        (Size, {"w": "1"}, "must be a size, got a mapping"),
    ],
)
def test_wrong_text_is_refused_in_one_sentence(hint: object, tree: object, reason: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
        parse_value(hint, tree)
    assert str(caught.value).startswith(reason)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused_but_never_breaks(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert value


def test_nearest_names_only_what_is_near() -> None:
    assert nearest("mnii", ["mini", "wan"]) == "; did you mean 'mini'?"
    assert nearest("zebra", ["mini", "wan"]) == ""
