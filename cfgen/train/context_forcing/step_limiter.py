"""Keeps the critic's steps from outrunning the student's.

Steps are compared relative to the size of the weights they change: rate times gradient norm over
weight norm, the critic's several steps together against the student's one. A norm is told times the
share of the peak rate that its step has, since the two rates fall differently.
Source: the limiter of the Context Forcing release, which is off there, as described.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 1.5
"""Ratio of relative steps beyond which the critic's gradients are scaled down."""

LEAST_FACTOR = 0.5
DECAY = 0.9


class StepLimiter:
    """Follows the steps of both; tells the factor on the critic's gradients.

    Args:
        student: weights of the student.
        critic: weights of the critic.
        rates: peak learning rates of student and critic.
        ratio: critic steps to a step of the student.
    """

    def __init__(
        self,
        student: Sequence[Tensor],
        critic: Sequence[Tensor],
        rates: tuple[float, float],
        ratio: int,
    ) -> None:
        self._weights, self._rates, self._ratio = (student, critic), rates, ratio
        self._norms = torch.full((2,), float("nan"), dtype=torch.float64)

    def student(self, norm: float) -> float:
        """Note the norm of the student's clipped gradient times its share of the peak rate.

        Returns:
            1: the student is never limited.
        """
        self._follow(0, norm)
        return 1.0

    def critic(self, norm: float) -> float:
        """Note the norm of the critic's clipped gradient times its share of the peak rate.

        Returns:
            the factor on the gradient, in [0.5, 1].
        """
        self._follow(1, norm)
        ratio = self.ratio
        return max(LEAST_FACTOR, MOST / ratio) if ratio > MOST else 1.0

    @property
    def ratio(self) -> float:
        """The critic's relative steps over the student's; not a number before both have stepped."""
        student, critic = (
            float(norm) * rate / _norm(weights)
            for norm, rate, weights in zip(self._norms, self._rates, self._weights, strict=True)
        )
        return self._ratio * critic / student if student else float("inf")

    def state(self) -> Tensor:
        """The averages of both steps, [2] float64."""
        return self._norms.clone()

    def restore(self, state: Tensor) -> None:
        """Take what `state` gave."""
        self._norms = state.clone()

    def _follow(self, which: int, norm: float) -> None:
        known = float(self._norms[which])
        self._norms[which] = norm if math.isnan(known) else DECAY * known + (1 - DECAY) * norm


@torch.no_grad()
def _norm(weights: Sequence[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm(list(weights))).norm())
