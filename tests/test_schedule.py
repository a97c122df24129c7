"""Noise levels and noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfgen.rollout.schedule import FewStepSchedule, KeyedNoise, ReferenceNoise, warp

SHAPE = (1, 3, 4, 2, 2)


def test_warped_steps_are_the_published_ones() -> None:
    schedule = FewStepSchedule.from_timesteps((1000, 750, 500, 250))
    timesteps = [1000 * sigma for sigma in schedule.sigmas]
    assert timesteps == pytest.approx([1000, 937.5, 833.3333333333334, 625], rel=1e-15)


def test_steps_may_be_taken_as_they_stand() -> None:
    schedule = FewStepSchedule.from_timesteps((1000, 600, 50), shift=5.0, warped=False)
    assert schedule.sigmas == (1.0, 0.6, 0.05)
    assert FewStepSchedule.from_timesteps((1000, 600), shift=1.0).sigmas == (1.0, 0.6)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 20))
def test_warp_keeps_ends_and_order(a: float, b: float, shift: float) -> None:
    assert warp(0, shift) == 0
    assert warp(1, shift) == pytest.approx(1)
    low, high = sorted((a, b))
    assert 0 <= warp(low, shift) <= warp(high, shift) + 1e-12


def test_clean_undoes_the_noise_that_the_flow_names() -> None:
    schedule = FewStepSchedule.from_timesteps((1000, 750, 500, 250))
    x0, noise = torch.randn(2, *SHAPE).unbind(0)
    for step, sigma in enumerate(schedule.sigmas):
        x = (1 - sigma) * x0 + sigma * noise
        torch.testing.assert_close(schedule.clean(x, noise - x0, step), x0, rtol=0, atol=1e-6)


def test_clean_is_computed_in_float64() -> None:
    schedule = FewStepSchedule((1 / 3,))
    x, flow = torch.full((1,), 1e8), torch.full((1,), 3e8 - 32)
    exact = 1e8 - (3e8 - 32) / 3
    assert float(schedule.clean(x, flow, 0)) == pytest.approx(exact, rel=1e-6)


def test_fresh_noise_replaces_the_old() -> None:
    schedule = FewStepSchedule((1.0, 0.25))
    x0, flow, noise = torch.randn(3, *SHAPE).unbind(0)
    torch.testing.assert_close(schedule.next(x0, flow, 0, noise), 0.75 * x0 + 0.25 * noise)


def test_predicted_noise_is_an_euler_step() -> None:
    schedule = FewStepSchedule((0.8, 0.3), renoise="predicted")
    x, flow = torch.randn(2, *SHAPE).unbind(0)
    x0 = schedule.clean(x, flow, 0)
    torch.testing.assert_close(schedule.next(x0, flow, 0, None), x + (0.3 - 0.8) * flow)


def test_the_first_chunk_may_have_levels_of_its_own() -> None:
    schedule = FewStepSchedule.from_timesteps((1000, 500), first=(1000, 750, 500, 250))
    assert schedule.opening == FewStepSchedule.from_timesteps((1000, 750, 500, 250))
    assert (schedule.draws, schedule.opening.draws) == (2, 4)
    plain = FewStepSchedule.from_timesteps((1000, 500), renoise="predicted")
    assert plain.opening == plain
    assert plain.draws == 1


def test_reference_noise_of_a_first_chunk_with_more_steps_comes_in_order() -> None:
    clip = (1, 9, 4, 2, 2)
    generator = torch.Generator().manual_seed(5)
    torch.randn(clip, generator=generator)
    order = [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1)]
    expected = {key: torch.randn(SHAPE[1:], generator=generator)[None] for key in order}
    noise = ReferenceNoise(5, clip, draws=1, first_draws=3)
    for key in [*order, *reversed(order)]:
        assert torch.equal(noise.draw(*key, SHAPE), expected[key])


@given(st.permutations([(chunk, step) for chunk in range(3) for step in range(3)]))
def test_keyed_noise_does_not_depend_on_the_order(order: list[tuple[int, int]]) -> None:
    noise = KeyedNoise(7)
    drawn = {key: noise.draw(*key, SHAPE) for key in order}
    again = KeyedNoise(7)
    assert all(torch.equal(drawn[key], again.draw(*key, SHAPE)) for key in sorted(order))


def test_keyed_noise_differs_by_seed_chunk_and_step() -> None:
    keys = [
        (seed, chunk, step) for seed in (0, 1, 11) for chunk in (0, 1, 11) for step in (0, 1, 11)
    ]
    drawn = torch.stack([KeyedNoise(seed).draw(c, s, SHAPE).flatten() for seed, c, s in keys])
    assert len(torch.unique(drawn, dim=0)) == len(keys)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.1)
    assert float(drawn.std()) == pytest.approx(1, abs=0.1)


def test_keyed_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    KeyedNoise(1).draw(0, 0, SHAPE)
    ReferenceNoise(1, SHAPE, draws=0)
    assert torch.equal(torch.rand(4), expected)


def test_keyed_noise_never_changes() -> None:
    """A change of these values changes every video that a seed gives."""
    drawn = KeyedNoise(0).draw(0, 0, (1, 1, 1, 1, 3)).flatten()
    torch.testing.assert_close(
        drawn, torch.tensor([0.6996418, 0.6964049, 0.2904397]), rtol=0, atol=1e-6
    )


def test_reference_noise_draws_the_clip_first_and_then_in_order() -> None:
    clip = (1, 6, 4, 2, 2)
    noise = ReferenceNoise(5, clip, draws=3)
    generator = torch.Generator().manual_seed(5)
    whole = torch.randn(clip, generator=generator)
    for chunk in range(2):
        assert torch.equal(noise.draw(chunk, 0, SHAPE), whole[:, 3 * chunk : 3 * chunk + 3])
        for step in (1, 2, 3):
            fresh = torch.randn(SHAPE[1:], generator=generator)[None]
            assert torch.equal(noise.draw(chunk, step, SHAPE), fresh)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=8))
def test_reference_noise_may_be_drawn_in_any_order(wanted: list[tuple[int, int]]) -> None:
    clip = (1, 9, 4, 2, 2)
    in_order = ReferenceNoise(5, clip, draws=2)
    drawn = {(c, s): in_order.draw(c, s, SHAPE) for c in range(3) for s in range(3)}
    noise = ReferenceNoise(5, clip, draws=2)
    for chunk, step in wanted:
        assert torch.equal(noise.draw(chunk, step, SHAPE), drawn[chunk, step])
