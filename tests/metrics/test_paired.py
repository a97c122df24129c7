"""The paired bootstrap: against theory, a loop, and on settings that are equal or apart."""

from __future__ import annotations

import numpy as np
import pytest

from cfgen.errors import InputRefused
from cfgen.metrics.paired import paired_bootstrap

RNG = np.random.default_rng(37)
KEYS = [(f"prompt {p}", seed) for p in range(40) for seed in range(3)]
BASE = {key: float(RNG.normal(0, 10)) for key in KEYS}


def test_constant_difference_has_no_width() -> None:
    found = paired_bootstrap(BASE, {key: value + 2 for key, value in BASE.items()})
    assert (found.difference, found.low, found.high) == pytest.approx((2, 2, 2))
    assert (found.prompts, found.pairs, found.told_apart) == (40, 120, True)


def test_equal_settings_are_not_told_apart() -> None:
    found = paired_bootstrap(BASE, BASE)
    assert (found.difference, found.told_apart) == (0, False)


def test_interval_is_that_of_the_normal_distribution() -> None:
    """Pairs cancel what prompts differ in; the width follows from the means of prompts."""
    other = {key: value + float(RNG.normal(0.5, 1)) for key, value in BASE.items()}
    found = paired_bootstrap(BASE, other, resamples=20_000)
    means = [
        sum(other[p, s] - BASE[p, s] for s in range(3)) / 3 for p in sorted({k[0] for k in KEYS})
    ]
    error = float(np.std(means)) / 40**0.5
    assert found.difference == pytest.approx(sum(means) / 40)
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=0.2 * error)
    assert paired_bootstrap(other, BASE).difference == pytest.approx(-found.difference)


def test_each_prompt_counts_once_whatever_its_seeds() -> None:
    base = {("a", 0): 0.0, ("b", 0): 0.0, ("b", 1): 0.0, ("b", 2): 0.0, ("c", 9): 5.0}
    other = {("a", 0): 1.0, ("b", 0): 3.0, ("b", 1): 3.0, ("b", 2): 3.0, ("d", 9): 5.0}
    found = paired_bootstrap(base, other)
    assert (found.difference, found.low, found.high) == (2, 1, 3)
    assert (found.prompts, found.pairs) == (2, 4)


def test_draws_follow_the_seed() -> None:
    other = {key: float(RNG.normal()) for key in KEYS}
    assert paired_bootstrap(BASE, other) == paired_bootstrap(BASE, other)
    assert paired_bootstrap(BASE, other) != paired_bootstrap(BASE, other, seed=1)


@pytest.mark.parametrize(("prompts", "count"), [([], 0), (["prompt 1"], 1)])
def test_fewer_than_two_prompts_are_refused(prompts: list[str], count: int) -> None:
    some = {(prompt, 0): 1.0 for prompt in prompts}
    with pytest.raises(InputRefused, match=f"these share {count}"):
        paired_bootstrap(BASE, some)
