"""`cfgen jobs`: the renders under a folder, read from their run folders alone."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfgen.cli import options
from cfgen.cli.columns import cut
from cfgen.cli.console import Console
from cfgen.config.values import parse_bytes
from cfgen.errors import CfgenError, OutputRefused, SetupError, UsageError
from cfgen.files.reading import nbytes_under
from cfgen.files.writing import disk_errors
from cfgen.pipeline.runs import run_folder
from cfgen.plain_text import aligned, cells
from cfgen.runs.contents import LOCK, remove, require_own
from cfgen.runs.folder import RunFolder, is_run
from cfgen.runs.lock import Lock
from cfgen.units import bytes_words, clock
from cfgen.video.output import resume_command

if TYPE_CHECKING:
    from cfgen.pipeline.run_status import Job

app = options.command_app("List, show and clear away renders.")

_COLUMNS = 43
"""Width of the columns of `jobs list` that are not the run or its prompt."""

Root = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Where to look, including all folders below it.")
]
Budget = Annotated[
    str,
    typer.Option(
        "--budget", metavar="BYTES", help="Disk for all run folders together: 500MB, 2GB."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")
]


@app.command("list")
@options.takes(options.Json, options.Debug)
def list_jobs(
    ctx: typer.Context,
    folder: Root = Path(),
) -> None:
    """List the renders under a folder: how far they are and what they take."""
    from cfgen.pipeline.run_status import jobs_under

    console = options.console_of(ctx)
    jobs = list(jobs_under(folder))
    rows: list[tuple[str, ...]] = [("state", "done", "of", "disk", "run", "prompt")]
    widest = max((cells(str(job.path)) for job in jobs), default=0)
    width = max(12, shutil.get_terminal_size().columns - _COLUMNS - widest)
    for job in jobs:
        prompt = cut(job.prompt, width)
        times = (clock(job.done_s), clock(job.total_s))
        rows.append((job.state, *times, bytes_words(job.nbytes), str(job.path), prompt))
    text = "\n".join(aligned(rows)) if jobs else f"no renders under {folder}"
    console.result(text, {"jobs": [job.data() for job in jobs]})


@app.command()
@options.takes(options.Json, options.Debug)
def show(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder or its video.")],
) -> None:
    """Show all that is known of a render."""
    from cfgen.pipeline.run_status import job_of

    console = options.console_of(ctx)
    path = run_folder(run)
    job, record = job_of(path), RunFolder(path).record
    shots = record.config.get("shots")
    lines = [
        f"run       {job.path}",
        f"state     {job.state}{f' ({job.detail})' if job.detail else ''}",
        f"video     {RunFolder(path).output}",
        f"prompt    {job.prompt}",
        *(f"shot      {text}" for text in (shots if isinstance(shots, list) else [])),
        f"seed      {job.seed}",
        f"done      chunk {job.chunks_done} of {job.chunks}, "
        f"{clock(job.done_s)} of {clock(job.total_s)}, in {clock(job.elapsed_s)}",
        f"disk      {bytes_words(job.nbytes)}",
        f"began     {record.created}",
        *(f"take      {name}" for name in job.takes),
        *(
            f"part      up to frame {part['until_frame']}: seed {part['seed']}"
            f"{f', {words}' if (words := part.get('prompt')) else ''}"
            for part in record.parts
        ),
        *(f"{name:26}{value}" for name, value in sorted(record.fingerprint.items())),
    ]
    console.result("\n".join(lines), {**job.data(), "fingerprint": dict(record.fingerprint)})


@app.command()
@options.takes(options.Json, options.Debug)
def gc(
    ctx: typer.Context,
    budget: Budget,
    folder: Root = Path(),
    dry_run: DryRun = False,
) -> None:
    """Remove what finished renders keep, the oldest first, until it fits a budget.

    cfgen first removes their snapshots, which only speed up `cfgen branch`, then their run folders
    with latents and journal. Videos stay, and everything of unfinished renders stays. A render
    without its run folder can no longer be branched or retried. A branch keeps its snapshots until
    its whole run folder goes.
    """
    from cfgen.pipeline.run_status import jobs_under

    console = options.console_of(ctx)
    try:
        allowed = parse_bytes(budget)
    except ValueError as error:
        raise UsageError(f"--budget: {error}") from None
    jobs = list(jobs_under(folder))
    before = total = sum(job.nbytes for job in jobs)
    removed: list[tuple[Path, int]] = []
    kept = False
    for target in _targets(jobs):
        if total <= allowed:
            break
        # In a dry run, what went before is still there.
        nbytes = nbytes_under(target) - sum(
            n for path, n in removed if dry_run and path.parent == target
        )
        if _clear_away(target, console, dry_run=dry_run):
            total -= nbytes
            removed.append((target, nbytes))
        else:
            kept = True
    verb = "would remove" if dry_run else "removed"
    text = [f"{verb} {target} ({bytes_words(nbytes)})" for target, nbytes in removed]
    text.append(f"{bytes_words(before)} before, {bytes_words(total)} after")
    if total > allowed:
        why = "what is left belongs to unfinished renders"
        if kept:
            why = "some of it stays for the reasons above, the rest belongs to unfinished renders"
        text.append(f"more than {bytes_words(allowed)}: {why}")
    listed = [{"path": str(target), "nbytes": nbytes} for target, nbytes in removed]
    data = {"removed": listed, "nbytes_before": before, "nbytes": total, "dry_run": dry_run}
    console.result("\n".join(text), data)


@app.command()
@options.takes(options.Json, options.Debug)
def keep(
    ctx: typer.Context,
    numbers: Annotated[
        list[int],
        typer.Argument(metavar="NUMBER", help="Which to keep, as on the contact sheet."),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--in",
            metavar="FOLDER",
            help="The folder that `cfgen render --seeds` made. Without it, the only one here.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Remove the others unasked.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Keep some of the films that `cfgen render --seeds` made, and remove the others.

    The others go with their run folders, sidecars and contact sheets. Nothing is removed if one of
    them is being rendered, or is not as cfgen wrote it, or if one to keep is not finished.
    """
    from cfgen.pipeline.variations import choose

    console = options.console_of(ctx)
    choice = choose(folder or _variations_here(), numbers)
    gone = [str(video) for video in choice.removed]
    if not dry_run and gone and not yes and not _agreed(console, gone):
        console.result("nothing was removed", {"removed": [], "dry_run": False})
        return
    if not dry_run:
        choice.carry_out()
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {name}" for name in gone] + [f"kept {video}" for video in choice.kept]
    data = {"removed": gone, "kept": [str(each) for each in choice.kept], "dry_run": dry_run}
    console.result("\n".join(lines), data)


def _variations_here() -> Path:
    """The only folder of variations in this folder, or this one.

    Raises:
        UsageError: There are none, or several.
    """
    from cfgen.pipeline.variations import REPORT

    found = [Path(), *sorted(path for path in Path().iterdir() if path.is_dir())]
    found = [path for path in found if (path / REPORT).is_file()]
    if not found:
        raise UsageError("there are no variations in this folder", "name their folder with --in")
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise UsageError(f"there are several folders of variations: {listed}", "choose with --in")
    return found[0]


def _agreed(console: Console, gone: list[str]) -> bool:
    """Whether a person agrees that these go.

    Raises:
        SetupError: Nobody can be asked.
    """
    what = f"remove {', '.join(gone)}"
    if console.json or not sys.stdin.isatty():
        raise SetupError(f"cfgen cannot ask whether to {what}", "give -y to do it without asking")
    return typer.confirm(f"{what}?", err=True)


def _targets(jobs: list[Job]) -> Iterator[Path]:
    """What may go, in the order in which it should."""
    finished = sorted((job for job in jobs if job.state == "finished"), key=lambda job: job.changed)
    for job in finished:
        if not job.base:  # what branched off can only go on from its first snapshot
            yield from sorted(job.path.glob("snapshots*"))
    yield from (job.path for job in finished)


def _clear_away(target: Path, console: Console, *, dry_run: bool) -> bool:
    """Remove a run folder or its snapshots; tell why if it stays.

    Returns:
        Whether it is, or would be, removed.
    """
    run = target if is_run(target) else target.parent
    try:
        with disk_errors(target):
            if target == run:
                require_own(run)
            if dry_run:
                return True
            with Lock(run / LOCK):
                if RunFolder(run).finished is None:
                    raise OutputRefused(
                        "its video is no longer whole", f"`{resume_command(run)}` mends it"
                    )
                if target == run:
                    remove(run)
                else:
                    shutil.rmtree(target)
    except CfgenError as error:
        console.warn(f"{target} stays: {error}", error.hint)
        return False
    return True
