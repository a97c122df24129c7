"""The critic's steps are held back where they outrun the student's."""

from __future__ import annotations

import pytest
import torch

from cfgen.train.context_forcing.step_limiter import StepLimiter


def limiter() -> StepLimiter:
    """Weights of norm 4 and 2; five critic steps a student step, at a fifth of its rate."""
    return StepLimiter([torch.full((4, 4), 1.0)], [torch.full((4,), 1.0)], (5e-6, 1e-6), 5)


@pytest.mark.parametrize(
    ("student", "critic", "factor"),
    [(1.0, 0.5, 1.0), (1.0, 0.75, 1.0), (1.0, 1.0, 0.75), (1.0, 2.0, 0.5), (0.0, 1.0, 0.5)],
)
def test_steps_relative_to_weights_are_compared(
    student: float, critic: float, factor: float
) -> None:
    made = limiter()
    assert made.student(student) == 1.0
    assert made.critic(critic) == pytest.approx(factor)


def test_before_the_student_stepped_nothing_is_limited() -> None:
    assert limiter().critic(100.0) == 1.0


def test_norms_are_averaged_and_kept() -> None:
    made = limiter()
    made.student(1.0)
    made.student(2.0)
    assert made.state()[0] == pytest.approx(1.1)
    again = limiter()
    again.restore(made.state())
    assert [made.critic(1.0), made.ratio] == [again.critic(1.0), again.ratio]
