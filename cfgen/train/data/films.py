"""Films of a folder and their captions: beside each film, or in one table."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from cfgen.errors import UsageError
from cfgen.files.reading import read_text

ENDINGS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
"""What films are called."""

TABLE = "captions.csv"
"""The table of captions, if the folder has one: columns `file`, relative to the folder, and
`caption`; others are passed over. Films that it does not name are left out."""


@dataclass(frozen=True, slots=True)
class FilmFile:
    """A film with what is to be seen in it."""

    path: Path
    caption: str


def find_films(folder: Path) -> list[FilmFile]:
    """The films of a folder and of the folders in it, in the order of their names.

    Raises:
        UsageError: there is none, or one has no caption, or the table names one that is not there.
    """
    table = folder / TABLE
    try:
        films = _of_table(table) if table.is_file() else _of_folder(folder)
    except OSError as error:
        raise UsageError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    if not films:
        known = ", ".join(sorted(ending[1:] for ending in ENDINGS))
        raise UsageError(f"there is no film in {folder}", f"put films into it ({known})")
    return sorted(films, key=lambda film: film.path)


def _of_folder(folder: Path) -> list[FilmFile]:
    """Every film, with the caption in the text file of its name."""
    films = []
    for path in folder.rglob("*"):
        if path.suffix.lower() not in ENDINGS or not path.is_file():
            continue
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise UsageError(
                f"{path} has no caption",
                f"write it to {text.name} beside it, or one for each film to {folder / TABLE}",
            )
        films.append(FilmFile(path, _caption(_text(text), text)))
    return films


def _of_table(table: Path) -> list[FilmFile]:
    """The films that a table names."""
    rows = csv.DictReader(io.StringIO(_text(table)))
    if not {"file", "caption"} <= set(rows.fieldnames or ()):
        raise UsageError(
            f"{table} has no columns `file` and `caption`", "begin it with the line: file,caption"
        )
    films: dict[Path, FilmFile] = {}
    for row in rows:
        where = f"{table}:{rows.line_num}"
        path = table.parent / (row["file"] or "")
        if not path.is_file():
            raise UsageError(f"{where}: there is no file {path}")
        if path in films:
            raise UsageError(f"{where}: {path} has a caption already", "keep one row of the two")
        films[path] = FilmFile(path, _caption(row["caption"] or "", where))
    return list(films.values())


def _text(path: Path) -> str:
    try:
        return read_text(path, encoding="utf-8-sig")
    except ValueError as error:
        raise UsageError(f"{path} is not text in UTF-8: {error}") from error


def _caption(text: str, where: str | Path) -> str:
    caption = " ".join(text.split())
    if not caption:
        raise UsageError(f"{where}: the caption is empty", "say what is to be seen in the film")
    return caption
