"""Drift against direct loops, on ramps whose ratios are known, and on still films."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from cfgen.metrics.drift import drift, drift_of_ends, fifths, film_drift, per_second
from cfgen.metrics.levels import FilmLevels, Meter

FPS = Fraction(16)
RNG = np.random.default_rng(7)


def _steady(frames: int) -> FilmLevels:
    ones = np.ones(frames)
    change = ones.copy()
    change[0] = np.nan
    return FilmLevels(
        saturation=ones, contrast=ones, detail=ones, brightness=ones, dark=0 * ones, change=change
    )


@pytest.mark.parametrize(
    "fps", [Fraction(16), Fraction(24000, 1001), Fraction(5, 2), Fraction(1, 2)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_seconds_are_those_of_a_loop(fps: Fraction, stride: int) -> None:
    values = RNG.random(101)
    values[0] = np.nan
    truth: dict[int, list[float]] = {}
    for number, value in enumerate(values.tolist()):
        if number % stride == 0 and not math.isnan(value):
            truth.setdefault(math.floor(number / fps), []).append(value)
    found = per_second(values, fps, stride=stride)
    assert len(found) == math.ceil(101 / fps)
    for second, value in enumerate(found.tolist()):
        if second in truth:
            assert value == pytest.approx(sum(truth[second]) / len(truth[second]))
        else:
            assert math.isnan(value)


def test_ratios_of_a_ramp_of_five_percent_a_second() -> None:
    """Second s stands at 1 + s / 20: the ratios follow from the means of the seconds."""
    values = np.repeat(1 + np.arange(60) / 20, 16)
    found = drift(values, FPS)
    early = 1 + 5.5 / 20
    assert found.late_ratio == pytest.approx((1 + 42.5 / 20) / early)
    assert found.ratio == pytest.approx((1 + 53.5 / 20) / early)
    assert found.ends == pytest.approx(51 / 20)


def test_every_second_frame_counts() -> None:
    values = np.where(np.arange(960) % 2 == 0, 1.0, 50.0)
    found = drift(values, FPS)
    assert (found.ratio, found.late_ratio, found.ends) == (1, 1, 0)


@pytest.mark.parametrize(
    ("frames", "ratio", "late"),
    [(0, False, False), (1, False, False), (158, False, False), (159, True, False)]
    + [(767, True, False), (768, True, True)],
)
def test_short_films_have_no_ratio(frames: int, ratio: bool, late: bool) -> None:
    found = drift(np.ones(frames), FPS)
    assert found.ratio == (1 if ratio else None)
    assert found.late_ratio == (1 if late else None)
    assert drift(np.zeros(frames), FPS).ratio is None


@pytest.mark.parametrize(
    ("end", "alarm"),
    [(0.79, True), (0.81, False), (1.0, False), (1.24, False), (1.26, True)],
)
@pytest.mark.parametrize("name", ["saturation", "contrast", "detail", "brightness"])
def test_alarms_of_levels(name: str, end: float, alarm: bool) -> None:
    values = np.ones(800)
    values[600:] = end
    said = film_drift(replace(_steady(800), **{name: values}), FPS).alarms()
    if alarm and name != "brightness":
        assert said == (f"{name} drifts to {end:.2f} of its early value",)
    else:
        assert said == ()


def test_alarms_of_motion() -> None:
    slower = _steady(800).change
    slower[600:] = 0.5
    levels = replace(_steady(800), change=slower)
    assert film_drift(levels, FPS).alarms() == ("motion falls to 0.50 of its early value",)


def test_still_film_is_told() -> None:
    meter = Meter()
    for _ in range(200):
        meter.add(np.full((6, 6, 3), 90, np.uint8))
    found = film_drift(meter.film(), FPS)
    assert found.alarms() == ("nothing moves",)
    assert (found.motion.ratio, found.motion.ends) == (None, 0)
    assert film_drift(Meter().film(), FPS).alarms() == ()


def test_film_that_gains_saturation_is_told() -> None:
    meter = Meter()
    for number in range(320):
        meter.add(np.full((6, 6, 3), (200, 200 - number // 4, 100 + number % 2), np.uint8))
    mixed = film_drift(meter.film(), FPS)
    assert mixed.saturation.seconds.shape == (20,)
    assert mixed.brightness.ratio is not None
    assert mixed.brightness.ratio < 1


def _picture(saturation: float, spread: int) -> np.ndarray:
    """Stripes of two greys around 120, with a red that is so far above the other channels."""
    grey = np.where(np.arange(40) // 4 % 2, 120 + spread, 120 - spread)
    picture = np.repeat(np.tile(grey, (40, 1))[..., None], 3, axis=2).astype(float)
    picture[..., 1:] *= 1 - saturation
    return picture.round().astype(np.uint8)


def test_ends_that_are_alike_do_not_drift_and_ramps_do() -> None:
    same = [_picture(0.2, 30)] * 3
    assert drift_of_ends(same, same) == {"saturation": 0, "contrast": 0, "detail": 0}
    more = drift_of_ends(same, [_picture(0.3, 30)])
    assert more["saturation"] == pytest.approx(50, abs=2)
    sharper = drift_of_ends(same, [_picture(0.2, 45)])
    assert sharper["contrast"] == pytest.approx(50, abs=2)
    assert sharper["detail"] == pytest.approx(50, abs=2)
    assert sharper["saturation"] == pytest.approx(0, abs=2)


def test_what_a_beginning_lacks_has_no_drift() -> None:
    grey, red = np.full((20, 20, 3), 90, np.uint8), _picture(0.4, 20)
    assert drift_of_ends([grey], [red]) == {}


@pytest.mark.parametrize("frames", [5, 9, 165, 957])
def test_fifths_are_the_ends_of_a_film(frames: int) -> None:
    first, last = fifths(frames)
    assert first.start == 0
    assert first.stop == frames - last.start == frames // 5
    assert last.stop == frames


def test_a_film_without_fifths_is_refused() -> None:
    with pytest.raises(ValueError, match="4 frames"):
        fifths(4)
