"""torch.compile for the blocks of a generator: norms, gates and activations between the ops."""

from __future__ import annotations

import os
import shutil

import torch

from cfgen.errors import SetupError
from cfgen.model.generator import Block, Generator


def compile_blocks(generator: Generator) -> None:
    """Compile what a generator's blocks do between the ops, on their first use.

    Self-attention goes on as it is: memory is beyond the compiler.

    Raises:
        SetupError: There is no C++ compiler, which a CPU needs.
    """
    wanted = [os.environ.get("CXX") or "g++", "clang++"]
    if generator.device.type == "cpu" and not any(map(shutil.which, wanted)):
        raise SetupError(
            "--compile needs a C++ compiler on a CPU, and there is neither g++ nor clang++",
            "install one, or leave --compile out",
        )
    writer = generator.writer
    for block in [*generator.blocks, *([] if writer is None else writer.blocks)]:
        if isinstance(block, Block):
            attend = torch.compiler.disable(block.self_attn.forward)  # type: ignore[no-untyped-call]
            block.self_attn.forward = attend  # type: ignore[method-assign]
            block.compile(dynamic=False)
