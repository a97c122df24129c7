"""Several processes that train together, as `accelerate launch` starts them.

Each draws other films. Weights are whole in every process, and gradients are averaged after each
update; or each process holds a part of weights, gradients, averages and optimizer states, and whole
layers are put together as they are needed (FSDP). Accelerate's own wrapper is not used for that: it
hooks `forward` alone, and a generator also commits, reads prompts and writes to a memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from cfgen.model.generator import Block, Generator


def process() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    state = PartialState()
    return int(state.process_index), int(state.num_processes)


def as_one(number: int) -> tuple[int, int, int]:
    """Seed of a micro-batch of this process, as one process has it that makes all of them."""
    index, count = process()
    return number * count + index, 0, 1


def shard(modules: nn.Module) -> None:
    """Give each process its part of every generator that learns; parameters become new objects."""
    state = PartialState()
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    for generator in list(modules.modules()):
        if not isinstance(generator, Generator):
            continue
        for block in generator.blocks:
            assert isinstance(block, Block)
            _shard(block.cross_attn, mesh, "read")
            _shard(block, mesh, "write")
        _shard(generator, mesh, "condition", "level", "commit")


def _shard(module: nn.Module, mesh: DeviceMesh, *methods: str) -> None:
    """Split a module's own weights, to be whole within `forward` and these methods."""
    fully_shard(module, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(module, method)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Make the gradients of whole weights the mean over processes; parts are averaged already.

    A weight that no loss of this process reached counts with a gradient of zero.
    """
    _, count = process()
    if count == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= count


def gathered(values: Tensor) -> Tensor:
    """What all processes hold, joined along the first axis on the CPU; each may hold as many."""
    _, count = process()
    if count == 1:
        return values
    parts: list[Tensor] = [values] * count
    dist.all_gather_object(parts, values.cpu())
    return torch.cat(parts)


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its parts; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor split as another of its shape is."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor
