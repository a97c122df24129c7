"""One prompt with several seeds is a batch of its own, of which some are kept and the others go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from cfgen.errors import UsageError
from cfgen.files.writing import sha256_of
from cfgen.pipeline.variations import MOST, REPORT, parse_seeds
from cfgen.runs.lock import Lock
from cfgen.video.formats import FORMATS
from cfgen.video.output import run_of, sidecar_of
from tests.cli.test_jobs import run_folder

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("text", "first", "seeds"),
    [
        ("4", None, (1, 2, 3, 4)),
        ("3", 7, (7, 8, 9)),
        ("1", 0, (0,)),
        ("1,7,9", None, (1, 7, 9)),
        (" 9, 1 ", None, (9, 1)),
        ("5,", None, (5,)),
        (f"0,{2**64 - 1}", None, (0, 2**64 - 1)),
    ],
)
def test_seeds_are_counted_or_listed(text: str, first: int | None, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text, first) == seeds


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("0", None),
        (str(MOST + 1), None),
        ("9" * 19, None),
        ("", None),
        (",", None),
        ("-3", None),
        ("two", None),
        ("1.5", None),
        ("1,1", None),
        ("1,7", 3),
        ("1,x", None),
        (f"1,{2**64}", None),
        ("2", 2**64 - 1),
    ],
)
def test_other_seeds_are_refused_in_a_sentence(text: str, first: int | None) -> None:
    with pytest.raises(UsageError):
        parse_seeds(text, first)


def made(*states: str, ending: str = ".mp4") -> Path:
    """A folder of variations, numbered from 1, each in one of these states."""
    folder = Path("boat-seeds")
    rows = []
    for number, state in enumerate(states, start=1):
        name = f"boat-{number}"
        done = state == "done"
        if state != "waiting":
            run_folder(str(folder / name), chunks=14 if done else 3, finished=done, ending=ending)
        rows.append({"name": name, "output": str(folder / f"{name}{ending}"), "state": state})
    folder.mkdir(exist_ok=True)
    (folder / REPORT).write_text(json.dumps({"version": 1, "done": 0, "clips": rows}))
    (folder / "sheet.jpg").write_bytes(b"for all of them")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_others_go_with_all_that_is_theirs(cfgen: Run) -> None:
    folder = made("done", "done", "failed", "waiting")
    (folder / "my notes.txt").write_text("mine")
    dry = cfgen("jobs", "keep", "2", "--dry-run")
    assert dry.exit_code == 0
    assert len(names(folder)) == 10
    result = cfgen("jobs", "keep", "2", "-y", "--json")
    data = json.loads(result.stdout.splitlines()[-1])["data"]
    assert data["kept"] == ["boat-seeds/boat-2.mp4"]
    assert len(data["removed"]) == 3
    mine = {"my notes.txt", REPORT, "sheet.jpg"}
    assert names(folder) == mine | {"boat-2.mp4", "boat-2.mp4.json", "boat-2.cfgen"}
    again = cfgen("jobs", "keep", "2")
    assert again.exit_code == 0  # numbers stay, and nothing is left to remove
    assert cfgen("jobs", "keep", "1", "-y").exit_code == 3


@pytest.mark.parametrize("ending", FORMATS)
def test_a_variation_goes_whatever_its_format(cfgen: Run, ending: str) -> None:
    folder = made("done", "done", "started", ending=ending)
    video = folder / f"boat-1{ending}"
    for name in ("sound.flac", "score.json", "preview.mp4", "preview.jpg"):
        (run_of(video) / name).write_bytes(b"of a run")
    assert cfgen("jobs", "keep", "2", "-y").exit_code == 0
    kept = folder / f"boat-2{ending}"
    mine = {REPORT, "sheet.jpg", kept.name, sidecar_of(kept).name, run_of(kept).name}
    assert names(folder) == mine


@pytest.mark.parametrize("name", ["notes.txt", "000002.png", "deeper"])
def test_a_folder_of_frames_that_holds_more_stays(cfgen: Run, name: str) -> None:
    folder = made("done", "done", ending=".png")
    strange = folder / "boat-1.png" / name
    if name == "deeper":
        strange.mkdir()
    else:
        strange.write_text("mine")
    assert cfgen("jobs", "keep", "2", "-y").exit_code == 3
    assert strange.exists()
    assert (folder / "boat-1.png.cfgen" / "run.json").exists()


def test_a_link_to_a_folder_of_frames_goes_and_the_folder_stays(cfgen: Run) -> None:
    folder = made("done", "done", ending=".png")
    elsewhere = Path("elsewhere.png")
    (folder / "boat-1.png").rename(elsewhere)
    (folder / "boat-1.png").symlink_to(elsewhere.absolute(), target_is_directory=True)
    assert cfgen("jobs", "keep", "2", "-y").exit_code == 0
    assert not (folder / "boat-1.png").is_symlink()
    assert (elsewhere / "000001.png").exists()


def test_several_may_be_kept(cfgen: Run) -> None:
    folder = made("done", "done", "done")
    assert cfgen("jobs", "keep", "1", "3", "--in", str(folder), "-y").exit_code == 0
    assert not (folder / "boat-2.mp4").exists()
    assert (folder / "boat-1.mp4").exists()
    assert (folder / "boat-3.mp4").exists()


def _changed(folder: Path) -> None:
    (folder / "boat-3.mp4").write_bytes(b"cut anew")


def _foreign_sheet(folder: Path) -> None:
    (folder / "boat-3.sheet.jpg").write_bytes(b"mine")


def _foreign_file(folder: Path) -> None:
    (folder / "boat-3.cfgen" / "notes.txt").write_text("mine")


def _kept_is_damaged(folder: Path) -> None:
    (folder / "boat-2.mp4").write_bytes(b"cut anew")


@pytest.mark.parametrize("what", [_changed, _foreign_sheet, _foreign_file, _kept_is_damaged])
def test_whatever_stands_in_the_way_nothing_is_removed(
    cfgen: Run, what: Callable[[Path], None]
) -> None:
    folder = made("done", "done", "done")
    what(folder)
    before = {path: path.is_file() and sha256_of(path) for path in sorted(folder.rglob("*"))}
    assert cfgen("jobs", "keep", "2", "-y").exit_code == 3
    assert {p: p.is_file() and sha256_of(p) for p in sorted(folder.rglob("*"))} == before


def test_one_that_is_rendered_now_keeps_all(cfgen: Run) -> None:
    folder = made("done", "started", "done")
    with Lock(folder / "boat-2.cfgen" / "lock"):
        result = cfgen("jobs", "keep", "1", "-y")
    assert result.exit_code == 3
    assert (folder / "boat-3.mp4").exists()
    assert (folder / "boat-2.cfgen").exists()


def test_nobody_is_there_to_ask(cfgen: Run) -> None:
    folder = made("done", "done")
    assert cfgen("jobs", "keep", "1").exit_code == 3
    assert (folder / "boat-2.mp4").exists()


@pytest.mark.parametrize("numbers", [["0"], ["3"], ["1", "9"]])
def test_a_number_of_none_is_refused(cfgen: Run, numbers: list[str]) -> None:
    made("done", "done")
    assert cfgen("jobs", "keep", *numbers, "-y").exit_code == 2


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"clips": [3]}', '{"clips": [{}]}'])
def test_a_folder_without_variations_is_refused(cfgen: Run, content: str | None) -> None:
    folder = Path("empty")
    folder.mkdir()
    if content is not None:
        (folder / REPORT).write_text(content)
    assert cfgen("jobs", "keep", "1", "--in", "empty").exit_code == 2


def test_a_name_leads_out_of_no_folder(cfgen: Run) -> None:
    folder = made("done")
    run_folder("precious", chunks=14, finished=True)
    facts = json.loads((folder / REPORT).read_text())
    facts["clips"].append({"name": "x", "output": "../precious.mp4", "state": "done"})
    (folder / REPORT).write_text(json.dumps(facts))
    cfgen("jobs", "keep", "1", "-y")
    assert Path("precious.mp4").exists()
    assert sidecar_of(Path("precious.mp4")).exists()


def test_seeds_make_a_batch_in_a_folder_of_its_own(cfgen: Run) -> None:
    result = cfgen("render", "a boat", "--seeds", "7,9", "-o", "boat.mp4", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout.splitlines()[-1])["data"]
    assert [(clip["seed"], clip["output"]) for clip in data["clips"]] == [
        (7, "boat-seeds/boat-7.mp4"),
        (9, "boat-seeds/boat-9.mp4"),
    ]
    assert not Path("boat-seeds").exists()
    assert cfgen("render", "a boat", "--seeds", "2", "--resume").exit_code == 2
