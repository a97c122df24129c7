"""Weights that wait in main memory and come to the GPU when their layer runs."""

from __future__ import annotations

import torch

from cfgen.model.generator import Generator


def offload_blocks(generator: Generator, device: torch.device) -> None:
    """Leave the weights of a generator's blocks where they are; the rest moves to `device`.

    Each layer's weights come to `device` before it runs and go afterwards; quantized ones travel
    as they are stored.
    """
    for name, child in generator.named_children():
        if name != "blocks":
            child.to(device)
    from accelerate import cpu_offload

    for block in generator.blocks:
        cpu_offload(block, execution_device=device, offload_buffers=True)
