"""The loss of flow matching: noise levels, weights, and what of it is logged.

Axis letters: B batch, F latent frames, C channels, h w latent grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """What counts how much.

    A weight may depend on what is known (the noise level, the noisy picture, what was shown before)
    but not on what is to be predicted: were cells with a subject weighed more, all cells would be
    predicted to have one more often than is true.

    Attributes:
        returning: weight of latent cells that only a memory of the past can know.
        motion: weight of the error's change from one latent frame to the next, where the error's
            own is 1.
        semantic: weight of the last `semantic_channels` channels, where any other's is 1.
        semantic_channels: how many those are.
    """

    returning: float = 1.0
    motion: float = 0.0
    semantic: float = 1.0
    semantic_channels: int = 0


class Errors:
    """Sums of a step: what the loss and the log are made of."""

    def __init__(self, weights: LossWeights) -> None:
        self._weights = weights
        self._losses: list[Tensor] = []
        self._draws = 0
        self._sums: dict[str, list[float]] = {}

    def add(
        self,
        error: Tensor,
        subjects: Tensor,
        returns: Tensor,
        *,
        draws: int,
        by_sample: Tensor | None = None,
    ) -> None:
        """Add the loss of a chunk, which counts once for each of its noise draws.

        Args:
            error: predicted flow less the true one, [draws * B, F, C, h, w].
            subjects: cells near a subject, [B, F, h, w] in {0, 1}.
            returns: cells whose place was shown before, [B, F, h, w] in {0, 1}.
            draws: noise draws of each film.
            by_sample: further weights, broadcast to `error`.
        """
        w = self._weights
        subjects, returns = (x[:, :, None].repeat(draws, 1, 1, 1, 1) for x in (subjects, returns))
        texture = error.shape[2] - w.semantic_channels
        channels = torch.ones_like(error[0, 0, :, :1, :1])
        channels[texture:] = w.semantic
        weight = channels * (1 + (w.returning - 1) * returns)
        if by_sample is not None:
            weight = weight * by_sample
        squares = error.square()
        loss = (weight * squares).mean()
        if w.motion:
            change = (error[:, 1:] - error[:, :-1]).square() / 2
            loss = (loss + w.motion * (weight[:, 1:] * change).mean()) / (1 + w.motion)
        self._losses.append(loss * draws)
        self._draws += draws
        with torch.no_grad():
            self._note("all", squares, torch.ones_like(returns))
            self._note("returning", squares, returns)
            self._note("subject", squares, subjects)
            if w.semantic_channels:
                self._note("semantic", squares[:, :, texture:], torch.ones_like(returns))

    def add_aside(self, name: str, loss: Tensor, weight: float, *, draws: int) -> None:
        """Add another loss of the chunk that was added last; it is logged by its name."""
        self._losses.append(weight * loss * draws)
        self._sums.setdefault(name, []).append(float(loss.detach()))

    def _note(self, name: str, squares: Tensor, cells: Tensor) -> None:
        """Mean of squares [n, F, C, h, w] over chosen cells [n, F, 1, h, w], if there are any."""
        if count := float(cells.sum()):
            mean = float((squares * cells).sum()) / (count * squares.shape[2])
            self._sums.setdefault(name, []).append(mean)

    def total(self) -> tuple[Tensor, dict[str, float]]:
        """Weighted mean loss, and figures to log."""
        figures = {name: sum(values) / len(values) for name, values in self._sums.items()}
        return torch.stack(self._losses).sum() / self._draws, figures


def shifted_levels(count: int, shift: float, noise: torch.Generator) -> Tensor:
    """Noise levels [count, 1, 1, 1, 1]: shift u / (1 + (shift - 1) u) for u even in [0, 1]."""
    even = torch.rand(count, 1, 1, 1, 1, generator=noise)
    return shift * even / (1 + (shift - 1) * even)


def spread_levels(draws: int, batch: int, shift: float, noise: torch.Generator) -> Tensor:
    """As `shifted_levels`, [draws * batch, 1, 1, 1, 1], each film's spread over the range."""
    strata = torch.stack([torch.randperm(draws, generator=noise) for _ in range(batch)], 1)
    even = (strata + torch.rand(draws, batch, generator=noise)) / draws
    return (shift * even / (1 + (shift - 1) * even)).reshape(-1, 1, 1, 1, 1)


def bell(level: Tensor) -> Tensor:
    """The weight of noise levels that Wan's schedules train with: 0 at the ends, 2.08 midway.

    Source: DiffSynth-Studio's flow matching schedule at shift 5, whose weights have the mean 1 over
    its 1000 levels.
    """
    return 5.277 * (torch.exp(-2 * (level - 0.5).square()) - math.exp(-0.5))
