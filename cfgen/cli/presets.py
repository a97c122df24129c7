"""`cfgen presets`: what presets there are, and what one resolves to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from cfgen.cli import completion, options
from cfgen.cli.columns import WIDTH, wrapped
from cfgen.config.keys import Key, keys
from cfgen.config.loader import load
from cfgen.config.presets import preset_description, preset_names
from cfgen.plain_text import aligned, cells, padded

app = options.command_app("List presets, or show one with the origin of every value.")


@app.command("list")
@options.takes(options.Json, options.Debug)
def list_presets(ctx: typer.Context) -> None:
    """List the presets."""
    console = options.console_of(ctx)
    described = {name: preset_description(name) for name in preset_names()}
    lines = aligned(list(described.items()))
    console.result("\n".join(lines), {"presets": described})


@app.command("show")
@options.takes(options.Set, options.Config, options.Json, options.Debug)
def show_preset(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="The preset.", autocompletion=completion.presets),
    ],
    *,
    set: list[str] | None,
    config: Path | None,
) -> None:
    """Show a preset's values and where each comes from.

    Your own configuration and CFGEN_* variables count, as they do in a render.

    \b
    Example:
      cfgen presets show mini --set memory.tau=0.9
    """
    console = options.console_of(ctx)
    resolved = load({"preset": name}, assignments=set or (), run_file=config)
    rows = resolved.rows()
    key_width = max(cells(key) for key, _, _ in rows)
    lines = [
        f"{padded(key, key_width)}  {padded(_shown(value), 24)}  {origin}"
        for key, value, origin in rows
    ]
    data = {key: {"value": value, "origin": origin} for key, value, origin in rows}
    text = "\n".join([*lines, f"digest {resolved.digest}"])
    console.result(text, {"values": data, "digest": resolved.digest})


@app.command("keys")
@options.takes(options.Json, options.Debug)
def list_keys(ctx: typer.Context) -> None:
    """List every key that a preset, --config or --set can set.

    A key has its flag of `cfgen render`, if any, behind it.

    \b
    Example:
      cfgen render "a red kite" --set schedule.guidance=2 --set encode.quality=best
    """
    console = options.console_of(ctx)
    lines = []
    for key in keys().values():
        lines.append(f"{key.name}  {key.flag}".rstrip())
        lines += [f"    {line}" for line in wrapped(told(key), WIDTH - 4)]
    data = {key.name: dataclasses.asdict(key) for key in keys().values()}
    console.result("\n".join(lines), {"keys": data})


def told(key: Key) -> str:
    """What there is to say of a key: what it is, its values, its default, who knows it."""
    facts = [f"values: {', '.join(key.values)}"] if key.values else []
    facts += [f"default: {key.default}"] if key.default else []
    facts += [f"only: {', '.join(key.policies)}"] if key.policies else []
    return f"{key.about} [{'; '.join(facts)}]" if facts else key.about


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return value if isinstance(value, str) and value else json.dumps(value)
