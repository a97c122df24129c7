"""The training loop: slices give what an uninterrupted run gives, and state on disk is checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from cfgen.errors import CheckpointError, UsageError
from cfgen.train.loop import train
from cfgen.train.muon import Muon, orthogonal
from cfgen.train.stage import (
    CHOICE,
    Learner,
    LoopSettings,
    SingleLossStage,
    Stage,
    Update,
    constant,
    rate_of,
    trapezoid,
)
from cfgen.train.state import read_state


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

    def loss(self, step: int, draw: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.stop_at:
            raise KeyboardInterrupt
        x = torch.randn(32, self.width, generator=torch.Generator().manual_seed(draw))
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


class Measured(Regression):
    """Measures its bias, and calls the steps of `marks` so good; it sees only averages."""

    has_choice = True
    marks: ClassVar = {10: 1.0, 20: 3.0, 30: 2.0, 40: 3.0}

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}
        self.exports = 0
        self._step = 0

    def loss(self, step: int, draw: int) -> tuple[Tensor, dict[str, float]]:
        self._step = step + 1
        return super().loss(step, draw)

    def measure(self) -> dict[str, float]:
        self.seen[self._step] = self.modules["net"].bias.detach().clone()
        return {CHOICE: self.marks[self._step]}

    def export(self, weights: Mapping[str, Tensor]) -> None:
        super().export(weights)
        self.exports += 1


BEST = dataclasses.replace(SETTINGS, measure_every=10, export="best")


def test_averages_are_measured_and_learning_goes_on_from_the_weights(tmp_path: Path) -> None:
    plain, measured = Regression(), Measured()
    list(train(plain, tmp_path / "plain", SETTINGS, minutes=5))
    list(train(measured, tmp_path, dataclasses.replace(BEST, export="last"), minutes=5))
    assert torch.equal(measured.seen[40], measured.exported["net.bias"])
    assert not torch.equal(measured.seen[40], measured.modules["net"].bias)
    for name, tensor in plain.exported.items():
        assert torch.equal(tensor, measured.exported[name]), name


@pytest.mark.parametrize("cuts", [(), (15,), (25, 35)])
def test_the_best_that_was_measured_is_exported(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """The later one of equals; a cut run knows what it had measured."""
    for stop in (*cuts, 50):
        stage = Measured()
        saving = dataclasses.replace(BEST, save_minutes=0.0)
        for progress in train(stage, tmp_path, saving, minutes=5):
            if progress.step > stop:
                break
            if progress.step == 35:  # that of step 20, which a part of a run may have made before
                assert bool(stage.exported) == (20 in stage.seen)
                assert all(
                    torch.equal(bias, stage.seen[20])
                    for name, bias in stage.exported.items()
                    if name == "net.bias"
                )
    assert torch.equal(stage.seen[40], stage.exported["net.bias"])
    # Saved after every step: all are exported before the first measure, then what is as good.
    assert cuts or stage.exports == 9 + 3


def test_a_log_whose_last_line_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    saving = dataclasses.replace(BEST, save_minutes=0.0)
    for progress in train(Measured(), tmp_path, saving, minutes=5):
        if progress.step == 25:
            break
    log = tmp_path / "regression" / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    list(train(Measured(), tmp_path, saving, minutes=5))
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(5, 41, 5))


def test_what_measures_nothing_to_choose_by_exports_the_last(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"regression\.loop\.export must be last"):
        list(train(Regression(), tmp_path, BEST, minutes=5))


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
        def loss(self, step: int, draw: int) -> tuple[Tensor, dict[str, float]]:
            error, figures = super().loss(step, draw)
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


def test_rates_of_other_rules() -> None:
    settings = LoopSettings(steps=100)
    assert {constant(step, settings) for step in (0, 50, 99)} == {1.0}
    falling = rate_of("cosine", 0.2)
    assert [falling(step, settings) for step in (0, 50, 100, 120)] == pytest.approx(
        [1, 0.6, 0.2, 0.2]
    )
    assert rate_of("trapezoid", 0.0) is trapezoid


class Rivals(Stage):
    """Two learners: one at every second step in micro-batches, one at every step at half force."""

    name = "rivals"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.modules = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
        self.norms = torch.zeros(())
        self.exported: dict[str, Tensor] = {}

    def learners(self) -> list[Learner]:
        self.first, self.second = (
            Learner(
                name,
                list(module.parameters()),
                [torch.optim.AdamW(module.parameters(), lr=0.02)],
                rate=constant,
                averaged=name == "first",
            )
            for name, module in self.modules.items()
        )
        return [self.first, self.second]

    def updates(self, step: int) -> Iterator[Update]:
        if step % 2 == 0:
            yield Update(self.first, lambda number: self._loss("first", step, number), 3)
        yield Update(self.second, lambda _: self._loss("second", step, 0), limit=self._half)

    def _half(self, norm: float) -> float:
        self.norms = self.norms + norm
        return 0.5

    def _loss(self, name: str, step: int, number: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * step + number))
        return (self.modules[name](x) - x.flip(1)).square().mean(), {"number": float(number)}

    def extra_state(self) -> dict[str, Tensor]:
        return {"norms": self.norms}

    def restore_extra(self, state: Mapping[str, Tensor]) -> None:
        self.norms = state["norms"]

    def export(self, weights: Mapping[str, Tensor]) -> None:
        self.exported = {name: tensor.clone() for name, tensor in weights.items()}


def test_learners_take_turns_and_have_their_own_figures(tmp_path: Path) -> None:
    stage = Rivals()
    settings = LoopSettings(steps=2, precision="no", log_every=1, clip=0.1)
    begun = {name: p.detach().clone() for name, p in stage.modules.named_parameters()}
    both, one = (progress.figures for progress in train(stage, tmp_path, settings, minutes=5))
    assert set(both) == {f"{who}_{what}" for who in ("first", "second") for what in FIGURES}
    assert set(one) == {f"second_{what}" for what in FIGURES}
    assert both["first_number"] == 1.0, "three micro-batches, numbered 0, 1, 2"
    assert float(stage.norms) == pytest.approx(0.2), "what limits is told the clipped norm"
    assert set(stage.exported) == {"first.weight", "first.bias"}
    assert all(not torch.equal(p, begun[name]) for name, p in stage.modules.named_parameters())


FIGURES = ("loss", "norm", "number")


def test_micro_batches_make_the_gradient_of_their_mean(tmp_path: Path) -> None:
    settings = LoopSettings(steps=1, precision="no", log_every=1, clip=1e9)
    (progress,) = train(Rivals(), tmp_path, settings, minutes=5)
    stage = Rivals()
    total = torch.stack([stage._loss("first", 0, number)[0] for number in range(3)]).mean()
    total.backward()
    gradients = [p.grad.norm() for p in stage.modules["first"].parameters() if p.grad is not None]
    assert progress.figures["first_norm"] == pytest.approx(float(torch.stack(gradients).norm()))
    assert progress.figures["first_loss"] == pytest.approx(float(total.detach()))


def test_a_run_of_two_learners_goes_on_exactly(tmp_path: Path) -> None:
    settings = LoopSettings(steps=9, precision="no", log_every=1, save_minutes=0.0, clip=0.5)
    list(train(whole := Rivals(), tmp_path / "whole", settings, minutes=5))
    for stop in (2, 5):
        for progress in train(Rivals(), tmp_path / "sliced", settings, minutes=5):
            if progress.step >= stop:
                break
    list(train(sliced := Rivals(), tmp_path / "sliced", settings, minutes=5))
    kept, again = (read_state(tmp_path / each / "rivals") for each in ("whole", "sliced"))
    assert kept is not None
    assert again is not None
    assert kept[2].keys() == again[2].keys()
    assert all(torch.equal(tensor, again[2][name]) for name, tensor in kept[2].items())
    assert torch.equal(whole.norms, sliced.norms)


def test_averages_copy_the_weights_before_their_step(tmp_path: Path) -> None:
    settings = LoopSettings(steps=4, precision="no", average_from=10)
    list(train(stage := Regression(), tmp_path, settings, minutes=5))
    assert all(torch.equal(stage.exported[name], p) for name, p in stage.modules.named_parameters())


def test_a_stage_refuses_what_it_did_not_keep(tmp_path: Path) -> None:
    class Keeping(Regression):
        def extra_state(self) -> dict[str, Tensor]:
            return {"bank": torch.ones(2)}

    list(train(Keeping(), tmp_path, SETTINGS, minutes=5))
    with pytest.raises(CheckpointError, match="holds bank, which the stage does not know"):
        list(train(Regression(), tmp_path, SETTINGS, minutes=5))


@pytest.mark.parametrize(
    ("asked", "native", "settled"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "no"),
        ("bf16", False, "bf16"),
        ("fp16", True, "fp16"),
        ("no", True, "no"),
    ],
)
def test_precision_is_bf16_where_the_device_has_it(
    asked: Literal["auto", "no", "fp16", "bf16"],
    native: bool,
    settled: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cfgen.train.stage.has_bfloat16", lambda _device: native)
    settings = LoopSettings(steps=1, precision=asked)
    assert settings.settled(torch.device("cpu")).precision == settled


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (16, 16)])
@pytest.mark.parametrize("half", [True, False])
def test_orthogonal_has_singular_values_near_one(
    shape: tuple[int, int], half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfgen.train.muon.has_bfloat16", lambda _device: half)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 30
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.4
