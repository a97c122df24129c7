"""What `cfgen quantize` and `cfgen convert` share: their arguments, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cfgen.cli.console import Console
from cfgen.units import bytes_words, clock

if TYPE_CHECKING:
    import torch

    from cfgen.checkpoint.convert.conversion_plan import ConversionPlan, Step

_PARTS = 10
_QUIET_S, _HASTE_S = 30.0, 1.0

Dtype = Literal["bf16", "f16", "f32"]
Weights = Literal["ema", "generator"]

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SRC",
        help="A file of weights (safetensors, GGUF, .pt), the index of its shards, or a folder.",
    ),
]
Target = Annotated[
    Path, typer.Argument(metavar="DST", help="The file to write; its name ends in .safetensors.")
]
Which = Annotated[
    Weights | None,
    typer.Option(
        "--weights", help="Which weights to take if a training state holds both.  [default: ema]"
    ),
]

DTYPES: dict[Dtype, str] = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
WEIGHTS: dict[Weights, str] = {"ema": "generator_ema", "generator": "generator"}


def dtype_of(name: Dtype | None) -> torch.dtype | None:
    """The dtype of a flag; None without one."""
    import torch

    return None if name is None else getattr(torch, DTYPES[name])


def write(console: Console, rewrite: ConversionPlan, target: Path) -> dict[str, object]:
    """Write a file and tell how far it is and what a user should know of it.

    Returns:
        What there is to say of it in `--json`.
    """
    nbytes_before = sum(file.stat().st_size for file in rewrite.source.network.file.files)
    config = rewrite.write(target, Writing(console, rewrite.nbytes))
    notes = list(rewrite.notes())
    if config:
        notes.append(f"{config} was put beside it: without it, the model's heads are not known")
    for note in notes:
        console.note(note)
    return {
        "path": str(target),
        "source": str(rewrite.source.path),
        "kind": rewrite.source.kind,
        "nbytes": target.stat().st_size,
        "source_nbytes": nbytes_before,
        "quantized_layers": rewrite.formats,
        "config": str(config) if config else None,
        "notes": notes,
    }


class Writing:
    """Tells how far a file is: at every tenth of it and at least every half minute.

    Args:
        console: where it is told.
        nbytes: bytes of all tensors.
        now: tells the time in seconds.
    """

    def __init__(
        self, console: Console, nbytes: int, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._total = nbytes
        self._now = now
        self._begun = now()
        self._told = (0, now())

    def __call__(self, step: Step) -> None:
        """Take in that a tensor was written."""
        nbytes, at = self._told
        waited = self._now() - at
        tenth = step.nbytes - nbytes >= self._total / _PARTS
        if waited < _HASTE_S or not (tenth or waited >= _QUIET_S):
            return
        self._told = (step.nbytes, self._now())
        rate = step.nbytes / (self._now() - self._begun)
        eta_s = (self._total - step.nbytes) / rate
        done = f"{bytes_words(step.nbytes)} of {bytes_words(self._total)}"
        self._console.note(f"{step.name}: {done}, ETA {clock(eta_s)}")
        fields = {"nbytes": step.nbytes, "nbytes_total": self._total, "eta_s": eta_s}
        self._console.event("progress", {"name": step.name, **fields})
