"""Whether one setting is better than another, on films of the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cfgen.errors import InputRefused

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference of a figure between two settings.

    Attributes:
        difference: Mean over prompts of the mean over seeds of other minus base.
        low: Lower end of the bootstrap interval of 95 percent.
        high: Upper end of it.
        prompts: Prompts that both have.
        pairs: Films that both have.
    """

    difference: float
    low: float
    high: float
    prompts: int
    pairs: int

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    base: Mapping[tuple[str, int], float],
    other: Mapping[tuple[str, int], float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """Compare a figure of films that two settings made of the same prompts and seeds.

    Prompts are drawn with replacement, each with all of its seeds: films of one prompt are alike.

    Args:
        base: The figure by prompt and seed.
        other: The same of the other setting; what only one of them has does not count.
        resamples: How often prompts are drawn.
        seed: Of the draws.

    Raises:
        InputRefused: They share fewer than two prompts.
    """
    shared = sorted(set(base) & set(other))
    by_prompt: dict[str, list[float]] = {}
    for key in shared:
        by_prompt.setdefault(key[0], []).append(other[key] - base[key])
    if len(by_prompt) < 2:
        raise InputRefused(
            f"films are compared over two prompts or more, these share {len(by_prompt)}"
        )
    means = np.array([sum(each) / len(each) for each in by_prompt.values()])
    drawn = np.random.default_rng(seed).integers(0, len(means), (resamples, len(means)))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means[drawn].mean(axis=1), [tail, 1 - tail]).tolist()
    return Paired(float(means.mean()), low, high, len(means), len(shared))
