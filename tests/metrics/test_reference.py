"""PSNR and SSIM against direct double loops, and of frames whose likeness is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen.errors import InputRefused
from cfgen.metrics.reference import psnr, psnr_of, squared_error, ssim

RNG = np.random.default_rng(11)
NOISE: NDArray[np.uint8] = RNG.integers(0, 256, (14, 13, 3), dtype=np.uint8)
OTHER: NDArray[np.uint8] = np.clip(NOISE + RNG.normal(0, 30, NOISE.shape), 0, 255).astype(np.uint8)


def _looped_ssim(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    weight = {(y, x): math.exp(-(y * y + x * x) / 4.5) for y in range(-5, 6) for x in range(-5, 6)}
    whole = sum(weight.values())
    found = []

    def grey(frame: NDArray[np.uint8], y: int, x: int) -> float:
        red, green, blue = (int(part) for part in frame[y, x])
        return 0.299 * red + 0.587 * green + 0.114 * blue

    for y in range(5, one.shape[0] - 5):
        for x in range(5, one.shape[1] - 5):
            cells = [
                (w / whole, grey(one, y + j, x + i), grey(two, y + j, x + i))
                for (j, i), w in weight.items()
            ]
            a, b = sum(w * p for w, p, _ in cells), sum(w * q for w, _, q in cells)
            aa = sum(w * (p - a) ** 2 for w, p, _ in cells)
            bb = sum(w * (q - b) ** 2 for w, _, q in cells)
            ab = sum(w * (p - a) * (q - b) for w, p, q in cells)
            top = (2 * a * b + 2.55**2) * (2 * ab + 7.65**2)
            found.append(top / ((a * a + b * b + 2.55**2) * (aa + bb + 7.65**2)))
    return sum(found) / len(found)


def test_psnr_is_that_of_a_loop() -> None:
    pairs = list(zip(NOISE.ravel().tolist(), OTHER.ravel().tolist(), strict=True))
    error = sum((a - b) ** 2 for a, b in pairs) / len(pairs)
    assert squared_error(NOISE, OTHER) == pytest.approx(error)
    assert psnr(NOISE, OTHER) == pytest.approx(10 * math.log10(255 * 255 / error))
    assert psnr(OTHER, NOISE) == psnr(NOISE, OTHER)


@pytest.mark.parametrize(
    ("error", "db"), [(0, math.inf), (1, 48.1308), (255.0**2, 0), (65.025, 30)]
)
def test_psnr_of_known_errors(error: float, db: float) -> None:
    assert psnr_of(error) == pytest.approx(db, abs=1e-4)


def test_ssim_is_that_of_a_loop() -> None:
    found = ssim(NOISE, OTHER)
    assert found == pytest.approx(_looped_ssim(NOISE, OTHER), rel=1e-9)
    assert 0 < found < 1
    assert ssim(OTHER, NOISE) == pytest.approx(found)


def test_ssim_of_equal_and_of_inverted_frames() -> None:
    assert ssim(NOISE, NOISE) == pytest.approx(1)
    assert psnr(NOISE, NOISE) == math.inf
    assert ssim(NOISE, 255 - NOISE) < 0


def test_ssim_of_plain_frames_compares_their_means() -> None:
    dark, light = (np.full((12, 12, 3), level, np.uint8) for level in (50, 100))
    truth = (2 * 50 * 100 + 2.55**2) / (50**2 + 100**2 + 2.55**2)
    assert ssim(dark, light) == pytest.approx(truth)


def test_frames_of_other_sizes_are_refused() -> None:
    with pytest.raises(InputRefused, match="13x14 pixels cannot be compared with one of 13x12"):
        psnr(NOISE, NOISE[:12])
    with pytest.raises(InputRefused, match="13x14 pixels cannot be compared with one of 12x14"):
        ssim(NOISE, NOISE[:, :12])
    with pytest.raises(InputRefused, match="at least 11x11 pixels, these are 13x10"):
        ssim(NOISE[:10], NOISE[:10])
