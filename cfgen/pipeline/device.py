"""What a configuration's `auto` means on this machine: device, number type, threads."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from cfgen.config.schema import RenderConfig
from cfgen.errors import SetupError
from cfgen.pipeline.limits import usable_cores

MOST_THREADS = 8
"""CPU threads by default, at most: what fixes the pixels should differ little between machines."""


def resolve_auto(config: RenderConfig) -> RenderConfig:
    """The configuration with what `auto` and None mean on this machine, its device by kind."""
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16" if dtype_of(config) is torch.bfloat16 else "float32"
    )
    kind = device_of(config).type
    return dataclasses.replace(config, device=kind, dtype=dtype, threads=threads_of(config))


def device_of(config: RenderConfig) -> torch.device:
    """The device of a render.

    Raises:
        SetupError: A CUDA device is asked for and there is none.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise SetupError(
            f"device {config.device} is not there: torch sees no CUDA GPU", "use --set device=cpu"
        )
    return torch.device(config.device)


def threads_of(config: RenderConfig) -> int:
    """CPU threads of a render: what is asked for, else one a usable core, up to `MOST_THREADS`."""
    return config.threads or min(MOST_THREADS, usable_cores())


def dtype_of(config: RenderConfig) -> torch.dtype:
    """The number type of matrices: what is asked for, else bfloat16 where the device has it."""
    if config.dtype == "auto":
        native = device_of(config).type == "cuda" or (
            torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
