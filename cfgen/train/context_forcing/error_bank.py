"""Error recycling: a model learns to undo its own errors, which are kept by noise level.

What the flow of a target was wrong by is kept in two banks, as an error of the clean latents and as
one of the noise. Errors drawn from them are added to later targets, to their noise, and to the
newest of the context that they follow; the flow that is learnt still leads to the clean latents.
Source: Stable Video Infinity, arXiv 2510.09212; sizes and chances as in Context Forcing, arXiv
2602.06028, and its released settings.

Axis letters: B samples, F latent frames, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfgen.errors import CheckpointError

Gather = Callable[[Tensor], Tensor]
"""Joins what all processes hold along the batch, in one order everywhere."""

Chosen = NDArray[np.bool_]
"""[B]: a choice for each sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorSettings:
    """Sizes of the banks, and how often what is added.

    Attributes:
        grids: noise levels that errors are kept by.
        size: errors that are kept of each; then a new one takes the place of the nearest.
        shift: the grid is shift u / (1 + (shift - 1) u) for u = 1, 1 - 1 / grids, ...
        latent_chance: chance that the clean latents of a target get an error.
        noise_chance: chance that its noise does.
        context_chance: chance that the newest of its context does.
        clean_chance: chance that a sample gets none of the three; 1 turns recycling off.
        context_frames: latent frames right before a target that count as its newest context.
        warmup: steps in which the errors of all processes are gathered.
        clean_update: chance, during those steps, that errors of a sample are kept that got none.
    """

    grids: int = 50
    size: int = 500
    shift: float = 5.0
    latent_chance: float = 0.9
    noise_chance: float = 0.01
    context_chance: float = 0.9
    clean_chance: float = 0.5
    context_frames: int = 6
    warmup: int = 50
    clean_update: float = 0.1


def noised(
    x0: Tensor, noise: Tensor, level: Tensor, x0_error: Tensor, noise_error: Tensor
) -> tuple[Tensor, Tensor]:
    """A target with errors on it, and the flow that leads from there to the clean latents.

    Args:
        x0: clean latents [B, F, C, h, w].
        noise: [B, F, C, h, w].
        level: noise levels, broadcast to them.
        x0_error: what is added to the clean latents.
        noise_error: what is added to the noise.
    """
    noise = noise + noise_error
    return (1 - level) * (x0 + x0_error) + level * noise, noise - x0


def parts(flow_error: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """What an error of the flow makes of the clean latents, and of the noise, that it leads to."""
    return -level * flow_error, (1 - level) * flow_error


class ErrorBank:
    """Errors [F, C, h, w] by grid number, in float16 on the CPU."""

    def __init__(self, grids: int, size: int) -> None:
        self._size = size
        self._entries: list[list[Tensor]] = [[] for _ in range(grids)]

    def __len__(self) -> int:
        return sum(map(len, self._entries))

    def add(self, grid: int, error: Tensor) -> None:
        """Keep an error; of a full grid, the one at the least Euclidean distance goes."""
        entries, kept = self._entries[grid], error.detach().to("cpu", torch.float16)
        if len(entries) < self._size:
            entries.append(kept)
            return
        distances = [float((kept.float() - entry.float()).norm()) for entry in entries]
        entries[int(np.argmin(distances))] = kept

    def draw(self, frames: int, rng: np.random.Generator, grid: int | None = None) -> Tensor | None:
        """A random error of a grid, or of any, cut to `frames` from a random one on.

        Returns:
            [frames, C, h, w] float32, or None where none is kept.
        """
        filled = [entries for entries in self._entries if entries]
        entries = self._entries[grid] if grid is not None else _any_of(filled, rng)
        if not entries:
            return None
        entry = entries[int(rng.integers(len(entries)))]
        start = int(rng.integers(len(entry) - frames + 1))
        return entry[start : start + frames].float()

    def state(self) -> dict[str, Tensor]:
        """Errors of each grid that has any, [n, F, C, h, w], by its number."""
        return {str(g): torch.stack(e) for g, e in enumerate(self._entries) if e}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Hold what `state` gave.

        Raises:
            CheckpointError: it is of a bank with fewer places.
        """
        if any(int(g) >= len(self._entries) or len(e) > self._size for g, e in state.items()):
            raise CheckpointError(
                "the error bank of the training's state is larger than its settings ask for",
                "train with the grids and the size that the run began with",
            )
        for grid in range(len(self._entries)):
            self._entries[grid] = list(state[str(grid)].unbind()) if str(grid) in state else []


class ErrorRecycling:
    """Both banks, and the rules by which they are drawn from and filled.

    Args:
        settings: sizes and chances.
        frames: latent frames of what is kept; a target may be shorter, and is then not kept.
        gather: see `Gather`.
    """

    def __init__(self, settings: ErrorSettings, *, frames: int, gather: Gather | None = None):
        s = self.settings = settings
        self._frames, self._gather = frames, gather
        even = torch.linspace(1, 0, s.grids + 1)[:-1]
        self._levels = s.shift * even / (1 + (s.shift - 1) * even)
        self.banks = {name: ErrorBank(s.grids, s.size) for name in ("x0", "noise")}

    def choose_clean(self, count: int, rng: np.random.Generator) -> Chosen:
        """Which of so many samples get no error at all."""
        return rng.uniform(size=count) < self.settings.clean_chance

    def of_target(
        self, x0: Tensor, level: Tensor, clean: Chosen, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Errors for clean latents [B, F, C, h, w] and for their noise, of their own noise levels.

        Args:
            x0: what they are for.
            level: noise levels [B].
            clean: samples that get none.
            rng: what is drawn by.
        """
        s, grids = self.settings, self._grids(level)

        def drawn(name: str, chance: float) -> Tensor:
            chosen = (rng.uniform(size=len(x0)) < chance) & ~clean
            return self._drawn(self.banks[name], x0, chosen, rng, grids)

        return drawn("x0", s.latent_chance), drawn("noise", s.noise_chance)

    def of_context(self, x0: Tensor, clean: Chosen, rng: np.random.Generator) -> Tensor:
        """An error for each sample of the newest context [B, F, C, h, w], of any noise level."""
        chosen = (rng.uniform(size=len(x0)) < self.settings.context_chance) & ~clean
        return self._drawn(self.banks["x0"], x0, chosen, rng)

    def keep(
        self, flow_error: Tensor, level: Tensor, clean: Chosen, step: int, rng: np.random.Generator
    ) -> None:
        """Fill the banks with what a flow was wrong by.

        Args:
            flow_error: predicted flow less the true one, [B, F, C, h, w].
            level: noise levels [B].
            clean: samples that no error was added to.
            step: of the training.
            rng: what is drawn by.
        """
        s = self.settings
        if s.clean_chance >= 1 or flow_error.shape[1] != self._frames:
            return
        kept = np.ones(len(level), np.bool_)
        if step < s.warmup:
            kept = ~clean | (rng.uniform(size=len(level)) < s.clean_update)
        chosen = torch.from_numpy(kept).to(level.device)
        both = torch.stack(parts(flow_error.detach(), level[:, None, None, None, None]), 1)
        if step < s.warmup and self._gather is not None:
            both, level, chosen = (self._gather(x) for x in (both, level, chosen))
        for grid, errors, wanted in zip(self._grids(level), both, chosen.tolist(), strict=True):
            if wanted:
                for bank, error in zip(self.banks.values(), errors, strict=True):
                    bank.add(grid, error)

    def state(self) -> dict[str, Tensor]:
        """Tensors of both banks, for `restore`."""
        return {
            f"{name}.{grid}": errors
            for name, bank in self.banks.items()
            for grid, errors in bank.state().items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Hold what `state` gave.

        Raises:
            CheckpointError: it is of larger banks.
        """
        for name, bank in self.banks.items():
            start = f"{name}."
            bank.restore(
                {k.removeprefix(start): t for k, t in state.items() if k.startswith(start)}
            )

    def _grids(self, level: Tensor) -> list[int]:
        """The grid number of each noise level [B]: that of the nearest."""
        distances = (level.cpu()[:, None] - self._levels).abs()
        numbers: list[int] = distances.argmin(1).tolist()
        return numbers

    def _drawn(
        self,
        bank: ErrorBank,
        x0: Tensor,
        chosen: Chosen,
        rng: np.random.Generator,
        grids: Sequence[int] | None = None,
    ) -> Tensor:
        """Errors for the chosen samples [B, F, C, h, w], zero for the others."""
        errors = torch.zeros_like(x0)
        for i in np.flatnonzero(chosen).tolist():
            drawn = bank.draw(x0.shape[1], rng, None if grids is None else grids[i])
            if drawn is not None:
                errors[i] = drawn.to(errors)
        return errors


def _any_of(filled: Sequence[list[Tensor]], rng: np.random.Generator) -> list[Tensor]:
    """One of the grids that hold anything; empty if none does."""
    return filled[int(rng.integers(len(filled)))] if filled else []
