"""`cfgen resume`: go on with a render that was interrupted."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from cfgen.cli import options
from cfgen.cli.run_render import run_render
from cfgen.errors import SnapshotError, UsageError
from cfgen.pipeline.runs import run_folder
from cfgen.runs.contents import LOCK
from cfgen.runs.folder import RunFolder, is_run
from cfgen.runs.journal import VideoLine
from cfgen.runs.lock import owner_of
from cfgen.video.output import resume_command

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
@options.takes(options.Parallel, options.AllowChanged, *options.SHOWN)
def resume(
    ctx: typer.Context,
    run: Run = None,
    *,
    parallel: str | None,
    allow_changed: list[str] | None,
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
    from cfgen.pipeline import decoding

    path = _the_one_here() if run is None else run_folder(run)
    allowed = frozenset(allow_changed or ())
    run_render(console, decoding.resume(path, parallel=parallel, allow_changed=allowed))


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
