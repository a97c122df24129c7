"""Flicker, seams and wraps against loops, and of films that are still, even or seamed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen.metrics.change import ChunkGrid, autocorrelation, flicker, motion, seams, wrap
from cfgen.metrics.levels import FilmLevels, Meter
from cfgen.metrics.reference import psnr

RNG = np.random.default_rng(13)
WAN = ChunkGrid.of(latents=3, stride=4)


def _measured(frames: list[NDArray[np.uint8]]) -> FilmLevels:
    meter = Meter()
    for frame in frames:
        meter.add(frame)
    return meter.film()


def _grey(level: int) -> NDArray[np.uint8]:
    return np.full((6, 8, 3), level, np.uint8)


@pytest.mark.parametrize(
    ("frames", "latents", "stride", "starts"),
    [
        (0, 3, 4, []),
        (9, 3, 4, []),
        (10, 3, 4, [9]),
        (45, 3, 4, [9, 21, 33]),
        (46, 3, 4, [9, 21, 33, 45]),
        (5, 1, 1, [1, 2, 3, 4]),
        (20, 2, 8, [9]),
    ],
)
def test_chunks_begin_where_latent_frames_do(
    frames: int, latents: int, stride: int, starts: list[int]
) -> None:
    begins = [0] + [stride * number - stride + 1 for number in range(1, frames + 1)]
    truth = [begins[n] for n in range(latents, len(begins), latents) if begins[n] < frames]
    grid = ChunkGrid.of(latents=latents, stride=stride)
    assert grid.starts(frames).tolist() == starts == truth


def test_flicker_is_that_of_a_loop() -> None:
    frames = [RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(7)]
    apart = [
        sum(abs(int(a) - int(b)) for a, b in zip(one.flat, two.flat, strict=True)) / one.size
        for one, two in zip(frames, frames[1:], strict=False)
    ]
    levels = _measured(frames)
    assert motion(levels.change) == pytest.approx(sum(apart) / 6)
    assert flicker(levels.change) == pytest.approx((255 - sum(apart) / 6) / 255)


def test_still_film() -> None:
    levels = _measured([_grey(80)] * 50)
    found = seams(levels.change, levels.brightness, WAN)
    assert (motion(levels.change), flicker(levels.change)) == (0, 1)
    assert (found.ratio, found.pulse, found.visible) == (None, None, False)
    assert wrap(_grey(80), _grey(80), levels.change).ratio is None


@pytest.mark.parametrize("frames", [0, 1])
def test_film_without_pairs_has_no_motion(frames: int) -> None:
    levels = _measured([_grey(80)] * frames)
    assert motion(levels.change) is None
    assert flicker(levels.change) is None
    found = seams(levels.change, levels.brightness, WAN)
    assert (found.ratio, found.worst, found.pulse) == (None, None, None)


@pytest.mark.parametrize(
    ("jump", "ratio", "visible"), [(0, 0, False), (2, 1, False), (3, 1.5, True)]
)
def test_seams_of_an_even_ramp(jump: int, ratio: float, visible: bool) -> None:
    """Two levels a frame, `jump` where a chunk begins: 0 is a frame that is repeated there."""
    starts = WAN.starts(60)
    steps = np.full(60, 2)
    steps[starts] = jump
    levels = _measured([_grey(level) for level in np.cumsum(steps).tolist()])
    found = seams(levels.change, levels.brightness, WAN)
    assert found.ratio == pytest.approx(ratio)
    assert found.visible is visible


def test_new_shots_are_no_seams() -> None:
    grid = ChunkGrid(first=9, size=12, scenes=(21,))
    levels = _measured([_grey(level) for level in [*range(10, 31), *range(120, 140)]])
    found = seams(levels.change, levels.brightness, grid)
    assert (found.ratio, found.worst) == (pytest.approx(1), 9)
    assert seams(levels.change, levels.brightness, WAN).ratio == pytest.approx((2 + 90) / 3)


def test_worst_seam_is_named() -> None:
    levels = _measured([_grey(level) for level in [10] * 21 + [60] * 12 + [70] * 12])
    found = seams(levels.change, levels.brightness, WAN)
    assert found.worst == 21
    assert found.ratio is None  # nothing moves elsewhere


@pytest.mark.parametrize("level", [0.0, 0.1, 206.8237341])
def test_an_even_film_has_no_pulse(level: float) -> None:
    """Also where the mean of its brightness is rounded to something else."""
    assert autocorrelation(np.full(961, level), 12) is None


def test_pulse_of_a_film_that_repeats_itself_each_chunk() -> None:
    saw = np.tile(np.arange(12.0), 20)
    change = np.ones(240)
    found = seams(change, saw, WAN)
    assert found.pulse == pytest.approx(19 / 20)
    assert autocorrelation(saw, 6) == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize("lag", [1, 3, 10])
def test_autocorrelation_is_that_of_a_loop(lag: int) -> None:
    values = RNG.random(40)
    mean = sum(values.tolist()) / 40
    apart = [value - mean for value in values.tolist()]
    truth = sum(apart[n] * apart[n + lag] for n in range(40 - lag)) / sum(a * a for a in apart)
    assert autocorrelation(values, lag) == pytest.approx(truth)
    assert autocorrelation(values[: 2 * lag - 1], lag) is None


def test_wrap_of_a_ramp() -> None:
    frames = [_grey(level) for level in range(0, 40, 2)]
    found = wrap(frames[0], frames[-1], _measured(frames).change)
    assert found.ratio == pytest.approx(38 / 2)
    assert found.psnr == psnr(frames[-1], frames[0])
    assert wrap(frames[0], frames[0], _measured(frames).change).psnr == math.inf
