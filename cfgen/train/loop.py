"""One training loop for every stage: seeds from the step, state on disk, slices of minutes.

A run may be cut anywhere: all randomness derives from the step, so going on gives what an
uninterrupted run gives.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cfgen.errors import CheckpointError
from cfgen.files.writing import append
from cfgen.train.processes import agreed, average_gradients, each_told, process
from cfgen.train.stage import Learner, LoopSettings, Stage, Update
from cfgen.train.state import make_current, read_state, save_shards


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
    """
    began = saved = time.monotonic()
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
                with torch.no_grad(), accelerator.autocast():
                    means |= stage.measure()
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
        self._weights: dict[str, Tensor] = {name: p for name, p in named if id(p) in learning}
        self._optimizers = [each for learner in self._learners for each in learner.optimizers]
        # Only optimizers: the wrapper for modules (DDP) averages gradients in hooks of one backward
        # pass after each forward, and here they come through commits of earlier chunks, too.
        self._prepared = {id(each): accelerator.prepare(each) for each in self._optimizers}
        self._peaks = {
            id(optimizer): [float(group["lr"]) for group in optimizer.param_groups]
            for optimizer in self._optimizers
        }
        learnt = [learner.parameters for learner in self._learners if learner.averaged]
        averaged = {id(p) for parameters in learnt for p in parameters}
        self.average = {
            name: p.detach().clone() for name, p in self._weights.items() if id(p) in averaged
        }

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
            steps.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _follow(self, learner: Learner, step: int) -> None:
        """Move the averages of what a learner changed towards it."""
        if not learner.averaged:
            return
        s = self._settings
        decay = 0.0 if step < s.average_from else min(s.ema, (step + 1) / (step + 10))
        changed = {id(p) for p in learner.parameters}
        names = [name for name in self.average if id(self._weights[name]) in changed]
        torch._foreach_lerp_(
            [self.average[name] for name in names],
            [self._weights[name].detach() for name in names],
            1 - decay,
        )

    def save(self, folder: Path, step: int, seconds: float) -> None:
        """Write the state, and what the stage exports; all processes save at the same step."""
        tensors = {f"weights.{name}": p.detach() for name, p in self._weights.items()}
        tensors |= {f"average.{name}": p for name, p in self.average.items()}
        for i, optimizer in enumerate(self._optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizer.{i}.{j}.{key}"] = value
        own = {f"extra.{name}": t for name, t in self._stage.extra_state().items()}
        kept = each_told(save_shards(folder, step, own, f"process-{process()[0]}"))
        if self._accelerator.is_main_process:
            shards = save_shards(folder, step, tensors, "all")
            make_current(folder, step=step, seconds=seconds, shards=shards, own=kept)
            self._stage.export(self.average)

    @torch.no_grad()
    def restore(self, folder: Path) -> tuple[int, float]:
        """Go on with the state in a folder, if there is one: its step and the seconds spent."""
        found = read_state(folder, process()[0])
        if found is None:
            return 0, 0.0
        step, seconds, tensors = found
        ours: dict[str, Tensor] = {f"weights.{name}": p for name, p in self._weights.items()}
        ours |= {f"average.{name}": p for name, p in self.average.items()}
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
        for i, optimizer in enumerate(self._optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _under(tensors, f"optimizer.{i}.").items():
                number, _, key = name.partition(".")
                state.setdefault(int(number), {})[key] = tensor
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        self._stage.restore_extra(_under(tensors, "extra."))
        return step, seconds


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _log(folder: Path, progress: Progress) -> None:
    line = {"step": progress.step, "seconds": round(progress.seconds, 1)}
    line |= {key: round(value, 5) for key, value in progress.figures.items()}
    with append(folder / "log.jsonl") as file:
        file.write(f"{json.dumps(line)}\n".encode())
