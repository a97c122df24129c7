"""One training loop for every stage: seeds from the step, state on disk, slices of minutes.

A run may be cut anywhere: all randomness derives from the step, so going on gives what an
uninterrupted run gives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cfgen.errors import CheckpointError, UsageError
from cfgen.files.json_lines import append_json_line, read_json_lines
from cfgen.train.processes import agreed, average_gradients, device_here, each_told, process
from cfgen.train.sharing import Shares
from cfgen.train.stage import CHOICE, Learner, LoopSettings, Stage, Update
from cfgen.train.state import make_current, read_state, save_shards

LOG = "log.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of the log."""

    step: int
    steps: int
    seconds: float
    figures: Mapping[str, float]


def train(
    stage: Stage, work: Path, settings: LoopSettings, *, minutes: float
) -> Iterator[Progress]:
    """Train until `settings.steps` or for `minutes`, then save and export.

    It goes on from what `work` holds.

    Yields:
        one `Progress` every `log_every` steps. Also appended to `log.jsonl` in the work folder.

    Raises:
        CheckpointError: the state on disk is damaged or belongs to another model.
        UsageError: the best model is asked for, and the stage measures nothing to choose by.
    """
    if settings.export == "best" and not stage.has_choice:
        raise UsageError(
            f"{stage.name}.loop.export must be last: the stage measures nothing to choose by"
        )
    began = saved = time.monotonic()
    settings = settings.settled(device_here())
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=not torch.cuda.is_available())
    stage.modules.to(accelerator.device)
    trainer = _Trainer(stage, settings, accelerator)
    folder = work / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    step, spent = trainer.restore(folder)
    seen: dict[str, list[float]] = {}
    while step < settings.steps and agreed(time.monotonic() - began < 60 * minutes):
        for key, value in trainer.step(step):
            seen.setdefault(key, []).append(value)
        step += 1
        now = time.monotonic()
        if step % settings.log_every == 0:
            means = {key: sum(values) / len(values) for key, values in seen.items()}
            if step % settings.measure_every == 0:
                with trainer.averaged(), torch.no_grad(), accelerator.autocast():
                    measured = stage.measure()
                trainer.judge(measured)
                means |= measured
            progress = Progress(step, settings.steps, spent + now - began, means)
            if accelerator.is_main_process:
                _log(folder, progress)
            yield progress
            seen = {}
        if agreed(now - saved > 60 * settings.save_minutes):
            trainer.save(folder, step, spent + now - began)
            saved = now
    trainer.save(folder, step, spent + time.monotonic() - began)


class _Trainer:
    """Makes the updates of a stage and keeps its averages."""

    def __init__(self, stage: Stage, settings: LoopSettings, accelerator: Accelerator) -> None:
        self._stage, self._settings, self._accelerator = stage, settings, accelerator
        self._learners = list(stage.learners())
        learning = {id(p) for learner in self._learners for p in learner.parameters}
        named = stage.modules.named_parameters()
        self._weights = {name: p for name, p in named if id(p) in learning}
        self._shares = Shares(self._weights, shared=settings.share_optimizers)
        self._optimizers = [each for learner in self._learners for each in learner.optimizers]
        # Numbers of the weights in their optimizers, as states on disk have them.
        self._numbers = [
            {id(p): number for number, p in enumerate(_held(each))} for each in self._optimizers
        ]
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if self._shares.mine(p)]
        self._kept = {
            (i, numbers[id(p)])
            for i, numbers in enumerate(self._numbers)
            for p in _held(self._optimizers[i])
        }
        # Only optimizers: the wrapper for modules (DDP) averages gradients in hooks of one backward
        # pass after each forward, and here they come through commits of earlier chunks, too.
        self._prepared = {id(each): accelerator.prepare(each) for each in self._optimizers}
        self._peaks = {
            id(optimizer): [float(group["lr"]) for group in optimizer.param_groups]
            for optimizer in self._optimizers
        }
        learnt = [learner.parameters for learner in self._learners if learner.averaged]
        ids = {id(p) for parameters in learnt for p in parameters}
        self._averaged = {name: p for name, p in self._weights.items() if id(p) in ids}
        self._average = {
            name: p.detach().clone() for name, p in self._averaged.items() if self._shares.mine(p)
        }
        self._best = -math.inf

    def step(self, step: int) -> Iterator[tuple[str, float]]:
        """Make all updates of a step; yields figures."""
        for update in self._stage.updates(step):
            prefix = f"{update.learner.name}_" if update.learner.name else ""
            for key, value in self._make(update, step):
                yield f"{prefix}{key}", value
            self._follow(update.learner, step)

    def _make(self, update: Update, step: int) -> Iterator[tuple[str, float]]:
        learner, settings = update.learner, self._settings
        for number in range(update.micro_batches):
            with self._accelerator.autocast():
                loss, figures = update.loss(number)
            self._accelerator.backward(loss / update.micro_batches)
            yield from {"loss": float(loss.detach()), **figures}.items()
        average_gradients(learner.parameters)
        prepared = [self._prepared[id(optimizer)] for optimizer in learner.optimizers]
        self._accelerator.unscale_gradients(prepared)
        norm = float(nn.utils.clip_grad_norm_(learner.parameters, settings.clip))
        if not math.isfinite(norm) and self._accelerator.scaler is None:  # which skips the step
            what = f" of the {learner.name}" if learner.name else ""
            raise CheckpointError(
                f"training diverged at step {step}: gradient norm{what} {norm}",
                "lower the learning rate",
            )
        yield "norm", norm
        factor = learner.rate(step, settings)
        if update.limit is not None:
            limit = update.limit(min(norm, settings.clip) * factor)
            gradients = [p.grad for p in learner.parameters if p.grad is not None]
            torch._foreach_mul_(gradients, limit)
        for optimizer, steps in zip(learner.optimizers, prepared, strict=True):
            for group, peak in zip(optimizer.param_groups, self._peaks[id(optimizer)], strict=True):
                group["lr"] = peak * factor
            steps.step()
        for parameter in learner.parameters:  # of which the optimizers here may have but some
            parameter.grad = None
        self._shares.spread(learner.parameters)

    @torch.no_grad()
    def _follow(self, learner: Learner, step: int) -> None:
        """Move the averages of what a learner changed towards it."""
        if not learner.averaged:
            return
        s = self._settings
        decay = 0.0 if step < s.average_from else min(s.ema, (step + 1) / (step + 10))
        changed = {id(p) for p in learner.parameters}
        names = [name for name in self._average if id(self._weights[name]) in changed]
        torch._foreach_lerp_(
            [self._average[name] for name in names],
            [self._weights[name].detach() for name in names],
            1 - decay,
        )

    def save(self, folder: Path, step: int, seconds: float) -> None:
        """Write the state, and what the stage exports; all processes save at the same step."""
        rank = process()[0]
        weights = {f"weights.{name}": p.detach() for name, p in self._weights.items()}
        moved = {f"average.{name}": p for name, p in self._average.items()}
        for i, (optimizer, numbers) in enumerate(zip(self._optimizers, self._numbers, strict=True)):
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    moved[f"optimizer.{i}.{numbers[id(parameter)]}.{key}"] = value
        if self._shares.shared:
            told = each_told(save_shards(folder, step, moved, f"share-{rank}"))
            shares = [name for names in told for name in names]
        else:
            weights, shares = weights | moved, []
        own = {f"extra.{name}": t for name, t in self._stage.extra_state().items()}
        kept = each_told(save_shards(folder, step, own, f"process-{rank}"))
        if self._accelerator.is_main_process:
            shards = [*save_shards(folder, step, weights, "all"), *shares]
            make_current(folder, step=step, seconds=seconds, shards=shards, own=kept)
        if self._settings.export == "last" or self._best == -math.inf:
            self._export()

    def judge(self, figures: Mapping[str, float]) -> None:
        """Export the averages if they are the best measured so far, where the best are wanted."""
        if self._settings.export == "best" and agreed(figures[CHOICE] >= self._best):
            self._best = figures[CHOICE]
            self._export()

    def _export(self) -> None:
        average = self._shares.collected(self._average, self._averaged)
        if self._accelerator.is_main_process:
            self._stage.export(average)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the averages, which are what is exported, in the place of the weights.

        What goes wrong meanwhile ends the training.
        """
        self._exchange()
        yield
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Weights become averages and averages weights, one tensor at a time to save memory."""
        for name, average in self._average.items():
            weight = self._weights[name].detach().clone()
            self._weights[name].copy_(average)
            average.copy_(weight)
        self._shares.spread(self._averaged.values())

    @torch.no_grad()
    def restore(self, folder: Path) -> tuple[int, float]:
        """Go on with the state in a folder, if there is one: its step and the seconds spent."""
        found = read_state(folder, process()[0], self._wants)
        if found is None:
            return 0, 0.0
        step, seconds, tensors = found
        ours: dict[str, Tensor] = {f"weights.{name}": p for name, p in self._weights.items()}
        ours |= {f"average.{name}": p for name, p in self._average.items()}
        expected = {(name, t.shape) for name, t in ours.items()}
        kinds = ("weights.", "average.")
        stored = {(name, t.shape) for name, t in tensors.items() if name.startswith(kinds)}
        if expected != stored:
            odd = sorted({name for name, _ in expected ^ stored})[:3]
            raise CheckpointError(
                f"{folder} holds the state of another model (for example {', '.join(odd)})",
                "train in another folder",
            )
        for name, tensor in ours.items():
            tensor.copy_(tensors[name])
        for i, (optimizer, numbers) in enumerate(zip(self._optimizers, self._numbers, strict=True)):
            places = {numbers[id(p)]: place for place, p in enumerate(_held(optimizer))}
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _under(tensors, f"optimizer.{i}.").items():
                number, _, key = name.partition(".")
                state.setdefault(places[int(number)], {})[key] = tensor
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        self._stage.restore_extra(_under(tensors, "extra."))
        logged = read_json_lines(folder / LOG)
        self._best = max(
            (line[CHOICE] for line in logged if line["step"] <= step and CHOICE in line),
            default=-math.inf,
        )
        return step, seconds

    def _wants(self, name: str) -> bool:
        """Whether a tensor of a state is one that this process keeps, or of another model."""
        kind, _, rest = name.partition(".")
        if kind == "average" and rest in self._averaged:
            return rest in self._average
        if kind == "optimizer":
            i, number, _ = rest.split(".", 2)
            return (int(i), int(number)) in self._kept
        return True


def _held(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _log(folder: Path, progress: Progress) -> None:
    line = {"step": progress.step, "seconds": round(progress.seconds, 1)}
    line |= {key: round(value, 5) for key, value in progress.figures.items()}
    append_json_line(folder / LOG, line, allow_nan=True)
