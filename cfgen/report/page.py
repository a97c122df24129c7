"""The page itself: one HTML file without network or framework, made from `page.html`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cfgen.errors import OutputRefused
from cfgen.files.reading import read_bytes
from cfgen.files.writing import disk_errors, write_file
from cfgen.report.curves import HEIGHT, WIDTH, Curve, curve_of, curves_of
from cfgen.report.films import OPEN, Film, differing_settings
from cfgen.report.subjects import Subject, films_of
from cfgen.units import clock, count
from cfgen.video.contact_sheet import is_sheet

GENERATOR = "cfgen report"
REFRESH_S = 10
"""Seconds between two looks of a page that is kept current."""
WATCH_S = 3.0
"""Seconds between two looks at the renders."""
_MANY = 24
"""Films from which on a page leaves the first frames of films to the contact sheets."""
_HEAD_NBYTES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A page that was written.

    Attributes:
        page: The file.
        films: Films on it.
        open: Films that are still to be finished.
        nbytes: Size of the file.
    """

    page: Path
    films: int
    open: int
    nbytes: int


def write_report(
    subject: Subject, page: Path, *, overwrite: bool = False, refresh: bool = False
) -> Written:
    """Write the page of a report; an earlier report in its place is replaced.

    Args:
        subject: What it is about.
        page: The file.
        overwrite: Whether any other file may be replaced too.
        refresh: Whether the page loads itself anew while films are to be finished.

    Raises:
        UsageError: There is no film.
        OutputRefused: Something else has its place.
        BudgetError, WriterError: The disk refused.
    """
    if page.is_dir() or (page.exists() and not overwrite and not _is_report(page)):
        raise OutputRefused(
            f"{page} is not a report of cfgen, and is not replaced",
            "choose another file with -o, or overwrite it with -y",
        )
    films = films_of(subject, page)
    text = page_text(subject, films, page, refresh=refresh)
    with disk_errors(page):
        write_file(page, text.encode(errors="backslashreplace"), shared=True)
    left = sum(film.state in OPEN for film in films)
    return Written(page=page, films=len(films), open=left, nbytes=page.stat().st_size)


def keep_current(subject: Subject, page: Path, *, overwrite: bool = False) -> Iterator[Written]:
    """Write the page whenever a film got further, until none is being rendered or waits for it.

    Raises: as `write_report`.
    """
    seen: list[tuple[str, int]] = []
    while True:
        now = [(film.state, film.chunks_done) for film in films_of(subject, page)]
        busy = any(state in ("running", "next", "waiting") for state, _ in now)
        if now != seen:
            seen = now
            yield write_report(subject, page, overwrite=overwrite, refresh=busy)
        if not busy:
            return
        time.sleep(WATCH_S)
        subject = subject.anew()


def page_text(subject: Subject, films: Sequence[Film], page: Path, *, refresh: bool = False) -> str:
    """The HTML of a report.

    Args:
        subject: What it is about.
        films: Its films.
        page: Where the page will be.
        refresh: As for `write_report`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clock=clock, slug=_anchor, ticked=_ticked)
    states = dict.fromkeys(film.state for film in films)
    unfinished = any(film.state in OPEN for film in films)
    sheet = subject.sheet
    return environment.get_template("page.html").render(
        generator=GENERATOR,
        title=subject.title,
        films=[(film, _curves(film)) for film in films],
        tally=[(state, sum(film.state == state for film in films)) for state in states],
        count=count,
        seconds=sum(film.seconds for film in films if film.state == "done"),
        elapsed_s=sum(film.elapsed_s for film in films),
        settled=sum(film.state not in OPEN for film in films),
        differing=differing_settings(films),
        sheet=sheet.name if sheet is not None and is_sheet(sheet) else "",
        refresh_s=REFRESH_S if refresh and unfinished else 0,
        unfinished=unfinished,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        preload="none" if len(films) > _MANY else "metadata",
        box=(WIDTH, HEIGHT),
    )


def _curves(film: Film) -> list[Curve]:
    """What is drawn over the time of a film: its score, or else how long its chunks took."""
    if film.score is not None:
        return curves_of(film.score, film.seconds)
    ends = [*film.starts_s[1:], film.seconds]
    middles = [(a + b) / 2 for a, b in zip(film.starts_s, ends, strict=False)]
    made = curve_of("seconds per chunk", middles, film.chunk_costs_s, film.seconds, from_zero=True)
    return [made] if made else []


def _anchor(text: str) -> str:
    """A name as the target of a link within the page."""
    return re.sub(r"[^\w-]+", "-", text)


def _ticked(text: str) -> str:
    """Text with what stands between backticks as code."""
    import markupsafe

    parts = [str(markupsafe.escape(part)) for part in text.split("`")]
    pairs = [f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)]
    return markupsafe.Markup("".join(pairs)) if len(parts) % 2 else markupsafe.Markup.escape(text)


def _is_report(page: Path) -> bool:
    """Whether a file is a report that cfgen wrote."""
    try:
        head = read_bytes(page)[:_HEAD_NBYTES]
    except (OSError, ValueError):
        return False
    return f'<meta name="generator" content="{GENERATOR}">'.encode() in head
