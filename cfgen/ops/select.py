"""Builds the one set of ops that a model is given; chosen once, never switched in mid-render."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cfgen.errors import BackendUnavailable
from cfgen.ops import reference, torch_backend
from cfgen.ops.triton_backend import Request, refusals

BACKENDS = ("auto", "torch", "triton", "reference")


@dataclass(frozen=True, slots=True)
class PageOps:
    """Ops that read pages where they lie; signatures of `ops.reference`."""

    norm_rotate: Callable[..., tuple[Tensor, Tensor, Tensor | None]]
    attend_pages: Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Ops:
    """Callables with the signatures of `ops.reference`, and the backend's name.

    `pages` is None where a backend attends to keys that were rotated beforehand.
    """

    name: str
    attend: Callable[..., Tensor]
    modulate: Callable[..., Tensor]
    add_gated: Callable[..., Tensor]
    write_pages: Callable[..., None]
    admit: Callable[..., None]
    pages: PageOps | None = None


REFERENCE = Ops(
    name="reference",
    attend=reference.attend,
    modulate=reference.modulate,
    add_gated=reference.add_gated,
    write_pages=reference.write_pages,
    admit=reference.admit,
    pages=PageOps(reference.norm_rotate, reference.attend_pages),
)

TORCH = Ops(
    name="torch",
    attend=torch_backend.attend,
    modulate=torch_backend.modulate,
    add_gated=torch_backend.add_gated,
    write_pages=torch_backend.write_pages,
    admit=reference.admit,
)


def _triton() -> Ops:
    from cfgen.kernels.attend import attend_pages
    from cfgen.kernels.cache_write import norm_rotate, write_pages
    from cfgen.kernels.modulate import add_gated, modulate
    from cfgen.kernels.similarity import admit

    return Ops(
        name="triton",
        attend=torch_backend.attend,
        modulate=modulate,
        add_gated=add_gated,
        write_pages=write_pages,
        admit=admit,
        pages=PageOps(norm_rotate, attend_pages),
    )


def build_ops(backend: str, wanted: Request | None = None) -> Ops:
    """The ops of a backend: `reference`, `torch`, `triton`, or `auto`.

    `auto` takes Triton where it can do what is wanted, else torch; with nothing wanted, torch.

    Raises:
        BackendUnavailable: the backend does not exist or cannot run here; each reason is told.
    """
    match backend:
        case "reference":
            return REFERENCE
        case "torch":
            return TORCH
        case "auto":
            return TORCH if wanted is None or refusals(wanted) else _triton()
        case "triton":
            if wanted is None:
                raise ValueError("Triton's ops must know what is wanted of them")
            if reasons := refusals(wanted):
                raise BackendUnavailable(
                    f"backend 'triton' cannot run here: {'; '.join(reasons)}",
                    "use --backend auto, which takes what can run",
                )
            return _triton()
    raise BackendUnavailable(
        f"backend {backend!r} is not available; available: {', '.join(BACKENDS)}",
        "use --backend auto",
    )
