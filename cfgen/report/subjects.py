"""What a report is about: a run, the films of a batch, or all renders below a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cfgen.errors import CfgenError, UsageError
from cfgen.files.reading import read_text
from cfgen.pipeline.run_status import jobs_under
from cfgen.pipeline.variations import REPORT
from cfgen.report.films import Film, film_of
from cfgen.runs.folder import RunFolder, is_run
from cfgen.video.contact_sheet import is_sheet
from cfgen.video.formats import FORMATS
from cfgen.video.output import beside, is_film, run_of, sidecar_of, video_of

LIST_REPORT = ".report.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What a report is about.

    Attributes:
        title: Its name.
        page: Where the page goes unless something else is said.
        videos: The films, in order; some may not be there.
        rows: What a batch says of some of them, by video.
        sheet: A contact sheet of all of them, or None.
        target: What a person named.
    """

    title: str
    page: Path
    videos: Sequence[Path]
    rows: Mapping[Path, Mapping[str, object]] = field(default_factory=dict)
    sheet: Path | None = None
    target: Path | None = None

    def anew(self) -> Subject:
        """The same, as it is by now."""
        return self if self.target is None else subject_of(self.target)


def subject_of(target: Path) -> Subject:
    """What a person means: a run or its video, the list or the report of a batch, or a folder.

    Raises:
        UsageError: It is none of them, or no render is there.
    """
    return replace(_subject(target), target=target)


def _subject(target: Path) -> Subject:
    if target.suffix == ".cfgen" and is_run(target):
        video = RunFolder(target).output
        return Subject(title=beside(video, "").name, page=_page_of(video), videos=[video])
    if target.is_dir() and not is_film(target):
        return _of_folder(target)
    listed = target if target.name.endswith(LIST_REPORT) or target.name == REPORT else None
    report = target.with_name(f"{target.name}{LIST_REPORT}")
    if listed or report.is_file():
        return _of_batch(listed or report)
    if target.suffix.lower() in FORMATS and (
        sidecar_of(target).is_file() or is_run(run_of(target))
    ):
        return Subject(title=beside(target, "").name, page=_page_of(target), videos=[target])
    raise UsageError(
        f"{target} is no run, no video of cfgen, no folder, and no list that was begun",
        "`cfgen jobs list` shows what there is; `cfgen batch` begins a list",
    )


def films_of(subject: Subject, page: Path) -> list[Film]:
    """The films of a report, in order, for a page in this place.

    Raises:
        UsageError: There is none.
    """
    films, is_next = [], True
    for video in subject.videos:
        row = subject.rows.get(video, {})
        film = film_of(video, page.absolute().parent, row)
        if film.state == "waiting" and is_next:
            film, is_next = film_of(video, page.absolute().parent, {**row, "state": "next"}), False
        films.append(film)
    if not films:
        raise UsageError(f"there is no render in {subject.title}", "`cfgen jobs list` looks deeper")
    return films


def _page_of(video: Path) -> Path:
    return beside(video, ".report.html")


def _of_folder(folder: Path) -> Subject:
    """All renders below a folder, those of its batches first, in their order."""
    rows: dict[Path, Mapping[str, object]] = {}
    for report in sorted(folder.iterdir()):
        if report.name.endswith(LIST_REPORT) or report.name == REPORT:
            rows |= _rows(report)
    found = [_video_of(job.path) for job in jobs_under(folder)]
    alone = [
        path.with_name(path.name.removesuffix(".json"))
        for path in sorted(folder.glob("*.json"))
        if Path(path.stem).suffix.lower() in FORMATS
    ]
    have = {video.absolute() for video in rows}
    others = [each for each in dict.fromkeys([*found, *alone]) if each.absolute() not in have]
    sheet = folder / "sheet.jpg"
    return Subject(
        title=folder.absolute().name,
        page=folder / "report.html",
        videos=[*rows, *others],
        rows=rows,
        sheet=sheet if is_sheet(sheet) else None,
    )


def _video_of(run: Path) -> Path:
    """The video of a run folder; a damaged one is taken to be called like it."""
    try:
        return RunFolder(run).output
    except CfgenError:
        return video_of(run)


def _of_batch(report: Path) -> Subject:
    rows = _rows(report)
    if report.name == REPORT:
        title, page = report.absolute().parent.name, report.with_name("report.html")
    else:
        name = report.name.removesuffix(LIST_REPORT)
        title, page = name, report.with_name(f"{name}.report.html")
    sheet = report.with_name("sheet.jpg")
    return Subject(
        title=title,
        page=page,
        videos=list(rows),
        rows=rows,
        sheet=sheet if report.name == REPORT and is_sheet(sheet) else None,
    )


def _rows(report: Path) -> dict[Path, Mapping[str, object]]:
    """What the report of a batch says, by video.

    Raises:
        UsageError: It is no such report.
    """
    try:
        rows = [dict(row) for row in json.loads(read_text(report))["clips"]]
        return {_placed(Path(str(row["output"])), report.parent): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{report} is not the report of a batch: {error}") from None


def _placed(output: Path, folder: Path) -> Path:
    """A video that a batch named from where it ran, which may have been another folder."""
    places = [output, *(folder.joinpath(*output.parts[at:]) for at in range(len(output.parts)))]
    for place in places:
        if place.exists() or run_of(place).exists():
            return place
    return folder / output.name if output.is_absolute() else output
