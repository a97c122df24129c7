"""`cfgen retry`: do a video over from a moment on, or take that back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cfgen.cli import options
from cfgen.cli.branch import NewPrompt, NewTransition, Parent, make_branch
from cfgen.cli.command import FILM, OUTPUT
from cfgen.cli.console import Console
from cfgen.errors import SetupError, UsageError
from cfgen.pipeline.runs import run_folder
from cfgen.video.output import video_of

if TYPE_CHECKING:
    from cfgen.pipeline.branch import Branch

app = options.command_app()

From = Annotated[
    str | None, options.option("--from", "TIME", FILM, "Where to begin anew: 40s, 1:12.")
]
RetrySeed = Annotated[
    str | None,
    options.option("--seed", "N", FILM, "The seed from there on.  [default: a random one]"),
]
Undo = Annotated[
    bool,
    options.option(
        "--undo",
        None,
        OUTPUT,
        "Put the newest take back; the video that is there becomes a take in turn.",
    ),
]
YesDoIt = Annotated[
    bool, options.option("-y, --yes", None, OUTPUT, "Do not ask, also without --seed.")
]


@app.command()
@options.takes(*options.SHOWN)
def retry(
    ctx: typer.Context,
    run: Parent,
    begin: From = None,
    seed: RetrySeed = None,
    prompt: NewPrompt = None,
    transition: NewTransition = None,
    undo: Undo = False,
    yes: YesDoIt = False,
) -> None:
    """Do a video over from a moment on, with another seed or prompt.

    cfgen renders the chunk that plays at that moment, and everything after it, anew. What comes
    before stays. The video that was there is kept as a take, such as a.take-1.mp4, with its own
    run folder; --undo brings it back. Without --seed, cfgen asks first.

    \b
    Examples:
      cfgen retry a.mp4 --from 0:40
      cfgen retry a.mp4 --from 0:40 --seed 12
      cfgen retry a.mp4 --undo
    """
    console = options.console_of(ctx)
    path = run_folder(run)
    from cfgen.pipeline.branch import plan_retry, take_back

    if undo:
        if begin or seed or prompt or transition:
            raise UsageError("--undo goes with no other change", "leave the other flags out")
        video, kept = take_back(path)
        output = str(video_of(run) if run.suffix == ".cfgen" else run)
        console.note(f"{video.name} is back as {output}; what was there is {kept.name}")
        console.made(output, {"output": output, "take": str(kept)})
        return
    if begin is None:
        raise UsageError("where is it to be done over from?", "give --from TIME, or --undo")
    changes = {"seed": seed, "prompt": prompt, "transition": transition}
    plan = plan_retry(path, begin=begin, changes=changes)
    if seed is None and not yes and not _asked(console, plan, begin):
        console.result("nothing was changed", {"output": str(plan.child.output)})
        return
    make_branch(console, plan, seed)


def _asked(console: Console, plan: Branch, begin: str) -> bool:
    """Whether a person agrees to have a video done over with a seed chosen at random.

    Raises:
        SetupError: Nobody can be asked.
    """
    what = f"do {plan.child.output} over from {begin} with a seed chosen at random"
    if console.json or not sys.stdin.isatty():
        raise SetupError(
            f"cfgen cannot ask whether to {what}", "give --seed, or -y to do it without asking"
        )
    return typer.confirm(f"{what}?", err=True)
