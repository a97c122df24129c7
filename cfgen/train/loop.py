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
from typing import Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cfgen.errors import CheckpointError
from cfgen.files.reading import read_text
from cfgen.files.writing import append, write_file

SHARD_BYTES = 15 * 2**20


class Stage(Protocol):
    """What one stage trains and how its loss is made."""

    name: str
    modules: nn.ModuleDict

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimizers whose groups carry their peak rate as `lr`."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of one step and figures to log; every random choice derives from `step`."""

    def measure(self) -> dict[str, float]:
        """Figures of the weights as they are, on films that training never sees; may be none."""

    def export(self, weights: Mapping[str, Tensor]) -> None:
        """Write the stage's part of the model folder from the averaged weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """Schedule of a run.

    Rates rise over `warmup` steps, stay, and fall to zero over the last `decay` share. Figures are
    logged every `log_every` steps and the weights measured every `measure_every`, a multiple of it.
    """

    steps: int
    warmup: int = 50
    decay: float = 0.3
    clip: float = 1.0
    ema: float = 0.995
    save_minutes: float = 4.0
    log_every: int = 10
    measure_every: int = 100
    precision: str = "bf16"


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of the log."""

    step: int
    steps: int
    seconds: float
    figures: Mapping[str, float]


def rate(step: int, settings: LoopSettings) -> float:
    """Factor on every peak rate at a step, in [0, 1]."""
    rising = min(1.0, (step + 1) / max(1, settings.warmup))
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return min(rising, 1.0, max(0.0, left))


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
    optimizers = stage.optimizers()
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    average = {name: p.detach().clone() for name, p in stage.modules.named_parameters()}
    folder = work / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    step, spent = _restore(folder, stage, optimizers, average)
    seen: dict[str, list[float]] = {}
    while step < settings.steps and time.monotonic() - began < 60 * minutes:
        factor = rate(step, settings)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * factor
        with accelerator.autocast():
            loss, figures = stage.loss(step)
        accelerator.backward(loss)
        norm = float(nn.utils.clip_grad_norm_(stage.modules.parameters(), settings.clip))
        if not math.isfinite(norm):
            raise CheckpointError(
                f"training diverged at step {step}: gradient norm {norm}", "lower the learning rate"
            )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        _follow(average, stage.modules, min(settings.ema, (step + 1) / (step + 10)))
        step += 1
        for key, value in {"loss": float(loss.detach()), "norm": norm, **figures}.items():
            seen.setdefault(key, []).append(value)
        now = time.monotonic()
        if step % settings.log_every == 0:
            means = {key: sum(values) / len(values) for key, values in seen.items()}
            if step % settings.measure_every == 0:
                with torch.no_grad(), accelerator.autocast():
                    means |= stage.measure()
            progress = Progress(step, settings.steps, spent + now - began, means)
            _log(folder, progress)
            yield progress
            seen = {}
        if now - saved > 60 * settings.save_minutes:
            _save(folder, stage, optimizers, average, step, spent + now - began)
            stage.export(average)
            saved = now
    _save(folder, stage, optimizers, average, step, spent + time.monotonic() - began)
    stage.export(average)


@torch.no_grad()
def _follow(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    targets = dict(module.named_parameters())
    torch._foreach_lerp_(
        list(average.values()), [targets[name].detach() for name in average], 1 - decay
    )


def _log(folder: Path, progress: Progress) -> None:
    line = {"step": progress.step, "seconds": round(progress.seconds, 1)}
    line |= {key: round(value, 5) for key, value in progress.figures.items()}
    with append(folder / "log.jsonl") as file:
        file.write(f"{json.dumps(line)}\n".encode())


def _tensors(
    stage: Stage, optimizers: list[torch.optim.Optimizer], average: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    tensors = {f"weights.{name}": p.detach() for name, p in stage.modules.named_parameters()}
    tensors |= {f"average.{name}": p for name, p in average.items()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{i}.{j}.{key}"] = value
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _save(
    folder: Path,
    stage: Stage,
    optimizers: list[torch.optim.Optimizer],
    average: Mapping[str, Tensor],
    step: int,
    seconds: float,
) -> None:
    """Write shards of at most 15 MiB, then at once the file that makes them the current state."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in _tensors(stage, optimizers, average).items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = [f"state-{step:07d}-{i:02d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, save(shard), shared=True)
    record = {"step": step, "seconds": round(seconds, 1), "shards": names}
    write_file(folder / "state.json", json.dumps(record).encode(), shared=True)
    for old in folder.glob("state-*.safetensors"):
        if old.name not in names:
            old.unlink()


def _restore(
    folder: Path, stage: Stage, optimizers: list[torch.optim.Optimizer], average: dict[str, Tensor]
) -> tuple[int, float]:
    if not (folder / "state.json").exists():
        return 0, 0.0
    step, seconds, tensors = _read(folder)
    weights = dict(stage.modules.named_parameters())
    expected = {(f"weights.{name}", p.shape) for name, p in weights.items()}
    found = {(name, t.shape) for name, t in tensors.items() if name.startswith("weights.")}
    if expected != found:
        odd = sorted({name for name, _ in expected ^ found})[:3]
        raise CheckpointError(
            f"{folder} holds the state of another model (for example {', '.join(odd)})",
            "train in another folder",
        )
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(tensors[f"weights.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split(".")
            if kind == "optimizer" and int(rest[0]) == i:
                state.setdefault(int(rest[1]), {})[rest[2]] = tensor
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return step, seconds


def _read(folder: Path) -> tuple[int, float, dict[str, Tensor]]:
    """Step, seconds spent and tensors of the state on disk."""
    tensors: dict[str, Tensor] = {}
    try:
        record = json.loads(read_text(folder / "state.json"))
        for name in record["shards"]:
            with safe_open(folder / name, "pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        return record["step"], record["seconds"], tensors
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the training state in {folder} is damaged: {error}",
            "remove the folder to train the stage from the start",
        ) from error
