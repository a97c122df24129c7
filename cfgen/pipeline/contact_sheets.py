"""Contact sheets of finished renders: beside each film, and one of several films to choose from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from cfgen.errors import CfgenError
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.preflight import encoding_of
from cfgen.renderer.events import Event, Finished, Warned
from cfgen.video.contact_sheet import (
    Shown,
    sheet_of,
    sheet_text,
    write_comparison_sheet,
    write_film_sheet,
)
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.output import is_film, recorded_digest


def with_sheet(job: RenderJob, finished: Finished) -> Iterator[Event]:
    """The end of a render, after its contact sheet is written; a warning first where it cannot be.

    A sheet that shows the very film already stays as it is.

    Args:
        job: The render.
        finished: What it ended with.
    """
    if not job.config.contact_sheet or not is_film(finished.output):
        yield finished
        return
    sheet, digest = sheet_of(finished.output), recorded_digest(finished.output) or ""
    try:
        if sheet_text(sheet) != f"{finished.output.name} {digest}":
            film = _shown(job, finished.output)
            write_film_sheet(find_ffmpeg(), film, sheet, sha256=digest)
    except CfgenError as error:
        yield Warned(message=f"there is no contact sheet: {error}", hint=error.hint)
        yield finished
    else:
        yield dataclasses.replace(finished, sheet=sheet)


def compare(jobs: Sequence[tuple[RenderJob, str]], sheet: Path) -> None:
    """Write one contact sheet of several films, a row each.

    Args:
        jobs: Their renders, finished, each with what stands over its row.
        sheet: The picture.

    Raises:
        CfgenError: A film cannot be read, or the sheet not written.
    """
    films = [_shown(job, job.output, label=label) for job, label in jobs]
    write_comparison_sheet(find_ffmpeg(), films, sheet)


def _shown(job: RenderJob, path: Path, *, label: str = "") -> Shown:
    shape, encoding = job.plan.geometry, encoding_of(job)
    return Shown(
        path=path.absolute(),
        frames=encoding.frames_of(job.plan.frames),
        fps=encoding.rate,
        width=shape.width,
        height=shape.height,
        label=label,
    )
