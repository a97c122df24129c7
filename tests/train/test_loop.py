"""The training loop: slices give what an uninterrupted run gives, and state on disk is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cfgen.errors import CheckpointError
from cfgen.train.loop import train
from cfgen.train.muon import Muon, orthogonal
from cfgen.train.stage import (
    LoopSettings,
    SingleLossStage,
    trapezoid,
)


class Regression(SingleLossStage):
    """A stage that learns a random matrix; its data depends on the step alone."""

    name = "regression"

    def __init__(self, width: int = 8, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.modules = nn.ModuleDict({"net": nn.Linear(width, width)})
        self.width = width
        self.stop_at = stop_at
        self.exported: dict[str, Tensor] = {}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        net = self.modules["net"]
        assert isinstance(net, nn.Linear)
        return [Muon([net.weight], lr=0.05), torch.optim.AdamW([net.bias], lr=0.05)]

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.stop_at:
            raise KeyboardInterrupt
        x = torch.randn(32, self.width, generator=torch.Generator().manual_seed(step))
        target = x.flip(1)
        error = (self.modules["net"](x) - target).square().mean()
        return error, {"error": float(error.detach())}

    def export(self, weights: Mapping[str, Tensor]) -> None:
        self.exported = {name: tensor.clone() for name, tensor in weights.items()}


SETTINGS = LoopSettings(steps=40, warmup=5, ema=0.9, precision="no", log_every=5, clip=100.0)


def test_loss_falls_and_is_logged(tmp_path: Path) -> None:
    stage = Regression()
    steps = [progress.figures["error"] for progress in train(stage, tmp_path, SETTINGS, minutes=5)]
    assert steps[-1] < 0.5 * steps[0]
    lines = (tmp_path / "regression" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5, 41, 5))


def test_slices_equal_one_run(tmp_path: Path) -> None:
    whole = Regression()
    list(train(whole, tmp_path / "whole", SETTINGS, minutes=5))
    for steps in (7, 8, 23, 40):  # each slice is a new process's objects on the same folder
        sliced = Regression()
        short = LoopSettings(**{**_fields(SETTINGS), "save_minutes": 0.0})
        for progress in train(sliced, tmp_path / "sliced", short, minutes=5):
            if progress.step >= steps:
                break
    list(train(sliced := Regression(), tmp_path / "sliced", SETTINGS, minutes=5))
    for name, tensor in whole.exported.items():
        assert torch.equal(tensor, sliced.exported[name]), name


def _fields(settings: LoopSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in LoopSettings.__slots__}


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    class Wider(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.modules["second"] = nn.Linear(2, 2)

    list(train(Regression(), tmp_path, SETTINGS, minutes=5))
    with pytest.raises(CheckpointError, match=r"another model.*second"):
        list(train(Wider(), tmp_path, SETTINGS, minutes=5))


def test_state_of_another_width_is_refused(tmp_path: Path) -> None:
    list(train(Regression(), tmp_path, SETTINGS, minutes=5))
    with pytest.raises(CheckpointError, match=r"another model.*net\.bias"):
        list(train(Regression(width=4), tmp_path, SETTINGS, minutes=5))


@pytest.mark.parametrize("damage", ["cut off", "missing", "no json"])
def test_damaged_state_is_refused(tmp_path: Path, damage: str) -> None:
    list(train(Regression(), tmp_path, SETTINGS, minutes=5))
    folder = tmp_path / "regression"
    (shard,) = folder.glob("state-*.safetensors")
    if damage == "cut off":
        shard.write_bytes(shard.read_bytes()[:-9])
    elif damage == "missing":
        shard.unlink()
    else:
        (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state in .*regression is damaged"):
        list(train(Regression(), tmp_path, SETTINGS, minutes=5))


def test_divergence_stops_the_run(tmp_path: Path) -> None:
    class Broken(Regression):
        def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
            error, figures = super().loss(step)
            return error * float("nan"), figures

    with pytest.raises(CheckpointError, match="diverged at step 0"):
        list(train(Broken(), tmp_path, SETTINGS, minutes=5))


def test_rate_rises_stays_and_falls_to_zero() -> None:
    settings = LoopSettings(steps=100, warmup=10, decay=0.3)
    assert trapezoid(0, settings) == pytest.approx(0.1)
    assert trapezoid(30, settings) == 1.0
    assert trapezoid(85, settings) == pytest.approx(0.5)
    assert trapezoid(99, settings) == pytest.approx(1 / 30)
    assert trapezoid(100, settings) == 0.0


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (16, 16)])
def test_orthogonal_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 30
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.4
