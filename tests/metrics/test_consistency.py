"""Consistency against direct double loops, and of embeddings whose cosines are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen.errors import InputRefused
from cfgen.metrics.consistency import (
    clip_bounds,
    clip_to_clip_consistency,
    cosine_at_marks,
    frame_consistency,
    in_clip_consistency,
    lag_curve,
    normalised,
)

FPS = Fraction(16)
RNG = np.random.default_rng(29)


def _random(frames: int) -> NDArray[np.float64]:
    return normalised(RNG.normal(size=(frames, 5)))


def _cos(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    return math.fsum(a * b for a, b in zip(one.tolist(), two.tolist(), strict=True))


def _turned(degrees: Sequence[float]) -> NDArray[np.float64]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _looped(unit: NDArray[np.float64]) -> float:
    scores = []
    for n in range(1, len(unit)):
        before, first = (max(0.0, _cos(unit[m], unit[n])) for m in (n - 1, 0))
        scores.append((before + first) / 2)
    return sum(scores) / len(scores)


def test_frame_consistency_is_that_of_a_loop() -> None:
    unit = _random(40)
    assert frame_consistency(unit) == pytest.approx(_looped(unit))


@pytest.mark.parametrize(
    ("degrees", "truth"),
    [([0], None), ([0, 0, 0], 1), ([0, 60], 0.5), ([0, 180], 0), ([0, 60, 120], (0.5 + 0.25) / 2)],
)
def test_frame_consistency_of_known_angles(degrees: list[float], truth: float | None) -> None:
    found = frame_consistency(_turned(degrees))
    assert found == (None if truth is None else pytest.approx(truth))


@pytest.mark.parametrize(
    ("frames", "fps", "clips"),
    [
        (0, FPS, ()),
        (7, FPS, ((0, 7),)),
        (32, FPS, ((0, 32),)),
        (33, FPS, ((0, 32), (1, 33))),
        (64, FPS, ((0, 32), (32, 64))),
        (80, FPS, ((0, 32), (32, 64), (48, 80))),
        (96, Fraction(24000, 1001), ((0, 48), (48, 96))),
        (3, Fraction(1, 10), ((0, 1), (1, 2), (2, 3))),
    ],
)
def test_last_clip_reaches_back(
    frames: int, fps: Fraction, clips: tuple[tuple[int, int], ...]
) -> None:
    assert clip_bounds(frames, fps) == clips


def test_clips_are_those_of_a_loop() -> None:
    unit = _random(80)
    clips = [unit[0:32], unit[32:64], unit[48:80]]
    assert in_clip_consistency(unit, FPS) == pytest.approx(sum(map(_looped, clips)) / 3)
    assert clip_to_clip_consistency(unit, FPS) == pytest.approx(_looped(unit[[0, 32, 48]]))


def test_hard_cut_between_clips_shows_between_them_alone() -> None:
    unit = _turned([0] * 32 + [60] * 32)
    assert in_clip_consistency(unit, FPS) == pytest.approx(1)
    assert clip_to_clip_consistency(unit, FPS) == pytest.approx(0.5)


@pytest.mark.parametrize("frames", [0, 1])
def test_film_without_pairs_has_no_consistency(frames: int) -> None:
    unit = _random(frames)
    assert in_clip_consistency(unit, FPS) is None
    assert clip_to_clip_consistency(unit, FPS) is None
    assert (lag_curve(unit), cosine_at_marks(unit, np.ones(5), FPS)) == ({}, {})


@pytest.mark.parametrize("fps", [FPS, Fraction(30000, 1001)])
def test_marks_are_those_of_a_loop(fps: Fraction) -> None:
    unit = _random(math.ceil(34 * fps))
    found = cosine_at_marks(unit, unit[0], fps)
    assert sorted(found) == [10, 20, 30]
    for mark, value in found.items():
        near = [n for n in range(len(unit)) if abs(n / fps - mark) <= Fraction(1, 2)]
        assert value == pytest.approx(sum(_cos(unit[0], unit[n]) for n in near) / len(near))


def test_mark_whose_window_is_not_whole_is_left_out() -> None:
    assert sorted(cosine_at_marks(_random(168), np.ones(5), FPS)) == []
    assert sorted(cosine_at_marks(_random(169), np.ones(5), FPS)) == [10]


def test_lags_are_those_of_a_loop() -> None:
    unit = _random(30)
    found = lag_curve(unit)
    assert sorted(found) == [2, 5, 10, 20]
    for lag, value in found.items():
        each = [_cos(unit[n], unit[n + lag]) for n in range(30 - lag)]
        assert value == pytest.approx(sum(each) / len(each))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_embedding_without_direction_is_refused(value: float) -> None:
    embeddings = np.ones((4, 3))
    embeddings[2] = value
    with pytest.raises(InputRefused, match="frame 2 is 0 or not finite"):
        normalised(embeddings)
