"""Cuts, freezes and black: against loops, and in films where they stand at known frames."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen.metrics.events import Span, black, cut_scores, cuts, freezes
from cfgen.metrics.levels import FilmLevels, Meter

FPS = Fraction(16)
RNG = np.random.default_rng(17)


def _film(levels: list[int]) -> FilmLevels:
    meter = Meter()
    for level in levels:
        meter.add(np.full((6, 8, 3), level, np.uint8))
    return meter.film()


def _moving(frames: int, level: int) -> list[int]:
    return [level + number % 2 for number in range(frames)]


def test_scores_are_those_of_a_loop() -> None:
    change = RNG.random(30) * 255
    change[0] = np.nan
    percent = [value / 255 * 100 for value in change.tolist()]
    truth = [0.0]
    for number in range(1, 30):
        before = percent[number - 1] if number > 1 else percent[2]
        truth.append(min(percent[number], abs(percent[number] - before)))
    assert cut_scores(change) == pytest.approx(truth)


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        ([], ()),
        ([50], ()),
        ([50, 150], (1,)),
        ([50] * 20, ()),
        ([50] * 10 + [150] * 10, (10,)),
        ([50] * 10 + [75] * 10, ()),  # 9.8 percent
        ([50] * 10 + [76] * 10, (10,)),  # 10.2 percent
        ([50] + [150] * 10, (1,)),
        ([50] * 10 + [150], (10,)),
        ([50] * 5 + [150] * 5 + [20] * 5, (5, 10)),
        ([50, 200] * 10, ()),  # strobes: as much change in every frame
        (list(range(0, 250, 5)), ()),
    ],
)
def test_cuts(levels: list[int], found: tuple[int, ...]) -> None:
    assert cuts(_film(levels).change) == found


def test_fast_motion_is_no_cut() -> None:
    noise: list[NDArray[np.uint8]] = list(RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    meter = Meter()
    for frame in noise:
        meter.add(frame)
    assert meter.film().change[1:].min() > 70
    assert cuts(meter.film().change) == ()


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        ([], ()),
        ([50], ()),
        (_moving(40, 50), ()),
        ([50] * 7, ()),
        ([50] * 8, (Span(0, 8),)),
        (_moving(10, 50) + [90] * 7 + _moving(10, 60), ()),
        (_moving(10, 50) + [90] * 8 + _moving(10, 60), (Span(10, 18),)),
        (_moving(10, 50) + [90] * 20, (Span(10, 30),)),
        ([90] * 9 + _moving(6, 40) + [90] * 9, (Span(0, 9), Span(15, 24))),
        ([90] * 9 + [20] * 9, (Span(0, 9), Span(9, 18))),
    ],
)
def test_freezes(levels: list[int], found: tuple[Span, ...]) -> None:
    assert freezes(_film(levels).change, FPS) == found


def test_shortest_freeze_goes_by_the_rate() -> None:
    change = _film([50] * 12 + _moving(5, 60)).change
    assert freezes(change, Fraction(24)) == (Span(0, 12),)
    assert freezes(change, Fraction(25)) == ()
    assert freezes(change, FPS, shortest_s=Fraction(2)) == ()


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        ([], ()),
        ([26] * 40, ()),
        ([25] * 40, (Span(0, 40),)),
        ([0] * 7 + [80] * 10 + [0] * 8, (Span(17, 25),)),
        ([80] * 3 + [10, 0] * 5 + [80] * 3, (Span(3, 13),)),
    ],
)
def test_black(levels: list[int], found: tuple[Span, ...]) -> None:
    assert black(_film(levels).dark, FPS) == found


@pytest.mark.parametrize(("bright", "is_black"), [(2, True), (3, False)])
def test_picture_is_black_though_a_few_pixels_shine(bright: int, is_black: bool) -> None:
    """Of the 100 pixels at half the size, 98 must be dark."""
    frame = np.zeros((20, 20, 3), np.uint8)
    frame[0, : 2 * bright] = 255
    meter = Meter()
    for _ in range(16):
        meter.add(frame)
    assert (black(meter.film().dark, FPS) != ()) is is_black
