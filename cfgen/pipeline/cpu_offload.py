"""Weights that wait in main memory and come to the GPU when their layer runs."""

from __future__ import annotations

import torch

from cfgen.model.generator import Generator, Linear
from cfgen.model.quantized import QuantizedLinear


def offload_blocks(generator: Generator, device: torch.device) -> None:
    """Leave the matrices of a generator's blocks where they are; the rest moves to `device`.

    Each matrix comes to `device` before it is used and goes afterwards; quantized ones travel as
    they are stored.
    """
    from accelerate import cpu_offload

    blocks = [each.blocks for each in (generator, generator.writer) if each is not None]
    inside = (module for stack in blocks for module in stack.modules())
    waiting = [module for module in inside if isinstance(module, Linear | QuantizedLinear)]
    held = {id(tensor) for m in waiting for tensor in (*m.parameters(), *m.buffers())}
    for module in generator.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in held:
                tensor.data = tensor.data.to(device)
    for module in waiting:
        cpu_offload(module, execution_device=device, offload_buffers=True)
