"""`cfgen branch`: another continuation of a render, as a video of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfgen.cli import completion, options
from cfgen.cli.command import FILM, OUTPUT
from cfgen.cli.console import Console
from cfgen.cli.run_render import run_render
from cfgen.pipeline.runs import run_folder
from cfgen.video.formats import ENDINGS

if TYPE_CHECKING:
    from cfgen.pipeline.branch import Branch

app = options.command_app()

At = Annotated[
    str, options.option("--at", "TIME", FILM, "Where the new continuation begins: 40s, 1:12.")
]
NewPrompt = Annotated[
    str | None,
    options.option(
        "--prompt",
        "TEXT",
        FILM,
        "What the video shows from there on, in quotes.  [default: the old prompt]",
    ),
]
NewTransition = Annotated[
    str | None,
    options.option(
        "--transition",
        "HOW",
        FILM,
        "What becomes of the memory there: continue, recache, flush, cut or fresh.  [default: "
        "with --prompt, what the preset says]",
        autocompletion=completion.values_of("transition"),
    ),
]
NewOutput = Annotated[
    Path, options.option("-o, --output", "FILE", OUTPUT, f"The new video, an {ENDINGS}.")
]
NewSeed = Annotated[
    str | None,
    options.option(
        "--seed",
        "N",
        FILM,
        "The seed from there on.  [default: the old seed if anything else is new, else a "
        "random one]",
    ),
]
NewDuration = Annotated[
    str | None,
    options.option(
        "--duration", "TIME", FILM, "Playing time of the new video.  [default: that of the old one]"
    ),
]
Parent = Annotated[
    Path, typer.Argument(metavar="RUN", help="The run folder (NAME.cfgen) or the video it made.")
]


@app.command()
@options.takes(options.Yes, *options.SHOWN)
def branch(
    ctx: typer.Context,
    run: Parent,
    at: At,
    output: NewOutput,
    prompt: NewPrompt = None,
    transition: NewTransition = None,
    seed: NewSeed = None,
    duration: NewDuration = None,
    *,
    yes: bool,
) -> None:
    """Render another continuation of a video, from a moment of it.

    The new continuation begins with the chunk that plays at that moment. All earlier frames are
    those of the old video, before encoding. The old video stays as it is. A longer --duration
    alone extends it. With --prompt, a new shot begins there. Without any of these flags, cfgen
    chooses another seed.

    \b
    Examples:
      cfgen branch a.mp4 --at 1:12 --prompt "a red kite at night" -o b.mp4
      cfgen branch a.mp4 --at 1:12 --prompt "a red kite" --transition cut -o b.mp4
      cfgen branch a.cfgen --at 40s --seed 8 -o c.mp4
      cfgen branch a.mp4 --at 2m --duration 3m -o longer.mp4
    """
    console = options.console_of(ctx)
    from cfgen.pipeline.branch import plan_branch

    changes = {"prompt": prompt, "transition": transition, "seed": seed, "duration": duration}
    plan = plan_branch(run_folder(run), at=at, output=output, changes=changes, overwrite=yes)
    make_branch(console, plan, seed)


def make_branch(console: Console, plan: Branch, seed: str | None) -> None:
    """Make a branch or do a render over, and show it; `seed` is the one that was asked for."""
    console.note(plan.notice)
    rendering = plan.make()
    if plan.new_seed and str(plan.child.seed) != seed:
        console.note(f"seed {plan.child.seed} (chosen at random)")
    run_render(console, rendering)
