"""Intervals: Wilson's against his equation, the bootstrap's against theory and a loop."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest

from cfgen.metrics.intervals import bootstrap_mean, bootstrap_ratio, wilson

Z = NormalDist().inv_cdf(0.975)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (1, 3), (28, 64), (63, 64)])
def test_the_ends_of_wilson_are_a_score_of_1_96_away(right: int, count: int) -> None:
    found = wilson(right, count)
    assert (found.mean, found.count) == (right / count, count)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= 1
    for end in (found.low, found.high):
        if 0 < end < 1:
            spread = sqrt(end * (1 - end) / count)
            assert abs(found.mean - end) / spread == pytest.approx(Z)


def test_wilson_is_the_published_example() -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, without correction."""
    found = wilson(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@pytest.mark.parametrize(("right", "count"), [(0, 0), (-1, 3), (4, 3)])
def test_what_is_no_rate_is_refused(right: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{right} of {count}"):
        wilson(right, count)


def test_the_bootstrap_of_single_values_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap_mean([[each] for each in values.tolist()])
    half = Z * values.std() / sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (found.mean - half, found.mean + half), abs=half / 8
    )


def test_values_of_a_film_are_drawn_together() -> None:
    films = [[float(n)] * 10 for n in (0, 0, 1, 1, 0, 1, 0, 1)]
    together, apart = bootstrap_mean(films), bootstrap_mean([[v] for film in films for v in film])
    assert together.mean == apart.mean == 0.5
    assert together.count == apart.count == 80
    widths = [each.high - each.low for each in (together, apart)]  # type: ignore[operator]
    assert widths[0] > 2 * widths[1]


def test_longer_films_weigh_more_and_empty_ones_do_not_count() -> None:
    found = bootstrap_mean([[1.0, 1.0, 1.0], [5.0], []])
    assert found.mean == 2.0
    assert (found.low, found.high) == (1.0, 5.0)
    assert found == bootstrap_ratio(np.array([3.0, 5.0, 0.0]), np.array([3.0, 1.0, 0.0]))


def test_one_film_tells_no_interval_and_none_no_mean() -> None:
    found = bootstrap_mean([[2.0, 4.0], []])
    assert (found.mean, found.low, found.high, found.count) == (3.0, None, None, 2)
    with pytest.raises(ValueError, match="no value"):
        bootstrap_mean([[], []])
