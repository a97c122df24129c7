"""Builds the one set of ops that a model is given; chosen once, never switched in mid-render."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cfgen.errors import BackendUnavailable
from cfgen.ops import reference, torch_backend


@dataclass(frozen=True, slots=True)
class Ops:
    """Callables with the signatures of `ops.reference`, and the backend's name."""

    name: str
    rotate: Callable[[Tensor, Tensor], Tensor]
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]


def build_ops(backend: str) -> Ops:
    """The ops of a backend: `reference`, `torch`, or `auto`, which takes torch.

    Raises:
        BackendUnavailable: the backend does not exist or cannot run here.
    """
    if backend == "reference":
        return Ops("reference", reference.rotate, reference.attend)
    if backend in ("torch", "auto"):
        return Ops("torch", reference.rotate, torch_backend.attend)
    raise BackendUnavailable(
        f"backend {backend!r} is not available; available: auto, torch, reference",
        "use --set backend=auto",
    )
