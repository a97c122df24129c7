"""What a configuration's `auto` means on this machine: device, number type, threads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch

from cfgen.config.schema import RenderConfig
from cfgen.errors import SetupError
from cfgen.ops.native import has_bfloat16
from cfgen.pipeline.limits import usable_cores

MOST_THREADS = 8
"""CPU threads by default, at most: what fixes the pixels should differ little between machines."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What computes a render.

    Attributes:
        device: Where.
        dtype: Number type of matrices.
        threads: CPU threads.
    """

    device: torch.device
    dtype: torch.dtype
    threads: int

    @classmethod
    def of(cls, config: RenderConfig) -> Runtime:
        """What a configuration asks for; `auto` and None are settled for this machine.

        Raises:
            SetupError: A CUDA device is asked for and there is none.
        """
        device = _device(config.device)
        cores = max(1, usable_cores() // config.placement.parallel)
        threads = config.threads or min(MOST_THREADS, cores)
        return cls(device, _dtype(config.dtype, device), threads)


def resolve_auto(config: RenderConfig, runtime: Runtime) -> RenderConfig:
    """The configuration with what it came to on this machine, the device by its kind."""
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16" if runtime.dtype is torch.bfloat16 else "float32"
    )
    return dataclasses.replace(
        config, device=runtime.device.type, dtype=dtype, threads=runtime.threads
    )


def _device(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked != "cpu" and not torch.cuda.is_available():
        raise SetupError(
            f"device {asked} is not there: torch sees no CUDA GPU", "use --set device=cpu"
        )
    return torch.device(asked)


def _dtype(asked: str, device: torch.device) -> torch.dtype:
    """What is asked for, else bfloat16 where the device has it."""
    if asked == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return torch.bfloat16 if asked == "bfloat16" else torch.float32
