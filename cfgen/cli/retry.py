"""`cfgen retry`: do a video over from a moment on."""

from __future__ import annotations

from typing import Annotated

import typer

from cfgen.cli import options
from cfgen.cli.branch import NewPrompt, Parent, make_branch
from cfgen.cli.command import FILM
from cfgen.pipeline.runs import run_folder

app = options.command_app()

From = Annotated[str, options.option("--from", "TIME", FILM, "Where to begin anew: 40s, 1:12.")]
RetrySeed = Annotated[
    str | None,
    options.option("--seed", "N", FILM, "The seed from there on.  [default: a random one]"),
]


@app.command()
@options.takes(*options.SHOWN)
def retry(
    ctx: typer.Context, run: Parent, begin: From, seed: RetrySeed = None, prompt: NewPrompt = None
) -> None:
    """Do a video over from a moment on, with another seed or prompt.

    cfgen renders the chunk that plays at that moment, and everything after it, anew. What comes
    before stays. The video is replaced once the new one is finished; `cfgen branch` keeps both.

    \b
    Examples:
      cfgen retry a.mp4 --from 0:40
      cfgen retry a.mp4 --from 0:40 --seed 12
    """
    console = options.console_of(ctx)
    from cfgen.pipeline.branch import plan_retry

    plan = plan_retry(run_folder(run), begin=begin, changes={"seed": seed, "prompt": prompt})
    make_branch(console, plan, seed)
