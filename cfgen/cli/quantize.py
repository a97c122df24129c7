"""`cfgen quantize`: a model in fewer bits, and what each layer loses by it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cfgen.cli import conversion_options, options
from cfgen.errors import OutputRefused
from cfgen.files.writing import disk_errors, write_file
from cfgen.plain_text import cells, padded
from cfgen.units import bytes_words, count

if TYPE_CHECKING:
    from cfgen.checkpoint.convert.quantize import LayerLoss

_WORST = 5

Format = Literal["int8", "int8-convrot", "fp8", "fp8-e5m2", "mxfp8", "nvfp4"]

Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="REGEX",
        help="Leave layers whose name matches this as they are; may be repeated.",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="REGEX",
        help="Quantize only layers whose name matches this; may be repeated.",
    ),
]
Dtype = Annotated[
    conversion_options.Dtype | None,
    typer.Option("--dtype", help="Number type of what is not quantized.  [default: as it is]"),
]
Requantize = Annotated[
    bool, typer.Option("--requantize", help="Also quantize layers that are quantized already.")
]
ReportFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write the errors of all layers as JSON."),
]

app = options.command_app()


@app.command()
@options.takes(options.Yes, options.Json, options.Quiet, options.Debug)
def quantize(
    ctx: typer.Context,
    source: conversion_options.Source,
    target: conversion_options.Target,
    format: Annotated[Format, typer.Option("--format", help="The number format.")],
    keep: Keep = None,
    only: Only = None,
    dtype: Dtype = None,
    requantize: Requantize = False,
    report: ReportFile = None,
    weights: conversion_options.Which = None,
    *,
    yes: bool,
) -> None:
    """Quantize a model, and tell what each layer loses.

    Writes a safetensors file in ComfyUI's native layout and Wan's own names.
    It quantizes the matrices of the blocks (self_attn and cross_attn q, k, v, o;
    ffn 0, 2). Embeddings, norms, modulations and head stay as they are. The
    same holds for a UMT5 text encoder; cfgen refuses a VAE.

    \b
    int8          8 bits, a scale for each row: the smallest error of 8 bits
    int8-convrot  the same after a rotation that evens out large values
    fp8           float8_e4m3fn, one scale for each matrix: what most tools read
    fp8-e5m2      float8_e5m2: wider range, twice the error
    mxfp8         float8_e4m3fn, a power of two for each 32 columns
    nvfp4         4 bits, a scale for each 16 columns: about half the size

    A model with other heads than Wan's published ones needs its config.json;
    cfgen puts it beside DST.

    \b
    Examples:
      cfgen quantize longlive.pt longlive_int8.safetensors --format int8
      cfgen quantize wan.safetensors wan_fp4.safetensors --format nvfp4 \\
        --keep 'blocks\\.(0|29)\\.' --keep 'ffn\\.2' --report errors.json
    """
    from cfgen.checkpoint.convert.input import open_source
    from cfgen.checkpoint.convert.output import check
    from cfgen.checkpoint.convert.quantize import plan_quantize

    console = options.console_of(ctx)
    found = open_source(source, weights=weights and conversion_options.WEIGHTS[weights])
    others = conversion_options.dtype_of(dtype)
    rewrite, losses = plan_quantize(
        found, format, keep=keep or (), only=only or (), dtype=others, requantize=requantize
    )
    check(found, target, nbytes=rewrite.nbytes, overwrite=yes)
    _check_report(report, target, overwrite=yes)
    data = conversion_options.write(console, rewrite, target)
    data |= {"format": format, **_errors(losses)}
    if report:
        with disk_errors(report):
            write_file(report, [json.dumps(data, indent=1).encode(), b"\n"])
    for line in _lines(losses, format, data):
        console.note(line)
    console.result(str(target), data)


def _check_report(report: Path | None, target: Path, *, overwrite: bool) -> None:
    if report is None:
        return
    hint = "choose another file with --report"
    if report.absolute() == target.absolute() or report.is_dir():
        raise OutputRefused(f"{report} cannot be the report", hint)
    if not report.absolute().parent.is_dir():
        raise OutputRefused(f"the folder {report.absolute().parent} does not exist", hint)
    if report.exists() and not overwrite:
        raise OutputRefused(f"{report} exists already", f"replace it with -y, or {hint}")


def _errors(losses: Sequence[LayerLoss]) -> dict[str, object]:
    """What layers lost, in plain values."""
    layers = [
        {
            "layer": item.layer,
            "format": item.format,
            "shape": list(item.shape),
            "relative_rms": item.loss.relative_rms,
            "largest_error": item.loss.largest,
            "snr_db": item.loss.snr_db,
        }
        for item in losses
    ]
    return {"relative_rms": _mean(losses), "layers": layers}


def _mean(losses: Sequence[LayerLoss]) -> float:
    return sum(item.loss.relative_rms for item in losses) / len(losses)


def _lines(losses: Sequence[LayerLoss], format: str, data: dict[str, object]) -> Iterator[str]:
    """The report for people: the whole, and the layers that lost most."""
    nbytes, before = (int(str(data[key])) for key in ("nbytes", "source_nbytes"))
    yield (
        f"{count(len(losses), 'layer')} in {format}: {bytes_words(nbytes)}, "
        f"{nbytes / before:.0%} of {bytes_words(before)}"
    )
    yield f"error {_mean(losses):.2%} on average (root mean square over that of the weights); most:"
    worst = sorted(losses, key=lambda item: -item.loss.relative_rms)[:_WORST]
    width = max(cells(item.layer) for item in worst)
    for item in worst:
        snr = "exact" if item.loss.snr_db is None else f"{item.loss.snr_db:.1f} dB"
        yield (
            f"  {padded(item.layer, width)}  {item.loss.relative_rms:7.2%}  {snr:>8}  "
            f"largest {item.loss.largest:.2g}"
        )
