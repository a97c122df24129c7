"""Scores of whole films: still, cut, drifting, seamed; and films against one another."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen.errors import InputRefused
from cfgen.metrics.change import ChunkGrid
from cfgen.metrics.events import Span
from cfgen.metrics.film import compare_films, score_film
from cfgen.metrics.reference import psnr, ssim

FPS = Fraction(16)
WAN = ChunkGrid.of(latents=3, stride=4)
WORLD: NDArray[np.uint8] = np.random.default_rng(19).integers(60, 180, (16, 900, 3), np.uint8)


def _pan(frames: int, first: int = 0) -> list[NDArray[np.uint8]]:
    """A view of 16 by 24 that goes over the world, a pixel a frame."""
    return [WORLD[:, first + number : first + number + 24] for number in range(frames)]


def _saturated(frame: NDArray[np.uint8], gain: float) -> NDArray[np.uint8]:
    """The distance of each colour from its pixel's greatest, stretched: S of HSV grows by gain."""
    highest = frame.max(axis=-1, keepdims=True).astype(float)
    stretched = np.round(highest - gain * (highest - frame)).clip(0, 255)
    return np.asarray(stretched, dtype=np.uint8)


def test_even_pan_has_no_alarm() -> None:
    found = score_film(iter(_pan(480)), FPS, grid=WAN)
    assert found.alarms() == ()
    assert (found.cuts, found.freezes, found.black) == ((), (), ())
    assert found.seams is not None
    assert found.seams.ratio == pytest.approx(1, abs=0.05)
    assert found.drift.saturation.ratio == pytest.approx(1, abs=0.1)


def test_still_film() -> None:
    found = score_film(_pan(1) * 240, FPS)
    assert found.alarms() == ("nothing moves", "the film stands still from 0.0 s to 15.0 s")
    assert (found.motion, found.flicker, found.freezes) == (0, 1, (Span(0, 240),))
    assert found.wrap is not None
    assert found.wrap.psnr == math.inf


def test_black_film() -> None:
    found = score_film([np.zeros((8, 8, 3), np.uint8)] * 32, FPS)
    assert found.alarms()[-1] == "the film is black from 0.0 s to 2.0 s"


def test_hard_cut() -> None:
    dark = [frame // 3 for frame in _pan(140)]
    found = score_film([*_pan(140), *dark], FPS)
    assert found.cuts == (140,)
    assert any(said.startswith("contrast drifts to 0.3") for said in found.alarms())


def test_saturation_that_grows_five_percent_a_second() -> None:
    frames = _pan(1)[0]
    gains = (0.4 * (1 + number // 16 / 20) for number in range(320))
    moving = (_saturated(frames, gain) + np.uint8(n % 2) for n, gain in enumerate(gains))
    found = score_film(moving, FPS).drift.saturation
    # seconds 16 to 19 over seconds 4 to 7
    assert found.ratio == pytest.approx((1 + 17.5 / 20) / (1 + 5.5 / 20), rel=0.02)


def test_seam_is_told() -> None:
    """The light changes by 30 levels at each chunk."""
    lights = [30 * ((number + 3) // 12 % 2) for number in range(240)]
    film = [frame // 4 + np.uint8(light) for frame, light in zip(_pan(240), lights, strict=True)]
    found = score_film(film, FPS, grid=WAN)
    assert found.seams is not None
    assert found.seams.ratio is not None
    assert found.seams.ratio > 2
    assert found.seams.worst is not None
    assert found.seams.worst % 12 == 9
    said = f"{found.seams.ratio:.2f} times as much where chunks meet"
    assert any(said in alarm for alarm in found.alarms())
    other = score_film(film, FPS, grid=ChunkGrid.of(latents=4)).seams
    assert other is not None
    assert other.ratio != found.seams.ratio
    assert score_film(film, FPS).seams is None


def test_film_without_frames() -> None:
    found = score_film([], FPS)
    assert (found.motion, found.flicker, found.wrap, found.alarms()) == (None, None, None, ())


def test_films_are_compared_frame_by_frame() -> None:
    film, reference = _pan(6), _pan(6)
    reference[4] = reference[4] + np.uint8(3)
    reference[5] = reference[5] + np.uint8(1)
    found = compare_films(film, iter(reference))
    assert found.errors.tolist() == [0, 0, 0, 0, 9, 1]
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (10 / 6)))
    assert (found.worst, found.first_unequal) == (4, 4)
    assert found.ssim.tolist() == [1, 1, 1, 1, *map(ssim, film[4:], reference[4:])]
    assert psnr(film[4], reference[4]) == pytest.approx(10 * math.log10(255**2 / 9))


def test_equal_films() -> None:
    found = compare_films(_pan(3), _pan(3))
    assert (found.psnr, found.first_unequal, found.ssim.min()) == (math.inf, None, 1)


@pytest.mark.parametrize(
    ("film", "reference", "words"),
    [
        (3, 2, "the film has more than 2 frames, the other has 2"),
        (2, 5, "the reference has more than 2 frames"),
        (0, 0, "no frames to compare"),
    ],
)
def test_films_of_other_lengths_are_refused(film: int, reference: int, words: str) -> None:
    with pytest.raises(InputRefused, match=words):
        compare_films(_pan(film), _pan(reference))
