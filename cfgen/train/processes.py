"""Several processes that train together, as `accelerate launch` starts them.

Each draws other films; weights are whole in every process, and gradients are averaged after each
update. Optimizer states and averages may be shared out (`sharing`). Weights are not (FSDP): it
takes a layer's weights away when the layer is done, and here gradients come back later, too,
through the keys and values that passes leave in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn


def device_here() -> torch.device:
    """Where a process trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def process() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    state = _state()
    return int(state.process_index), int(state.num_processes)


def _state() -> PartialState:
    """Accelerate's; whoever asks first decides whether processes without GPUs find each other."""
    return PartialState(cpu=not torch.cuda.is_available())


def batches_of_a_step(micro_batches: int) -> int:
    """How many all processes make together, each so many."""
    return micro_batches * process()[1]


def as_one(number: int) -> tuple[int, int, int]:
    """Seed of a micro-batch of this process, as one process has it that makes all of them."""
    index, count = process()
    return number * count + index, 0, 1


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Make gradients the mean over processes.

    A weight that no loss of this process reached counts with a gradient of zero.
    """
    _, count = process()
    if count == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= count


def agreed(answer: bool) -> bool:
    """What the first process answers: clocks differ, and none may go on without the others."""
    _, count = process()
    if count == 1:
        return answer
    told = [answer]
    dist.broadcast_object_list(told)
    return told[0]


def each_told(names: list[str]) -> list[list[str]]:
    """The names that each process tells, in the order of processes; all wait for the last one."""
    _, count = process()
    told: list[list[str]] = [names] * count
    if count > 1:
        dist.all_gather_object(told, names)
    return told


def gathered(values: Tensor) -> Tensor:
    """What all processes hold, joined along the first axis on the CPU; each may hold as many."""
    _, count = process()
    if count == 1:
        return values
    parts: list[Tensor] = [values] * count
    dist.all_gather_object(parts, values.cpu())
    return torch.cat(parts)
