"""`cfgen inspect`: what a file of weights is, and whether cfgen loads it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfgen.cli import options
from cfgen.cli.columns import WIDTH
from cfgen.cli.console import Console
from cfgen.cli.report_text import lines_on
from cfgen.config.presets import locate_model
from cfgen.errors import CheckpointError
from cfgen.units import bytes_words

if TYPE_CHECKING:
    from cfgen.checkpoint.inspect.report import Report

_LONG_TO_DIGEST_NBYTES = 1_000_000_000

_FLAGS = {
    "generator": "--model",
    "text encoder": "--text-encoder",
    "vae": "--vae",
    "lora": "--lora",
}
"""How `cfgen render` is given each kind of network."""

app = options.command_app()


@app.command()
@options.takes(options.Json, options.Debug)
def inspect(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A file of weights, the index of its shards, a folder, or owner/name[/file] in "
            "the cache of Hugging Face.",
        ),
    ],
    layers: Annotated[
        bool, typer.Option("--layers", help="List every tensor and how it is stored.")
    ] = False,
    values: Annotated[
        bool, typer.Option("--values", help="Read all weights and look for NaN and infinity.")
    ] = False,
    no_sha256: Annotated[
        bool, typer.Option("--no-sha256", help="Skip the SHA-256, which reads the whole file.")
    ] = False,
) -> None:
    """Tell what a file of weights is, and whether cfgen loads it.

    It says which network the file holds, under what names, how the layers are quantized, which
    tensors are missing or unused, which preset fits, and the licence. The exit code is 3 for a file
    that cfgen refuses.

    \b
    Examples:
      cfgen inspect self_forcing_dmd.pt
      cfgen inspect wan2.1_t2v_1.3B_Q4_K.gguf --layers --no-sha256
    """
    from cfgen.checkpoint.inspect.inspect import inspect as look
    from cfgen.checkpoint.inspect.inspect import weights_in

    console = options.console_of(ctx)
    place = locate_model(file)
    paths = weights_in(place) if place.is_dir() else [place]
    if not no_sha256:
        _tell_long(console, paths)
    reports = [look(path, digests=not no_sha256, values=values) for path in paths]
    loads = all(report.refusal is None for report in reports)
    command = _command(place, reports)
    blocks = ["\n".join(lines_on(report, layers=layers)) for report in reports]
    data = {
        "path": str(place),
        "loads": loads,
        "command": command,
        "parts": [_data(report, layers=layers) for report in reports],
    }
    closing = [_folded(command)] if command else []
    console.result("\n\n".join([*blocks, *closing]), data, ok=loads)
    if not loads:
        raise typer.Exit(3)


def _tell_long(console: Console, paths: Iterable[Path]) -> None:
    """Say why it takes long, if it will."""
    nbytes = sum(path.stat().st_size for path in paths if path.is_file())
    if nbytes > _LONG_TO_DIGEST_NBYTES:
        console.note(f"reading {bytes_words(nbytes)} for its sha256, which --no-sha256 leaves out")


def _command(place: Path, reports: Sequence[Report]) -> str | None:
    """How to render with what was inspected; None if cfgen refuses it."""
    from cfgen.checkpoint.networks.model_files import generator_file

    usable = [r for r in reports if r.network and not r.refusal]
    first = next((r for r in usable if r.network and r.network.kind == "generator"), None)
    first = first or (usable[0] if len(reports) == len(usable) == 1 else None)
    if first is None or first.network is None:
        return None
    path = first.path
    if place.is_dir():
        with contextlib.suppress(CheckpointError):
            path = place if generator_file(place) == path else path
    recipe = first.guess.recipe if first.guess else ""
    flag = _FLAGS[first.network.kind]
    return f'cfgen render "PROMPT" {flag} {shlex.quote(str(path))} --preset {recipe or "NAME"}'


def _data(report: Report, *, layers: bool) -> dict[str, object]:
    """A report for programs; each tensor of it with `--layers` only."""
    found = asdict(report)
    found["loads"] = report.refusal is None
    if report.network and not layers:
        found["network"]["tensors"] = None
    return found


def _folded(command: str) -> str:
    """A command on two lines where one is too narrow."""
    first, preset, name = command.rpartition(" --preset ")
    return command if len(command) <= WIDTH else f"{first} \\\n {preset}{name}"
