"""`cfgen batch`: a list of clips, left alone overnight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cfgen.cli import options
from cfgen.cli.cluster_view import ClusterView
from cfgen.cli.command import RESUME, SPEED
from cfgen.cli.console import Console
from cfgen.cli.run_render import graceful_signals
from cfgen.errors import CfgenError, Interrupted
from cfgen.plain_text import cells, padded
from cfgen.renderer.batch import BatchEvent, ClipBegun, ClipEnded, OfClip, Waiting
from cfgen.units import clock

if TYPE_CHECKING:
    from cfgen.pipeline.batch import BatchRunner
    from cfgen.pipeline.batch_on_ray import RayBatch

app = options.command_app()

AGAIN = "the same command goes on with the list"

List = Annotated[
    Path,
    typer.Argument(
        metavar="LIST",
        help="A YAML list, a text with one prompt per line, JSON or CSV; - reads it from stdin.",
        allow_dash=True,
    ),
]
FailFast = Annotated[
    bool, options.option("--fail-fast", None, RESUME, "Stop at the first clip that fails.")
]
Attempts = Annotated[
    int,
    options.option(
        "--attempts",
        "N",
        RESUME,
        "How often cfgen tries a clip that gets no further; a crash counts as a try.",
        min=1,
    ),
]
RetryFailed = Annotated[
    bool,
    options.option(
        "--retry-failed", None, RESUME, "Try clips again that failed in an earlier run."
    ),
]
Ray = Annotated[
    str | None,
    options.option(
        "--ray",
        "[ADDRESS]",
        SPEED,
        "Spread the clips over a Ray cluster, with `pip install cfgen[ray]`: that at host:port, "
        "without an address the one this machine belongs to, else a new one on it.",
    ),
]


@app.command()
@options.takes(options.Yes, options.DryRun, *options.SHOWN)
def batch(
    ctx: typer.Context,
    clips: List,
    fail_fast: FailFast = False,
    attempts: Attempts = 2,
    retry_failed: RetryFailed = False,
    ray: Ray = None,
    *,
    yes: bool,
    dry_run: bool,
) -> None:
    """Render a list of clips.

    The videos go beside the list. After any interruption, the same command goes on: it verifies
    and skips finished clips, resumes interrupted ones, and leaves failed ones alone unless you give
    --retry-failed. Any number of processes may work on one list, on one machine or on several that
    share the folder. With --ray, one command does: a Ray cluster makes a clip wherever it has room.

    \b
    A list:
      version: 1
      defaults: {duration: 20s, seed: 7}
      clips:
        - a red balloon drifts over snowy hills
        - {name: kite, prompt: a yellow kite bobs by day, seed: 12, duration: 1m}

    \b
    Examples:
      cfgen batch tonight.yaml
      cfgen batch prompts.txt --dry-run
      cfgen batch tonight.yaml --ray 10.0.0.1:6379
    """
    console = options.console_of(ctx)
    from cfgen.pipeline.batch import BatchRunner, ClipList

    listed = ClipList.read(clips)
    runner = BatchRunner(listed, overwrite=yes, attempts=attempts, fail_fast=fail_fast)
    if dry_run:
        show_batch_plan(console, runner)
        return
    if retry_failed:
        runner.batch.reset_failed()
    if ray is None:
        run_batch(console, runner)
        return
    from cfgen.pipeline.batch_on_ray import RayBatch

    run_batch(console, runner, on=RayBatch(runner, ray))


def run_batch(
    console: Console,
    runner: BatchRunner,
    closing: Callable[[Mapping[str, object]], Sequence[str]] = lambda _: (),
    *,
    on: RayBatch | None = None,
) -> None:
    """Render the clips of a list, and show its events and what became of each.

    Args:
        console: Where to.
        runner: The list.
        closing: Gives lines to show after the report that it is given.
        on: The list on a cluster, which then does the work.

    Raises:
        CfgenError: It was stopped, or the disk refused.
        Exit: With 1, if a clip failed.
    """
    listed, work = runner.listed, on or runner
    runner.report()
    view = None if on is None else _view(console, runner)
    try:
        with graceful_signals(console, work.stop, again=AGAIN):
            for event in work:
                _show(console, runner, event, view)
                if isinstance(event, ClipBegun | ClipEnded):
                    runner.report()  # who looks at it meanwhile sees how far the list is
    except CfgenError as error:
        for line in _summary(runner.report(), listed.report):
            console.note(line)
        if isinstance(error, Interrupted):
            error.hint = AGAIN
        raise
    facts = runner.report()
    all_done = facts["done"] == len(listed.clips)
    lines = [*_summary(facts, listed.report), *closing(facts)]
    console.result("\n".join(lines), facts, ok=all_done)
    if not all_done:
        raise typer.Exit(1)


def _view(console: Console, runner: BatchRunner) -> ClusterView:
    """What shows the clips of a list that are made at once."""
    plans = {item.name: runner.plan(item) for item in runner.batch.items}
    return ClusterView(
        console,
        frames={name: 0 if plan is None else plan.frames for name, plan in plans.items()},
        made={item.name: runner.made_frames(item) for item in runner.batch.items},
        fps={name: config.playback_fps for name, config in runner.configs.items()},
    )


def _show(
    console: Console, runner: BatchRunner, event: BatchEvent, view: ClusterView | None
) -> None:
    """Show one event of the batch, on a view where several clips are made at once."""
    match event:
        case ClipBegun(item=item, attempt=attempt, host=host):
            again = f", attempt {attempt}" if attempt > 1 else ""
            again += f", on {host}" if host else ""
            items, config = runner.batch.items, runner.configs[item.name]
            console.note(
                f"clip {items.index(item) + 1} of {len(items)}: {item.name}, seed {config.seed}"
                f"{again}"
            )
            if note := next(clip.note for clip in runner.listed.clips if clip.name == item.name):
                console.note(note)
            facts = {"name": item.name, "attempt": attempt, "seed": config.seed}
            console.event("clip", facts | ({"host": host} if host else {}))
            if view is None:
                console.start(fps=config.playback_fps, later_frames=runner.later_frames(item))
        case ClipEnded(item=item, fate=fate, again=again):
            console.close()
            if view is not None:
                view.end(item.name, done=fate.state == "done")
            if fate.state != "done":
                later = "; it will be tried again" if again else ""
                console.warn(f"{item.name} failed: {fate.error}{later}", fate.hint or None)
            console.event("clip-end", {"name": item.name, **dataclasses.asdict(fate)})
        case Waiting(names=names):
            console.note(f"waiting for other processes: {', '.join(names)}")
        case OfClip(item=item, event=inner):
            cast(ClusterView, view).show(item.name, inner)
        case _:
            console.show(event)


def show_batch_plan(console: Console, runner: BatchRunner) -> None:
    """Show what is to be made, what is done, and what stands in the way.

    Raises:
        Exit: With 1, if something does.
    """
    from cfgen.pipeline.job import RenderJob
    from cfgen.pipeline.preflight import warnings_of

    clips = runner.listed.clips
    lines, listed, seconds = [], [], 0.0
    width = max(cells(clip.name) for clip in clips)
    digits = max(len(str(clip.config.seed)) for clip in clips)
    for clip, item in zip(clips, runner.batch.items, strict=True):
        plan, fate = RenderJob(clip.config).plan, runner.batch.fate(item)
        state = fate.state
        open_ = state in ("waiting", "started")
        obstacle = runner.obstacle(item) if open_ else fate.error
        facts: dict[str, object] = {"name": clip.name, "seed": clip.config.seed}
        facts |= {"frames": plan.frames, "output": str(item.output)}
        facts |= {
            "state": state,
            "obstacle": (obstacle or None) if open_ else obstacle,
            "warnings": [],
        }
        listed.append(facts)
        made = runner.progress(item) if state != "done" else plan.chunks
        lines.append(
            f"{padded(clip.name, width)}  seed {clip.config.seed:<{digits}} "
            f"{clock(plan.seconds):>8}  "
            f"{made:5} of {plan.chunks} chunks  {item.output}"
        )
        if obstacle:
            lines.append(f"  {'failed' if state == 'failed' else 'will fail'}: {_line(obstacle)}")
        elif open_:
            told = [warning.message for warning in warnings_of(clip.config)]
            facts["warnings"] = told
            lines += [f"  warning: {message}" for message in told]
        if clip.note:
            lines.append(f"  {clip.where}: {clip.note}")
        seconds += plan.seconds
    ok = not any(facts["obstacle"] for facts in listed)
    lines.append(f"{len(clips)} clips, {clock(seconds)} of video")
    console.result("\n".join(lines), {"clips": listed, "seconds": seconds}, ok=ok)
    if not ok:
        raise typer.Exit(1)


def _summary(report: Mapping[str, object], file: Path) -> list[str]:
    """A report in lines, one a clip."""
    rows = cast("list[dict[str, object]]", report["clips"])
    width = max(cells(str(row["name"])) for row in rows)
    lines = []
    for row in rows:
        state = str(row["state"])
        made = f"{row['chunks']} chunks are made" if row["chunks"] else "not begun"
        detail = row["output"] if state == "done" else _line(str(row["error"])) or made
        lines.append(f"{state:8} {padded(str(row['name']), width)}  {detail}")
    failed = sum(row["state"] == "failed" for row in rows)
    again = "; --retry-failed tries the failed ones again" if failed else ""
    lines.append(f"{report['done']} of {len(rows)} clips done; the report is {file}{again}")
    return lines


def _line(text: str) -> str:
    """The first of several lines; nothing of none."""
    first, *more = text.splitlines() or [""]
    return f"{first} ..." if more else first
