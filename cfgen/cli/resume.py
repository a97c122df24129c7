"""`cfgen resume`: go on with a render that was interrupted."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from cfgen.cli import options
from cfgen.cli.console import Console
from cfgen.cli.plan import plan_of
from cfgen.cli.run_render import run_render, tell_result
from cfgen.config.schema import RenderConfig
from cfgen.errors import LockHeld, SnapshotError, UsageError
from cfgen.pipeline.run_configs import go_on_with, run_folder
from cfgen.render.events import Finished
from cfgen.runs.folder import LOCK, RunFolder, is_run, require_harmless
from cfgen.runs.journal import VideoLine
from cfgen.runs.lock import owner_of
from cfgen.video.output import resume_command, sidecar_of

app = options.command_app()

Run = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="The run folder (NAME.cfgen) or the video it makes. Without it, the one interrupted "
        "render of this folder.",
        show_default=False,
    ),
]


@app.command()
def resume(
    ctx: typer.Context,
    run: Run = None,
    allow_changed: options.AllowChanged = None,
    json_lines: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Go on with an interrupted render.

    cfgen first verifies what is on the disk and makes again what is damaged. The finished film is
    the one that an uninterrupted render makes. A render that is finished already is only verified.

    \b
    Examples:
      cfgen resume
      cfgen resume balloon.cfgen
      cfgen resume balloon.mp4
    """
    console = options.console_of(ctx)
    console.configure(json=json_lines, quiet=quiet, verbose=verbose, debug=debug)
    path = _the_one_here() if run is None else run_folder(run)
    go_on(console, path, allow_changed=frozenset(allow_changed or ()))


def go_on(
    console: Console,
    path: Path,
    *,
    asked: RenderConfig | None = None,
    allow_changed: frozenset[str] = frozenset(),
) -> None:
    """Go on with the render in a run folder and show the video.

    Args:
        console: Where to show it.
        path: The run folder.
        asked: What the command line asks for, if it may differ from what the run is.
        allow_changed: Names in the fingerprint that may differ.

    Raises:
        SnapshotMismatch: `asked` is another render; tells every difference.
        CfgenError: It cannot go on.
    """
    require_harmless(allow_changed)
    folder = RunFolder(path)
    config = go_on_with(folder, asked)
    owner = owner_of(path / LOCK)
    if owner is not None and owner.here:
        raise LockHeld(f"{path} is in use by {owner}", "wait until it is done, or stop it")
    console.note(f"{path} renders {config.prompt!r}, seed {config.seed}")
    plan, video = plan_of(config), folder.finished
    if video is not None:
        console.note(f"{folder.output} is finished, and whole: {video.frames} frames")
        finished = Finished(
            output=folder.output,
            frames=video.frames,
            seconds=plan.seconds,
            elapsed_s=0.0,
            sidecar=sidecar_of(folder.output),
        )
    else:
        finished = run_render(console, config, plan, resume=True, allow_changed=allow_changed)
    tell_result(console, finished, config)


def _the_one_here() -> Path:
    interrupted = []
    for path in sorted(path for path in Path().iterdir() if is_run(path)):
        if owner_of(path / LOCK) is None:
            with contextlib.suppress(SnapshotError):
                folder = RunFolder(path)
                if folder.journal.of(VideoLine) and folder.output.exists():
                    continue
            interrupted.append(path)
    if len(interrupted) == 1:
        return interrupted[0]
    if not interrupted:
        raise UsageError("no render was interrupted in this folder", "name the run to resume")
    listed = "".join(f"\n  {resume_command(path)}" for path in interrupted)
    raise UsageError(f"{len(interrupted)} renders were interrupted in this folder:{listed}")
