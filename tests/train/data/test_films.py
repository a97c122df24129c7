"""Films of a folder: which are found, and with which captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfgen.errors import UsageError
from cfgen.train.data.films import find_films


def _fill(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def _found(folder: Path) -> dict[str, str]:
    return {f.path.relative_to(folder).as_posix(): f.caption for f in find_films(folder)}


def test_captions_lie_beside_films(tmp_path: Path) -> None:
    files = {"b.MP4": "", "b.txt": "a  cat\nsleeps\n", "in/a.mkv": "", "in/a.txt": "two dogs"}
    _fill(tmp_path, {**files, "notes.txt": "not a film's", "frame.png": ""})
    assert _found(tmp_path) == {"b.MP4": "a cat sleeps", "in/a.mkv": "two dogs"}
    assert [film.path.name for film in find_films(tmp_path)] == ["b.MP4", "a.mkv"]


def test_a_table_says_which_films_are_taken(tmp_path: Path) -> None:
    table = 'caption,file,seconds\n"a cat, asleep",in/a.mov,9\ntwo dogs,b.mp4,8\n'
    _fill(tmp_path, {"in/a.mov": "", "b.mp4": "", "c.mp4": "", "captions.csv": table})
    assert _found(tmp_path) == {"in/a.mov": "a cat, asleep", "b.mp4": "two dogs"}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.txt": "a cat"}, r"no film in"),
        ({"a.mp4": ""}, r"a\.mp4 has no caption"),
        ({"a.mp4": "", "a.txt": " \n"}, r"a\.txt: the caption is empty"),
        ({"a.mp4": "", "captions.csv": "name,text\na.mp4,x\n"}, r"no columns"),
        ({"a.mp4": "", "captions.csv": ""}, r"no columns"),
        ({"a.mp4": "", "captions.csv": "file,caption\n"}, r"no film in"),
        ({"a.mp4": "", "captions.csv": "file,caption\na.mp4\n"}, r"csv:2: the caption is empty"),
        ({"captions.csv": "file,caption\na.mp4,x\n"}, r"csv:2: there is no file"),
        (
            {"a.mp4": "", "captions.csv": "file,caption\na.mp4,x\na.mp4,y\n"},
            r"csv:3: .*a caption already",
        ),
    ],
)
def test_what_is_wrong_is_named(files: dict[str, str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        find_films(_fill(tmp_path, files))


def test_a_folder_that_is_not_there_holds_no_film(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        find_films(tmp_path / "nowhere")
