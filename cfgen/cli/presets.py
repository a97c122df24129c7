"""`cfgen presets`: what presets there are, and what one resolves to."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cfgen.cli import options
from cfgen.config.loader import load
from cfgen.config.presets import preset_description, preset_names
from cfgen.plain_text import aligned, cells, padded

app = options.command_app("List presets, or show one with the origin of every value.")


@app.command("list")
def list_presets(
    ctx: typer.Context, json_lines: options.Json = False, debug: options.Debug = False
) -> None:
    """List the presets."""
    console = options.console_of(ctx)
    console.configure(json=json_lines, debug=debug)
    described = {name: preset_description(name) for name in preset_names()}
    lines = aligned(list(described.items()))
    console.result("\n".join(lines), {"presets": described})


@app.command("show")
def show_preset(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The preset.")],
    assignments: options.Set = None,
    config_file: options.Config = None,
    json_lines: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a preset's values and where each comes from.

    Your own configuration and CFGEN_* variables take part, just as they do in a render.

    \b
    Example:
      cfgen presets show mini --set memory.tau=0.9
    """
    console = options.console_of(ctx)
    console.configure(json=json_lines, debug=debug)
    resolved = load({"preset": name}, assignments=assignments or (), run_file=config_file)
    rows = resolved.rows()
    key_width = max(cells(key) for key, _, _ in rows)
    lines = [
        f"{padded(key, key_width)}  {padded(_shown(value), 24)}  {origin}"
        for key, value, origin in rows
    ]
    data = {key: {"value": value, "origin": origin} for key, value, origin in rows}
    text = "\n".join([*lines, f"digest {resolved.digest}"])
    console.result(text, {"values": data, "digest": resolved.digest})


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return value if isinstance(value, str) and value else json.dumps(value)
