"""Brings the kernels, or the reason why one is missing, and compiles what peers need compiled."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from gpu_parts.case import Refused

HOMES = {
    "attend_pages": "attend",
    "norm_rotate": "cache_write",
    "write_pages": "cache_write",
    "modulate": "modulate",
    "add_gated": "modulate",
    "admit": "similarity",
}
"""The file in `kernels/` of each op."""


def kernel(name: str) -> Callable[..., Any]:
    """The Triton host function of an op.

    Raises:
        Refused: there is none, or Triton cannot be imported.
    """
    try:
        found: Callable[..., Any] = getattr(
            importlib.import_module(f"cfgen.kernels.{HOMES[name]}"), name
        )
    except (ImportError, AttributeError) as missing:
        raise Refused(f"not available: {missing}") from missing
    return found


def interpret() -> None:
    """Have Triton's interpreter run the kernels, corrected as the tests of the kernels do it."""
    from cfgen.kernels import pages  # noqa: F401  (their package has to be there)

    for home in set(HOMES.values()):
        try:
            importlib.import_module(f"cfgen.kernels.{home}")
        except ImportError:
            continue
    importlib.import_module("interpreter").install()


def compiled(
    function: Callable[..., Any], device: torch.device, *, whole: bool = True
) -> Callable[..., Any]:
    """`torch.compile` for the very shapes it is called with, on a CPU without generating code.

    Args:
        function: What is compiled.
        device: Where it runs.
        whole: Whether it must be one graph, and an error if it is not.
    """
    return _compiled(function, "inductor" if device.type == "cuda" else "eager", whole)


@functools.cache
def _compiled(function: Callable[..., Any], backend: str, whole: bool) -> Callable[..., Any]:
    from torch._dynamo import config

    # Past its limit, Dynamo would go on uncompiled and say nothing.
    config.recompile_limit = config.accumulated_recompile_limit = 1000
    found: Callable[..., Any] = torch.compile(
        function, fullgraph=whole, dynamic=False, backend=backend
    )
    return found
