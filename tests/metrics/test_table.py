"""Rows of ten seconds against direct loops over the frames."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen.metrics.change import ChunkGrid
from cfgen.metrics.film import FilmScore, score_film
from cfgen.metrics.table import rows_of

RNG = np.random.default_rng(23)
GRID = ChunkGrid(first=9, size=12)


def _film(frames: int, fps: Fraction) -> tuple[list[NDArray[np.uint8]], FilmScore]:
    made = [RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8) for _ in range(frames)]
    return made, score_film(made, fps, grid=GRID)


@pytest.mark.parametrize("fps", [Fraction(4), Fraction(5, 2), Fraction(30000, 1001)])
def test_rows_are_means_over_their_frames(fps: Fraction) -> None:
    frames = int(23 * fps)
    made, score = _film(frames, fps)
    rows = rows_of(score)
    assert len(rows) == 3
    change = [
        float(np.abs(two.astype(int) - one).mean())
        for one, two in zip(made, made[1:], strict=False)
    ]
    for number, row in enumerate(rows):
        mine = [n for n in range(frames) if n / fps // 10 == number]
        assert (row.from_s, row.to_s) == (
            pytest.approx(float(mine[0] / fps)),
            pytest.approx(float((mine[-1] + 1) / fps)),
        )
        moved = [change[n - 1] for n in mine if n]
        assert row.motion == pytest.approx(sum(moved) / len(moved))
        assert row.flicker == pytest.approx(1 - sum(moved) / len(moved) / 255)
        even = [score.levels.contrast[n] for n in mine if n % 2 == 0]
        assert row.contrast == pytest.approx(sum(even) / len(even))
        seam = [change[n - 1] for n in mine if n >= 9 and (n - 9) % 12 == 0]
        other = [change[n - 1] for n in mine if n and (n < 9 or (n - 9) % 12)]
        ratio = sum(seam) / len(seam) / (sum(other) / len(other)) if seam else None
        assert row.seam_ratio == (None if ratio is None else pytest.approx(ratio))


def test_stills_and_black_are_shared_out_over_rows() -> None:
    black, grey = (np.full((8, 8, 3), level, np.uint8) for level in (0, 90))
    film = [grey] * 72 + [black] * 24
    first, second, third = rows_of(score_film(film, Fraction(4)))
    assert (first.still_s, second.still_s, third.still_s) == (10, 10, 4)
    assert (first.black_s, second.black_s, third.black_s) == (0, 2, 4)
    assert (first.cuts, second.cuts, third.cuts) == (0, 1, 0)
    assert first.seam_ratio is None


def test_no_frames_no_rows_and_one_frame_has_no_motion() -> None:
    assert rows_of(score_film([], Fraction(16))) == ()
    (row,) = rows_of(score_film([np.zeros((8, 8, 3), np.uint8)], Fraction(16)))
    assert (row.motion, row.flicker, row.brightness, row.to_s) == (None, None, 0, 1 / 16)
