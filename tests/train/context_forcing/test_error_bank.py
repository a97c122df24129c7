"""Error recycling: what is kept, in whose place, and how often what is added to what."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cfgen.errors import CheckpointError
from cfgen.train.context_forcing.error_bank import (
    ErrorBank,
    ErrorRecycling,
    ErrorSettings,
    noised,
    parts,
)

FRAMES = 3
SHAPE = (FRAMES, 2, 2, 2)


def _recycling(
    settings: ErrorSettings, gather: Callable[[Tensor], Tensor] | None = None
) -> ErrorRecycling:
    return ErrorRecycling(settings, frames=FRAMES, gather=gather)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _filled(**chances: float) -> ErrorRecycling:
    """Banks with one error of 1 in each grid of clean latents, one of 2 in each of noise."""
    recycling = _recycling(ErrorSettings(grids=4, size=2, **chances))
    for grid in range(4):
        for value, bank in enumerate(recycling.banks.values(), 1):
            bank.add(grid, torch.full(SHAPE, float(value)))
    return recycling


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_parts_are_the_errors_of_the_clean_latents_and_the_noise(level: float) -> None:
    """x - s v is the clean latents, x + (1 - s) v the noise that a flow v leads to."""
    x0, noise, error = (torch.randn(2, *SHAPE, dtype=torch.float64) for _ in range(3))
    nothing, s = torch.zeros_like(x0), torch.tensor(level, dtype=torch.float64)
    x, flow = noised(x0, noise, s, nothing, nothing)
    of_x0, of_noise = parts(error, s)
    torch.testing.assert_close(x - s * (flow + error), x0 + of_x0)
    torch.testing.assert_close(x + (1 - s) * (flow + error), noise + of_noise)
    assert (level == 0) == bool(of_x0.eq(0).all())
    assert (level == 1) == bool(of_noise.eq(0).all())


def test_at_the_ends_a_target_is_its_latents_or_its_noise_with_their_errors() -> None:
    x0, noise, of_x0, of_noise = (torch.randn(1, *SHAPE) for _ in range(4))
    clean, flow = noised(x0, noise, torch.tensor(0.0), of_x0, of_noise)
    pure, same = noised(x0, noise, torch.tensor(1.0), of_x0, of_noise)
    assert torch.equal(clean, x0 + of_x0)
    assert torch.equal(pure, noise + of_noise)
    assert torch.equal(flow, same)
    assert torch.equal(flow, noise + of_noise - x0)  # to the clean latents, not the wrong ones


def test_a_right_flow_leaves_banks_of_zeros() -> None:
    recycling = _recycling(ErrorSettings(grids=4, size=18, warmup=0))
    x0 = torch.randn(6, *SHAPE)
    level, nobody = torch.rand(6), np.zeros(6, np.bool_)
    for step in range(3):
        errors = recycling.of_target(x0, level, nobody, _rng(step))
        assert all(error.eq(0).all() for error in errors)
        recycling.keep(torch.zeros_like(x0), level, nobody, step, _rng(step))
    assert len(recycling.banks["x0"]) == 18
    assert recycling.of_context(x0, nobody, _rng()).eq(0).all()


def test_a_full_grid_loses_its_nearest() -> None:
    bank = ErrorBank(grids=2, size=3)
    for value in (0.0, 4.0, 8.0):
        bank.add(1, torch.full(SHAPE, value))
    for value in (5.0, -1.0, 5.5):
        bank.add(1, torch.full(SHAPE, value))
    assert bank.state()["1"][:, 0, 0, 0, 0].tolist() == [-1.0, 5.5, 8.0]
    assert "0" not in bank.state()


def test_errors_are_kept_by_the_nearest_level_of_the_grid() -> None:
    """Four grids of shift 5: levels 1, .9375, .8333, .625."""
    recycling = _recycling(ErrorSettings(grids=4, size=9, warmup=0))
    level = torch.tensor([1.0, 0.95, 0.84, 0.1])
    error = torch.ones(4, *SHAPE)
    recycling.keep(error, level, np.zeros(4, np.bool_), 0, _rng())
    for bank, expected in (("x0", -level), ("noise", 1 - level)):
        for grid, value in enumerate(expected.tolist()):
            kept = recycling.state()[f"{bank}.{grid}"]
            assert kept.flatten().tolist() == pytest.approx([value] * kept.numel(), abs=1e-3)


N = 4000


@pytest.mark.parametrize(
    ("latent", "noise", "context", "clean"),
    [(0.9, 0.01, 0.9, 0.5), (0.3, 0.6, 0.2, 0.0), (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.2)],
)
def test_errors_are_added_as_often_as_asked(
    latent: float, noise: float, context: float, clean: float
) -> None:
    recycling = _filled(
        latent_chance=latent, noise_chance=noise, context_chance=context, clean_chance=clean
    )
    rng, x0 = _rng(), torch.zeros(N, *SHAPE)
    without = recycling.choose_clean(N, rng)
    of_x0, of_noise = recycling.of_target(x0, torch.rand(N), without, rng)
    of_context = recycling.of_context(x0, without, rng)
    for errors, value, chance in (
        (of_x0, 1, latent),
        (of_noise, 2, noise),
        (of_context, 1, context),
    ):
        got = errors.flatten(1)
        assert set(got.unique().tolist()) <= {0.0, float(value)}
        assert not got[torch.from_numpy(without)].any()
        share = float(got.any(1).float().mean())
        assert share == pytest.approx(chance * (1 - clean), abs=4 * (0.25 / N) ** 0.5)


def test_a_shorter_span_gets_a_random_cut_of_an_error() -> None:
    bank = ErrorBank(grids=1, size=1)
    bank.add(0, torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 2, 2))
    rng, starts = _rng(), []
    for _ in range(50):
        cut = bank.draw(2, rng)
        assert cut is not None
        first, second = cut[:, 0, 0, 0].tolist()
        assert second == first + 1
        starts.append(first)
    assert set(starts) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_any_grid_serves_the_context() -> None:
    bank = ErrorBank(grids=50, size=4)
    for grid in (3, 40):
        bank.add(grid, torch.full(SHAPE, float(grid)))
    rng = _rng()
    drawn = [bank.draw(1, rng) for _ in range(40)]
    assert {float(d.mean()) for d in drawn if d is not None} == {3.0, 40.0}
    assert bank.draw(1, rng, grid=7) is None


def test_while_warming_up_clean_samples_are_seldom_kept_and_processes_share() -> None:
    settings = ErrorSettings(grids=1, size=N, warmup=1, clean_update=0.1)
    clean = np.arange(N) % 2 == 0
    error, level = torch.ones(N, 1, 1, 1, 1), torch.ones(N)
    alone = ErrorRecycling(settings, frames=1)
    alone.keep(error, level, clean, 0, _rng())
    assert len(alone.banks["x0"]) == pytest.approx(0.55 * N, abs=4 * (0.1 * N) ** 0.5)
    later = ErrorRecycling(settings, frames=1)
    later.keep(error, level, clean, 1, _rng())
    assert len(later.banks["x0"]) == N
    both = ErrorRecycling(settings, frames=1, gather=lambda x: torch.cat([x, x]))
    both.keep(error[1:2], level[1:2], clean[1:2], 0, _rng())
    both.keep(error[1:2], level[1:2], clean[1:2], 1, _rng())
    assert len(both.banks["noise"]) == 3  # two in the warm-up, one of its own after it


def test_banks_go_on_from_their_state() -> None:
    one, other = (_recycling(ErrorSettings(grids=3, size=2, warmup=0)) for _ in range(2))
    generator = torch.Generator().manual_seed(0)

    def step(recycling: ErrorRecycling, number: int, error: Tensor) -> tuple[Tensor, ...]:
        rng, level = _rng(number), torch.full((4,), 0.3 * number % 1)
        clean = recycling.choose_clean(4, rng)
        made = recycling.of_target(error, level, clean, rng)
        recycling.keep(error, level, clean, number, rng)
        return (*made, recycling.of_context(error, clean, rng))

    errors = torch.randn(8, 4, *SHAPE, generator=generator)
    for number in range(4):
        step(one, number, errors[number])
    other.restore({name: tensor.clone() for name, tensor in one.state().items()})
    for number in range(4, 8):
        ours, theirs = (step(r, number, errors[number]) for r in (one, other))
        assert all(map(torch.equal, ours, theirs))
    assert all(torch.equal(one.state()[name], tensor) for name, tensor in other.state().items())


def test_a_state_of_larger_banks_is_refused() -> None:
    large = _recycling(ErrorSettings(grids=4, size=4, warmup=0))
    large.keep(torch.ones(3, *SHAPE), torch.zeros(3), np.zeros(3, np.bool_), 0, _rng())
    for settings in (ErrorSettings(grids=2), ErrorSettings(grids=4, size=2)):
        with pytest.raises(CheckpointError, match="error bank"):
            _recycling(settings).restore(large.state())


def test_recycling_that_is_off_keeps_nothing() -> None:
    off = _recycling(ErrorSettings(clean_chance=1.0, warmup=0))
    off.keep(torch.ones(2, *SHAPE), torch.rand(2), off.choose_clean(2, _rng()), 0, _rng())
    assert off.state() == {}
