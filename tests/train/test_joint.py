"""Two processes that train one model: each draws other films, and both learn as one from all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cfgen.train.loop import train
from tests.train import joint
from tests.train.two_processes import run_in_two

pytestmark = pytest.mark.usefixtures("own_accelerator")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of every case."""
    folder = tmp_path_factory.mktemp("joint")
    run_in_two("tests.train.joint", folder)
    return folder


def _weights(folder: Path, case: str, rank: int) -> dict[str, torch.Tensor]:
    return load_file(folder / case / f"process {rank}" / "all.safetensors")


@pytest.mark.slow
def test_gradients_are_those_of_the_joint_batch(two: Path, tmp_path: Path) -> None:
    """In float64; the one process sees four films at once where each of the two sees two."""
    first, second = (_weights(two, "curve", rank) for rank in (0, 1))
    before = {name: p.detach().clone() for name, p in joint.Curve(4).modules.named_parameters()}
    joint.trained(tmp_path / "curve", "curve", batches=2)
    alone = _weights(tmp_path, "curve", 0)
    for name, weight in alone.items():
        assert weight.dtype == torch.float64
        gradient = before[name] - weight
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(before[name] - first[name], gradient, rtol=1e-12, atol=1e-15)
        assert torch.equal(first[name], second[name])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vae", "base"])
def test_a_stage_learns_as_one_process_from_the_batches_of_both(
    case: str, two: Path, tmp_path: Path
) -> None:
    """Bit by bit: one process makes the two batches of a step that two make one each of."""
    first, second = (_weights(two, case, rank) for rank in (0, 1))
    joint.trained(tmp_path / case, case, batches=2)
    alone = _weights(tmp_path, case, 0)
    assert alone.keys() == first.keys() == second.keys()
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=0, atol=0, msg=name)


def test_batches_of_a_step_are_other_ones(tmp_path: Path) -> None:
    """No two of all steps have films in common."""
    stage, drawn = joint.Curve(1), []
    stage.micro_batches = 3
    loss = stage.loss

    def noted(step: int, draw: int) -> tuple[torch.Tensor, dict[str, float]]:
        drawn.append((step, draw))
        return loss(step, draw)

    stage.loss = noted  # type: ignore[method-assign]
    list(train(stage, tmp_path, joint.STEPS, minutes=1))
    assert drawn == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (1, 5)]
