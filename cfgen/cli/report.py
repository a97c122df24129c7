"""`cfgen report`: one page that shows films, how they were made and how they go on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen.cli import options
from cfgen.units import bytes_words, count

app = options.command_app()

Target = Annotated[
    Path,
    typer.Argument(
        metavar="TARGET",
        help="A run folder or its video, the list of a batch, or a folder with renders in it.",
    ),
]
Page = Annotated[
    Path | None,
    options.option(
        "-o, --output",
        "FILE",
        options.OUTPUT,
        "The page.  [default: report.html in the folder, NAME.report.html beside a film or list]",
    ),
]
Watch = Annotated[
    bool,
    typer.Option(
        "--watch",
        help="Write the page again whenever a film gets further, until all are finished or failed.",
    ),
]


@app.command()
@options.takes(options.Yes, *options.SHOWN)
def report(
    ctx: typer.Context,
    target: Target = Path(),
    output: Page = None,
    watch: Watch = False,
    *,
    yes: bool,
) -> None:
    """Write a page that shows films and how they were made.

    The page is one HTML file that any browser opens from the disk, without a network. It plays the
    films, and shows their contact sheets, prompts, seeds, timings, the settings that differ, and
    the figures and curves of `cfgen score`. For each film it has the command that renders it
    again, goes on with it, or branches off at a moment that you pick. The films are linked, not
    copied: move the page with them.

    \b
    Examples:
      cfgen report kite.mp4
      cfgen report tonight.yaml --watch
      cfgen report films/
    """
    console = options.console_of(ctx)
    from cfgen.report.page import keep_current, write_report
    from cfgen.report.subjects import subject_of

    subject = subject_of(target)
    page = output or subject.page
    if watch:
        for written in keep_current(subject, page, overwrite=yes):
            console.note(f"{page}: {written.films - written.open} of {written.films} films settled")
    else:
        written = write_report(subject, page, overwrite=yes)
    console.note(f"{count(written.films, 'film')}, {bytes_words(written.nbytes)}")
    data = {"page": str(page.absolute()), "films": written.films, "open": written.open}
    console.result(str(page), {**data, "nbytes": written.nbytes})
