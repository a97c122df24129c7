"""`cfgen branch`: another continuation of a render, as a video of its own."""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfgen.cli import options
from cfgen.cli.command import FILM, OUTPUT
from cfgen.cli.console import Console
from cfgen.cli.plan import plan_of
from cfgen.cli.progress import clock
from cfgen.cli.render import check_place
from cfgen.cli.run_render import run_render, tell_result
from cfgen.config.loader import from_mapping
from cfgen.config.schema import RenderConfig, to_mapping
from cfgen.config.values import parse_duration
from cfgen.errors import UsageError
from cfgen.pipeline.run_configs import config_of, run_folder
from cfgen.runs.folder import LOCK, RunFolder, RunRecord
from cfgen.runs.lock import Lock
from cfgen.timeline import Plan
from cfgen.units import count
from cfgen.video.output import run_of

if TYPE_CHECKING:
    from cfgen.render.branch import BranchPoint

app = options.command_app()

At = Annotated[
    str,
    typer.Option(
        "--at",
        metavar="TIME",
        help="Where the new continuation begins: 40s, 1:12.",
        rich_help_panel=FILM,
    ),
]
NewPrompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="What the video shows from there on, in quotes.  [default: the old prompt]",
        rich_help_panel=FILM,
    ),
]
NewOutput = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="The new video, an .mp4.",
        rich_help_panel=OUTPUT,
    ),
]
NewSeed = Annotated[
    str | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="The seed from there on.  [default: the old seed if anything else is new, else a "
        "random one]",
        rich_help_panel=FILM,
    ),
]
NewDuration = Annotated[
    str | None,
    typer.Option(
        "--duration",
        metavar="TIME",
        help="Playing time of the new video.  [default: that of the old one]",
        rich_help_panel=FILM,
    ),
]
Parent = Annotated[
    Path, typer.Argument(metavar="RUN", help="The run folder (NAME.cfgen) or the video it made.")
]


@app.command()
def branch(
    ctx: typer.Context,
    run: Parent,
    at: At,
    output: NewOutput,
    prompt: NewPrompt = None,
    seed: NewSeed = None,
    duration: NewDuration = None,
    overwrite: options.Yes = False,
    json_lines: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Render another continuation of a video, from a moment of it.

    The new continuation begins with the chunk that plays at that moment. All earlier frames are
    those of the old video, before encoding. The old video stays as it is. A longer --duration
    alone extends it. Without --prompt, --seed and --duration, cfgen chooses another seed.

    \b
    Examples:
      cfgen branch a.mp4 --at 1:12 --prompt "a red kite at night" -o b.mp4
      cfgen branch a.cfgen --at 40s --seed 8 -o c.mp4
      cfgen branch a.mp4 --at 2m --duration 3m -o longer.mp4
    """
    console = options.console_of(ctx)
    console.configure(json=json_lines, quiet=quiet, verbose=verbose, debug=debug)
    path = run_folder(run)
    folder = RunFolder(path)
    parent = config_of(folder)
    chosen = new_seed() if (prompt, seed, duration) == (None, None, None) else seed
    child = changed(folder, {"prompt": prompt, "seed": chosen, "duration": duration})
    if run_of(output).absolute() == path.absolute():
        raise UsageError("a branch needs an output of its own", "name another with -o")
    child = dataclasses.replace(child, output=output)
    plan = plan_of(child)
    if (child.prompt, child.seed) == (parent.prompt, parent.seed) and (
        plan.frames <= plan_of(parent).frames
    ):
        raise UsageError(
            "nothing would be different: prompt and seed are those of the old video, and the new "
            "one is not longer",
            "give another --prompt or --seed, or a longer --duration; without any of them a seed "
            "is chosen",
        )
    check_place(child, plan, overwrite=overwrite)
    chunk = chunk_of(at, plan_of(parent), plan)
    if str(child.seed) not in (seed, str(parent.seed)):
        console.note(f"seed {child.seed} (chosen at random)")
    with Lock(path / LOCK):
        _branch(console, path, child, chunk, overwrite=overwrite)
    finished = run_render(console, child, plan, resume=True)
    tell_result(console, finished, child)


def changed(folder: RunFolder, flags: dict[str, str | None]) -> RenderConfig:
    """The configuration of a run with what flags say otherwise; None says nothing.

    A seed of -1, as everywhere, means that one is chosen.

    Raises:
        PresetError: A value cannot be used.
    """
    label = str(folder.path / "run.json")
    config = from_mapping(folder.record.config, label=label, flags=flags)
    return config if config.seed is not None else dataclasses.replace(config, seed=int(new_seed()))


def prepare(console: Console, folder: RunFolder, chunk: int) -> tuple[BranchPoint, RunRecord]:
    """Load the model of a run, find out how to get to the memory before `chunk`, and tell."""
    from cfgen.checkpoint.identify.digests import read_anew
    from cfgen.pipeline.build import build_render
    from cfgen.render.branch import locate

    config = config_of(folder)
    plan = plan_of(config)
    console.note(f"loading the model to find out how to get to chunk {chunk + 1} of {folder.path}")
    read_anew()
    render = build_render(config, plan)
    folder.expect(render.record, allow_changed=())
    point = locate(folder, render.source, plan, chunk)
    starts = plan.chunk(chunk).frame_start / plan.geometry.fps
    steps = len(config.schedule.timesteps)
    lines = point.audited.lines
    chunk_s = lines[-1].elapsed_s / len(lines) if lines else 0.0
    cost_s = chunk_s * (point.replayed / (steps + 1) + len(point.recovery.recompute))
    words = (
        f"the snapshot after chunk {point.recovery.snapshot}"
        if point.recovery.snapshot
        else "the start"
    )
    work = [
        f"{count(number, 'chunk')} {what}"
        for number, what in (
            (point.replayed, "to commit again"),
            (len(point.recovery.recompute), "to denoise again"),
        )
        if number
    ]
    console.note(
        f"going on at chunk {chunk + 1}, which begins at {starts:.2f} s, from {words}"
        + (f": {', '.join(work)}, about {clock(cost_s)}" if work else "")
    )
    return point, render.record


def _branch(
    console: Console, path: Path, child: RenderConfig, chunk: int, *, overwrite: bool
) -> None:
    from cfgen.render.branch import fork

    point, record = prepare(console, RunFolder(path), chunk)
    assert child.output is not None
    record = dataclasses.replace(record, output=child.output.name, overwrite=overwrite)
    record = with_config(record, child, point)
    for _ in fork(point, run_of(child.output), record):
        pass


def with_config(record: RunRecord, config: RenderConfig, point: BranchPoint) -> RunRecord:
    """The record of a render with another configuration of the same model."""
    from cfgen.pipeline.build import read_prompt
    from cfgen.pipeline.fingerprint import prompt_digest

    prompt = prompt_digest(*read_prompt(config, point.source.generator))
    fingerprint = {**record.fingerprint, "prompt_sha256": prompt}
    return dataclasses.replace(record, config=to_mapping(config), fingerprint=fingerprint)


def new_seed() -> str:
    """A seed chosen at random."""
    return str(secrets.randbelow(2**31))


def chunk_of(at: str, parent: Plan, child: Plan) -> int:
    """The chunk that both plans have at a time; the last one at the end.

    Raises:
        UsageError: `at` is no time, or one of the videos is not that long.
    """
    try:
        seconds = parse_duration(at)
    except ValueError as error:
        raise UsageError(f"--at: {error}") from None
    for plan, what in ((parent, "old"), (child, "new")):
        if seconds > plan.seconds:
            raise UsageError(
                f"the {what} video is {plan.seconds:g} s long, and {seconds:g} s is asked for",
                "choose an earlier moment" + (", or a longer --duration" if what == "new" else ""),
            )
    return parent.chunks - 1 if seconds == parent.seconds else parent.chunk_at(seconds)
