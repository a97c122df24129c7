"""Noise levels and noise: pure functions of the step, the seed, the chunk.

Flow matching with x_sigma = (1 - sigma) x0 + sigma noise; a network predicts flow = noise - x0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def warp(sigma: float, shift: float) -> float:
    """Shifted noise level: shift s / (1 + (shift - 1) s).

    Source: Self-Forcing utils/scheduler.py @ 33593df.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


@dataclass(frozen=True, slots=True)
class FewStepSchedule:
    """The noise levels a chunk passes through, and how it gets from one to the next.

    Args:
        sigmas: descending levels in (0, 1], one a denoising pass.
        renoise: `fresh` mixes new noise into the predicted clean chunk (distilled models,
            Self-Forcing); `predicted` mixes in the noise that the prediction implies (an Euler
            step, for base models).
        first: the levels of the first chunk that is made, and of the first of a fresh shot,
            where they are others.
    """

    sigmas: tuple[float, ...]
    renoise: str = "fresh"
    first: tuple[float, ...] = ()

    @classmethod
    def from_timesteps(
        cls,
        timesteps: Sequence[float],
        *,
        shift: float = 5.0,
        warped: bool = True,
        renoise: str = "fresh",
        first: Sequence[float] = (),
    ) -> FewStepSchedule:
        """From timesteps in (0, 1000], warped by `shift` unless they already are."""

        def levels(listed: Sequence[float]) -> tuple[float, ...]:
            return tuple(warp(t / 1000, shift) if warped else t / 1000 for t in listed)

        return cls(levels(timesteps), renoise, levels(first))

    @property
    def opening(self) -> FewStepSchedule:
        """That of a chunk that opens a scene."""
        return FewStepSchedule(self.first or self.sigmas, self.renoise)

    @property
    def draws(self) -> int:
        """How often a chunk draws noise."""
        return len(self.sigmas) if self.renoise == "fresh" else 1

    def clean(self, x: Tensor, flow: Tensor, step: int) -> Tensor:
        """Predicted clean chunk x0 = x - sigma flow, computed in float64, in the dtype of `x`."""
        return (x.double() - self.sigmas[step] * flow.double()).to(x.dtype)

    def next(self, x0: Tensor, flow: Tensor, step: int, noise: Tensor | None) -> Tensor:
        """The chunk at the level of `step + 1`; `noise` is needed where `renoise` is `fresh`."""
        sigma = self.sigmas[step + 1]
        source = x0 + flow if noise is None else noise
        return (1 - sigma) * x0 + sigma * source


class Noise(Protocol):
    """Where a rollout takes its noise from."""

    def draw(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 [B, F, C, H, W] on the CPU; step 0 starts the chunk."""


@dataclass(frozen=True, slots=True)
class KeyedNoise:
    """Noise of (seed, chunk, step) alone: a longer clip starts like the shorter one."""

    seed: int

    def draw(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """See `Noise`."""
        key = hashlib.blake2b(f"{self.seed}/{chunk}/{step}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
        return torch.randn(shape, generator=generator)


class ReferenceNoise:
    """Noise as the reference repositories draw it: the whole clip first, then step after step.

    Drawing in the order of a rollout is quick; going back or leaping draws what lies between.

    Args:
        seed: seed of the one generator.
        clip_shape: [B, F, C, H, W] of the whole clip; other lengths give other noise.
        draws: how often noise is drawn in a chunk after its step 0.
        first_draws: the same in the first chunk, where it is another number.
        first: the first chunk that has noise; the clip is what is made from it on.
    """

    def __init__(
        self,
        seed: int,
        clip_shape: tuple[int, ...],
        *,
        draws: int,
        first_draws: int | None = None,
        first: int = 0,
    ) -> None:
        self._seed, self._clip_shape, self._draws = seed, clip_shape, draws
        self._more = 0 if first_draws is None else first_draws - draws
        self._first = first
        self._drawn = 0
        self._begin()

    def draw(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """See `Noise`; all chunks must have the same shape."""
        chunk -= self._first
        batch, frames, *rest = shape
        if step == 0:
            return self._clip[:, chunk * frames : (chunk + 1) * frames]
        wanted = chunk * self._draws + step - 1 + (self._more if chunk else 0)
        if wanted < self._drawn:
            self._begin()
        for _ in range(wanted - self._drawn + 1):
            noise = torch.randn((batch * frames, *rest), generator=self._generator)
        self._drawn = wanted + 1
        return noise.view(shape)

    def _begin(self) -> None:
        self._generator = torch.Generator().manual_seed(self._seed)
        self._clip = torch.randn(self._clip_shape, generator=self._generator)
        self._drawn = 0
