"""Figures of frames against direct double loops, and of frames whose figures are known."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen.errors import InputRefused
from cfgen.metrics.levels import Meter, frame_change, frame_levels, halved, luma

RNG = np.random.default_rng(5)


def _noise(height: int = 10, width: int = 14) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _plain(red: int, green: int, blue: int) -> NDArray[np.uint8]:
    return np.full((8, 12, 3), (red, green, blue), dtype=np.uint8)


def test_levels_are_those_of_a_double_loop() -> None:
    frame = _noise()
    small = [[tuple(float(v) for v in frame[2 * y, 2 * x]) for x in range(7)] for y in range(5)]
    grey = [[0.299 * r + 0.587 * g + 0.114 * b for r, g, b in row] for row in small]
    flat = [value for row in grey for value in row]
    mean = sum(flat) / len(flat)
    detail = [
        abs(grey[y - 1][x] + grey[y + 1][x] + grey[y][x - 1] + grey[y][x + 1] - 4 * grey[y][x])
        for y in range(1, 4)
        for x in range(1, 6)
    ]
    hues = [colorsys.rgb_to_hsv(*(v / 255 for v in pixel))[1] for row in small for pixel in row]
    found = frame_levels(frame)
    assert found.brightness == pytest.approx(mean)
    assert found.dark == sum(value <= 25.5 for value in flat) / len(flat)
    assert found.contrast == pytest.approx(
        math.sqrt(sum((v - mean) ** 2 for v in flat) / len(flat))
    )
    assert found.detail == pytest.approx(sum(detail) / len(detail))
    assert found.saturation == pytest.approx(sum(hues) / len(hues), rel=1e-5)


@pytest.mark.parametrize(
    ("colour", "saturation", "brightness"),
    [
        ((0, 0, 0), 0, 0),
        ((255, 255, 255), 0, 255),
        ((255, 0, 0), 1, 0.299 * 255),
        ((200, 100, 100), 0.5, 0.299 * 200 + 0.701 * 100),
    ],
)
def test_levels_of_plain_colours(
    colour: tuple[int, int, int], saturation: float, brightness: float
) -> None:
    found = frame_levels(_plain(*colour))
    assert found.saturation == pytest.approx(saturation)
    assert found.dark == (brightness <= 25.5)
    assert found.brightness == pytest.approx(brightness)
    assert (found.contrast, found.detail) == pytest.approx((0, 0), abs=1e-9)


def test_change_is_that_of_a_loop_and_knows_no_sign() -> None:
    one, two = _noise(), _noise()
    pairs = zip(one.ravel().tolist(), two.ravel().tolist(), strict=True)
    truth = sum(abs(a - b) for a, b in pairs) / one.size
    assert frame_change(one, two) == pytest.approx(truth)
    assert frame_change(two, one) == pytest.approx(truth)
    assert frame_change(_plain(0, 0, 0), _plain(255, 255, 255)) == 255


def test_half_the_size_takes_every_second_pixel() -> None:
    frame = _noise(9, 13)
    assert halved(frame).shape == (5, 7, 3)
    assert luma(frame).shape == (9, 13)


def test_meter_keeps_each_frame() -> None:
    frames = [_noise() for _ in range(4)]
    meter = Meter()
    for frame in frames:
        meter.add(frame)
    film = meter.film()
    assert film.contrast.tolist() == [frame_levels(frame).contrast for frame in frames]
    assert math.isnan(film.change[0])
    assert film.change[1:].tolist() == [frame_change(*frames[n : n + 2]) for n in range(3)]
    assert Meter().film().change.shape == (0,)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((4, 14, 3), np.uint8), "14x4 pixels is too small"),
        (np.zeros((10, 16, 3), np.uint8), "frame 1 is 16x10, the frames before are 14x10"),
        (np.zeros((10, 14), np.uint8), "not uint8"),
        (np.zeros((10, 14, 3), np.float32), "float32"),
    ],
)
def test_meter_refuses(frame: NDArray[np.uint8], words: str) -> None:
    meter = Meter()
    meter.add(_noise())
    with pytest.raises(InputRefused, match=words):
        meter.add(frame)


def test_smallest_frame_has_detail() -> None:
    assert math.isfinite(frame_levels(_noise(5, 5)).detail)
