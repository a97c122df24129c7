"""What counts how much in the loss of flow matching, against plain sums."""

import pytest
import torch

from cfgen.train.flow_loss import Errors, LossWeights


def _total(error: torch.Tensor, weights: LossWeights, returns: torch.Tensor) -> float:
    errors = Errors(weights)
    errors.add(error, torch.zeros_like(returns), returns, draws=2)
    return errors.total()[0].item()


def test_each_weight_multiplies_what_it_is_for() -> None:
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(2, 3, 5, 2, 2, generator=generator)
    returns = torch.tensor([[[[1.0, 0], [0, 0]]] * 3])
    weights = LossWeights(returning=4, semantic=3, semantic_channels=2)
    expected = 0.0
    for draw, frame, channel, row, column in torch.cartesian_prod(*map(torch.arange, error.shape)):
        weight = 4 if (row, column) == (0, 0) else 1
        weight *= 3 if channel >= 3 else 1
        expected += weight * error[draw, frame, channel, row, column].item() ** 2
    assert _total(error, weights, returns) == pytest.approx(expected / error.numel(), rel=1e-5)


def test_no_weight_moves_the_mean_that_is_learnt() -> None:
    """Of two equally likely pictures the mean has the least error, whatever they show where."""
    one, other = torch.zeros(1, 1, 3, 1, 2), torch.tensor([3.0, -1.0]).expand(1, 1, 3, 1, 2)
    weights = LossWeights(returning=4, motion=1, semantic=3, semantic_channels=1)
    returns = torch.tensor([[[[1.0, 0.0]]]])
    at_mean = ((one + other) / 2).requires_grad_()
    errors = Errors(weights)
    for picture in (one, other):
        errors.add(at_mean - picture, torch.zeros_like(returns), returns, draws=1)
    errors.total()[0].backward()
    assert at_mean.grad.abs().max() < 1e-6
