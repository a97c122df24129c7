"""What a stage of training is: weights that learn, and the updates that a step makes of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from cfgen.errors import CheckpointError, UsageError
from cfgen.ops.native import has_bfloat16
from cfgen.train.processes import batches_of_a_step, process


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """Schedule of a run.

    Attributes:
        steps: how many there are.
        warmup: steps over which the rates of rule `trapezoid` rise.
        decay: share of the steps over which they fall to zero at the end.
        clip: the most that the norm of a learner's gradients may be.
        ema: decay of the averages.
        average_from: step before which the averages are the weights themselves.
        save_minutes: time between two saves.
        log_every: steps between two lines of the log.
        measure_every: steps between two measures of the averages; a multiple of `log_every`.
        export: which averages are exported: the `last`, or the `best` of those that were measured,
            by a stage that tells a figure to choose by.
        precision: `no`, `fp16` or `bf16`: what autocast computes in; `auto`: bf16 where the device
            has it, otherwise `no`.
        share_optimizers: whether processes share out optimizer states and averages; see `sharing`.

    Raises:
        UsageError: fp16 skips steps by the gradients of what each process moves, so processes that
            share weights out would not agree.
    """

    steps: int
    warmup: int = 50
    decay: float = 0.3
    clip: float = 1.0
    ema: float = 0.995
    average_from: int = 0
    save_minutes: float = 4.0
    log_every: int = 10
    measure_every: int = 100
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    share_optimizers: bool = False
    export: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        if self.share_optimizers and self.precision == "fp16":
            raise UsageError(
                "share_optimizers must be false with precision fp16", "train in bf16 or fp32 (no)"
            )

    def settled(self, device: torch.device) -> LoopSettings:
        """With what precision `auto` comes to on a device."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bf16" if has_bfloat16(device) else "no")


CHOICE = "choice"
"""Of the figures that a stage measures, the one by which the best weights are chosen."""

Rate = Callable[[int, LoopSettings], float]
"""Factor on every peak rate at a step, in [0, 1]."""


def trapezoid(step: int, settings: LoopSettings) -> float:
    """Rises over `warmup` steps, stays, falls to zero over the last `decay` share."""
    rising = min(1.0, (step + 1) / max(1, settings.warmup))
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return min(rising, 1.0, max(0.0, left))


def constant(step: int, settings: LoopSettings) -> float:
    """The peak rate throughout."""
    return 1.0


def cosine(step: int, settings: LoopSettings, *, end: float) -> float:
    """Falls by half a cosine from the peak rate to the share `end` of it at the last step."""
    done = min(1.0, step / max(1, settings.steps))
    return end + (1 - end) * (1 + math.cos(math.pi * done)) / 2


RateName = Literal["trapezoid", "constant", "cosine"]


def rate_of(name: RateName, end: float) -> Rate:
    """The rule of a name; `end` is where a cosine ends."""
    rates: dict[RateName, Rate] = {"trapezoid": trapezoid, "constant": constant}
    return rates.get(name, partial(cosine, end=end))


@dataclass(frozen=True, slots=True)
class Learner:
    """Weights that learn together: the norm of all their gradients is clipped as one.

    Attributes:
        name: goes before the names of its figures in the log; empty for a stage's only one.
        parameters: its weights, those that stand still included.
        optimizers: their groups carry their peak rate as `lr`.
        rate: how the rates change.
        averaged: whether an average of its weights is kept and exported.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    optimizers: Sequence[torch.optim.Optimizer]
    rate: Rate = trapezoid
    averaged: bool = True


@dataclass(frozen=True, slots=True)
class Update:
    """One step of a learner's optimizers, on the mean loss of its micro-batches.

    Attributes:
        learner: what learns.
        loss: loss of a micro-batch, by its number, and figures to log.
        micro_batches: how many there are, backpropagated one after another.
        limit: factor on the clipped gradients, given their norm times the share of the peak rate
            that the step has; see `step_limiter`.
    """

    learner: Learner
    loss: Callable[[int], tuple[Tensor, dict[str, float]]]
    micro_batches: int = 1
    limit: Callable[[float], float] | None = None


class Stage(ABC):
    """What one stage trains, and by which losses.

    Attributes:
        name: its folder in the work folder, too.
        modules: what goes to the device; of its weights, those of learners are saved.
        has_choice: whether `measure` tells `CHOICE`.
    """

    name: str
    modules: nn.ModuleDict
    has_choice = False

    @abstractmethod
    def learners(self) -> Sequence[Learner]:
        """All learners; called once, when their weights are where they learn."""

    @abstractmethod
    def updates(self, step: int) -> Iterable[Update]:
        """The updates of a step, made one after another; all randomness derives from `step`."""

    def measure(self) -> dict[str, float]:
        """Figures of the averages, which modules hold then, on films that training never sees."""
        return {}

    def extra_state(self) -> dict[str, Tensor]:
        """What else must be as it was when a run goes on."""
        return {}

    def restore_extra(self, state: Mapping[str, Tensor]) -> None:
        """Take what `extra_state` gave; a stage that keeps nothing else takes nothing."""
        if state:
            raise CheckpointError(
                f"the state of stage {self.name} holds {min(state)}, which the stage does not know",
                "train in another folder",
            )

    @abstractmethod
    def export(self, weights: Mapping[str, Tensor]) -> None:
        """Write the stage's part of the model folder from the averaged weights."""


class SingleLossStage(Stage):
    """A stage in which everything learns from one loss.

    Attributes:
        micro_batches: batches of a step that this process makes, one after another.
    """

    micro_batches = 1

    @abstractmethod
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimizers of all weights."""

    @abstractmethod
    def loss(self, step: int, draw: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch and figures to log.

        Args:
            step: how far training is.
            draw: number of the batch among those of all steps and processes, from which every
                random choice derives; the step where a step has one batch.
        """

    def learners(self) -> Sequence[Learner]:
        """One for all weights."""
        self._learner = Learner("", list(self.modules.parameters()), self.optimizers())
        return [self._learner]

    def updates(self, step: int) -> Iterable[Update]:
        """One, by `loss`; processes draw other batches, which one process could draw as well."""

        def loss(micro_batch: int) -> tuple[Tensor, dict[str, float]]:
            index, count = process()
            first = step * batches_of_a_step(self.micro_batches)
            return self.loss(step, first + micro_batch * count + index)

        return [Update(self._learner, loss, self.micro_batches)]
