"""Drift of latents against direct loops, and of latents that grow, shift, blur or stand still."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen.errors import InputRefused
from cfgen.metrics.latents import cosine, fine_share, latent_drift

RNG = np.random.default_rng(23)


def _noise(height: int = 6, width: int = 8) -> NDArray[np.float64]:
    return RNG.normal(0.3, 2, (3, 4, height, width))


def test_fine_share_is_that_of_a_loop() -> None:
    latents = _noise(5, 7)
    whole = fine = 0.0
    for frame, channel in product(range(3), range(4)):
        plane = latents[frame, channel, :4, :6]
        mean = sum(plane.ravel().tolist()) / plane.size
        for y, x in product(range(4), range(6)):
            top, left = y // 2 * 2, x // 2 * 2
            cells = [float(plane[top + j, left + i]) for j in (0, 1) for i in (0, 1)]
            whole += (float(plane[y, x]) - mean) ** 2
            fine += (float(plane[y, x]) - sum(cells) / 4) ** 2
    assert fine_share(latents) == pytest.approx(fine / whole)


def test_fine_share_of_known_planes() -> None:
    squares = np.kron(_noise(), np.ones((2, 2)))
    board = np.indices((8, 8)).sum(axis=0)[None, None] % 2 * 1.0
    assert fine_share(squares) == pytest.approx(0, abs=1e-12)
    assert fine_share(board) == pytest.approx(1)
    assert fine_share(np.ones((1, 1, 4, 4))) == 0
    assert fine_share(_noise(100, 100)) == pytest.approx(0.75, abs=0.01)


def test_drift_is_that_of_a_loop() -> None:
    chunks = [_noise() for _ in range(5)]
    found = latent_drift(chunks)
    mean = [[float(chunk[:, c].mean()) for c in range(4)] for chunk in chunks]
    std = [[float(chunk[:, c].std()) for c in range(4)] for chunk in chunks]
    for k in range(5):
        shifts, spreads = [], []
        for c in range(4):
            usual = sum(std[n][c] for n in range(3)) / 3
            shifts.append((mean[k][c] - sum(mean[n][c] for n in range(3)) / 3) / usual)
            spreads.append(std[k][c] / usual)
        assert found.shift[k] == pytest.approx(math.sqrt(sum(s * s for s in shifts) / 4))
        assert found.spread[k] == pytest.approx(math.prod(spreads) ** 0.25)
        assert found.to_first[k] == pytest.approx(cosine(chunks[0], chunks[k]))
    assert math.isnan(found.to_before[0])
    assert found.to_before[4] == cosine(chunks[3], chunks[4])


def test_latents_that_stand_still() -> None:
    found = latent_drift([_noise()] * 4)
    assert found.shift == pytest.approx(np.zeros(4), abs=1e-12)
    for figures in (found.spread, found.detail, found.to_first, found.to_before[1:]):
        assert figures == pytest.approx(np.ones(len(figures)))


@pytest.mark.parametrize("gain", [0.5, 1.05, 2])
def test_latents_that_grow(gain: float) -> None:
    base = _noise() - 0.3
    base -= base.mean(axis=(0, 2, 3), keepdims=True)
    found = latent_drift([base, base, base, gain * base])
    assert found.spread[3] == pytest.approx(gain)
    assert found.shift[3] == pytest.approx(0, abs=1e-12)
    assert (found.detail[3], found.to_first[3]) == pytest.approx((1, 1))


def test_latents_that_shift_by_a_standard_deviation() -> None:
    base = _noise()
    found = latent_drift([base] * 3 + [base + base.std(axis=(0, 2, 3), keepdims=True)])
    assert found.shift[3] == pytest.approx(1)
    assert found.spread[3] == pytest.approx(1)


def test_channel_that_dies_has_no_spread() -> None:
    dead = _noise()
    dead[:, 2] = 0
    assert latent_drift([_noise(), _noise(), _noise(), dead]).spread[3] == 0


@pytest.mark.parametrize(
    ("one", "two", "truth"),
    [([1, 0], [0, 3], 0), ([1, 1], [-2, -2], -1), ([1, 0], [1, 1], 0.5**0.5)],
)
def test_cosine(one: list[float], two: list[float], truth: float) -> None:
    assert cosine(np.array(one, float), np.array(two, float)) == pytest.approx(truth)
    assert math.isnan(cosine(np.zeros(2), np.array(two, float)))


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([], "got none"),
        ([_noise(), _noise(6, 6)], r"\[3, 4, 6, 8\] and \[3, 4, 6, 6\]"),
        ([np.ones((4, 4))], r"and \[4, 4\]"),
        ([np.ones((3, 4, 6, 8))], "does not vary"),
    ],
)
def test_latents_without_drift_are_refused(chunks: list[NDArray[np.float64]], words: str) -> None:
    with pytest.raises(InputRefused, match=words):
        latent_drift(chunks)
