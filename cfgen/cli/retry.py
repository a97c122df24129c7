"""`cfgen retry`: do a video over from a moment on."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from cfgen.cli import options
from cfgen.cli.branch import (
    NewPrompt,
    Parent,
    changed,
    chunk_of,
    new_seed,
    prepare,
    with_config,
)
from cfgen.cli.command import FILM
from cfgen.cli.plan import plan_of
from cfgen.cli.run_render import run_render, tell_result
from cfgen.pipeline.run_configs import config_of, run_folder
from cfgen.runs.folder import LOCK, RunFolder
from cfgen.runs.lock import Lock

app = options.command_app()

From = Annotated[
    str,
    typer.Option(
        "--from", metavar="TIME", help="Where to begin anew: 40s, 1:12.", rich_help_panel=FILM
    ),
]
RetrySeed = Annotated[
    str | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="The seed from there on.  [default: a random one]",
        rich_help_panel=FILM,
    ),
]


@app.command()
def retry(
    ctx: typer.Context,
    run: Parent,
    begin: From,
    seed: RetrySeed = None,
    prompt: NewPrompt = None,
    json_lines: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Do a video over from a moment on, with another seed or prompt.

    cfgen renders the chunk that plays at that moment, and everything after it, anew. What comes
    before stays. The video is replaced once the new one is finished; `cfgen branch` keeps both.

    \b
    Examples:
      cfgen retry a.mp4 --from 0:40
      cfgen retry a.mp4 --from 0:40 --seed 12
    """
    from cfgen.render.branch import retry_from

    console = options.console_of(ctx)
    console.configure(json=json_lines, quiet=quiet, verbose=verbose, debug=debug)
    path = run_folder(run)
    with Lock(path / LOCK):
        folder = RunFolder(path)
        folder.require_replaceable()
        config = config_of(folder)
        new = changed(folder, {"seed": seed or new_seed(), "prompt": prompt})
        new = dataclasses.replace(new, output=config.output)
        plan = plan_of(config)
        point, record = prepare(console, folder, chunk_of(begin, plan, plan))
        for _ in retry_from(point, with_config(record, new, point)):
            pass
        del point  # and the model with it, before it is loaded for the new take
    if str(new.seed) != seed:
        console.note(f"seed {new.seed} (chosen at random)")
    finished = run_render(console, new, plan, resume=True)
    tell_result(console, finished, new)
