"""`cfgen render`: one prompt, one video."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import typer

from cfgen.cli import options
from cfgen.cli.batch import run_batch, show_batch_plan
from cfgen.cli.console import Console
from cfgen.cli.plan import show_plan
from cfgen.cli.run_render import run_render
from cfgen.config.loader import Resolved
from cfgen.config.schema import RenderConfig
from cfgen.errors import CfgenError, UsageError
from cfgen.files.reading import read_stream
from cfgen.parallel.launch import launched
from cfgen.pipeline.naming import completed
from cfgen.runs.folder import is_run
from cfgen.video.output import pasted, run_of

if TYPE_CHECKING:
    from cfgen.pipeline.job import RenderJob

app = options.command_app()


@app.command()
@options.takes(*options.RENDERED, *options.SHOWN)
def render(
    ctx: typer.Context,
    prompt: options.Prompt = None,
    *,
    yes: bool,
    resume: bool,
    allow_changed: list[str] | None,
    dry_run: bool,
    seeds: str | None,
) -> None:
    """Render a video from a prompt.

    The path of the video goes to stdout, progress to stderr. A .json file beside the video tells
    how it was made. The same command with the same seed makes the same frames again.

    \b
    Examples:
      cfgen render "a red balloon drifts over snowy hills" --duration 30s -o a.mp4
      echo "a blue boat on a calm sea" | cfgen render - --seed 7
      cfgen render "a kite at dusk" --image kite.png -o from-picture.mp4
      cfgen render "a kite at dusk" --video a.mp4 --to 0:15 --keep-input -o b.mp4
      cfgen render "a kite over green hills" --duration 10m --dry-run
      cfgen render "a kite over green hills" --seeds 4 -o kite.mp4
    """
    console = options.console_of(ctx)
    resolved = options.resolved_of(ctx, prompt=_prompt_text(prompt))
    if seeds is not None:
        if resume or allow_changed:
            raise UsageError("--seeds goes on by itself", "leave --resume and --allow-changed out")
        _render_seeds(console, resolved.config, seeds, overwrite=yes, dry_run=dry_run)
        return
    config = completed(resolved.config)
    if allow_changed and not resume:
        raise UsageError("--allow-changed goes with --resume", "add --resume, or leave it out")
    if resume and resolved.config.output is None and resolved.config.seed is None:
        raise UsageError(
            "--resume must know which render is meant",
            "name its video with -o, or give its --seed; `cfgen resume` finds the one in a folder",
        )
    from cfgen.pipeline import rendering
    from cfgen.pipeline.job import RenderJob
    from cfgen.pipeline.parallel import Peers

    job = RenderJob(Peers(launched()).joined(config))
    begun = resume and is_run(run_of(job.output))
    if begun and not dry_run:
        allowed = frozenset(allow_changed or ())
        path = run_of(job.output)
        run_render(console, rendering.go_on(path, asked=resolved.config, allow_changed=allowed))
        return
    if begun:
        _tell_values(console, resolved, config)
    else:
        new = rendering.begin(job, overwrite=yes)
        _tell_values(console, resolved, config)
        if not dry_run:
            run_render(console, new)
            return
    _dry_run(console, job)


def _render_seeds(
    console: Console, config: RenderConfig, seeds: str, *, overwrite: bool, dry_run: bool
) -> None:
    """Render one prompt with several seeds, and the contact sheet to choose from."""
    from cfgen.pipeline.batch import BatchRunner
    from cfgen.pipeline.variations import parse_seeds, variations, write_sheet

    listed = variations(config, parse_seeds(seeds, config.seed))
    runner = BatchRunner(listed, overwrite=overwrite)
    if dry_run:
        show_batch_plan(console, runner)
        return

    def closing(report: Mapping[str, object]) -> list[str]:
        rows = cast("list[dict[str, object]]", report["clips"])
        done = {str(row["name"]) for row in rows if row["state"] == "done"}
        if not done:
            return []
        try:
            sheet = write_sheet(listed, done)
        except CfgenError as error:
            console.warn(f"there is no sheet to choose from: {error}", error.hint)
            return []
        folder = pasted(str(listed.report.parent))
        return [
            f"choose from {sheet}",
            f"`cfgen jobs keep N --in {folder}` keeps number N and removes the others",
        ]

    run_batch(console, runner, closing)


def _dry_run(console: Console, job: RenderJob) -> None:
    """Look at everything that the render needs, and show its plan."""
    from cfgen.pipeline.memory_estimate import check
    from cfgen.pipeline.preflight import warnings_of

    check(job)
    for warning in warnings_of(job.config):
        console.show(warning)
    show_plan(console, job)


def _prompt_text(prompt: str | None) -> str | None:
    """Read the prompt from stdin if it is ``-``, and lay it out on one line."""
    if prompt is None:
        return None
    text = read_stream(sys.stdin) if prompt == "-" else prompt
    return " ".join(text.split())


def _tell_values(console: Console, resolved: Resolved, config: RenderConfig) -> None:
    console.note(f"preset {config.preset}, {resolved.origins['preset']}")
    if resolved.config.seed is None:
        console.note(f"seed {config.seed} (chosen at random; --seed {config.seed} repeats it)")
    for key, value, origin in resolved.rows():
        console.detail(f"{key} = {value}  ({origin})")
