"""`cfgen score` on the command line: its table, its JSON, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from tests.scoring.conftest import dinov2, pan, sure_ffmpeg, write_film

__all__ = ["dinov2", "sure_ffmpeg"]

Run = Callable[..., Result]


def _data(result: Result) -> Any:
    return json.loads(result.stdout.splitlines()[-1])["data"]


def test_table_and_alarms_fit_a_terminal(cfgen: Run, dinov2: Path) -> None:
    still = [np.full((32, 48, 3), 12, np.uint8)] * 80
    film = write_film(Path("a.mkv"), [*pan(120), *still], prompt="a kite")
    result = cfgen("score", str(film), "--embedder", str(dinov2), "--against", str(film))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    head = next(line for line in lines if line.startswith("seconds"))
    assert " ".join(head.split()) == (
        "seconds luma contr. sat. detail motion flicker seams cuts still black"
    )
    rows = [line.split()[0] for line in lines[lines.index(head) + 1 :][:4]]
    assert rows == ["0-10", "10-20", "20-25", "drift"]
    alarms = " ".join("\n".join(lines).partition("alarms")[2].split())
    assert "stands still from 15.0 s to 25.0 s; the film is black from 15.0 s" in alarms
    assert lines[-1] == "written   a.mkv.score.json"
    for label in ("alike", "to first", "by lag"):
        assert next(line for line in lines if line.startswith(label)).split(":")[0].split()[-2] == (
            "motion"
        )


def test_json_holds_what_is_written(cfgen: Run) -> None:
    film = write_film(Path("a.mkv"), pan(10))
    result = cfgen("score", str(film), "--json", "-o", "found.json")
    data = _data(result)
    assert data["written"] == ["found.json"]
    assert json.loads(Path("found.json").read_text())["curves"] == data["films"][0]["curves"]
    assert not Path("a.mkv.score.json").exists()


def test_a_score_that_cannot_be_written_is_shown_all_the_same(cfgen: Run) -> None:
    film = write_film(Path("a.mkv"), pan(10))
    Path("a.mkv.score.json").write_text("mine")
    result = cfgen("score", str(film))
    assert result.exit_code == 1
    assert "is no score" in result.stderr
    assert "alarms    none" in result.stdout
    assert Path("a.mkv.score.json").read_text() == "mine"


def test_folders_are_compared(cfgen: Run) -> None:
    for folder, step in (("one", 1), ("two", 3)):
        for number, prompt in enumerate(("a kite", "a boat")):
            frames = pan(60, 50 * number)[::step]
            write_film(Path(folder, f"{number}.mkv"), frames[:20], prompt=prompt)
    result = cfgen("score", "one", "two", "--paired")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "compared  two with one, 2 pairs of 2 prompts"
    assert lines[2].startswith("motion ")
    assert max(map(len, lines)) <= 80
    data = _data(cfgen("score", "one", "two", "--paired", "--json"))
    assert data["compared"][0]["figures"][0]["figure"] == "motion"


def test_films_go_into_a_folder_for_vbench(cfgen: Run) -> None:
    write_film(Path("in", "a.mp4"), pan(4), "-c:v", "libx264", prompt="a kite")
    write_film(Path("b.mp4"), pan(4), "-c:v", "libx264", prompt="a boat")
    result = cfgen("score", "in", "b.mp4", "--export-vbench", "out")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in Path("out").glob("*.mp4")} == {"a kite-0.mp4", "a boat-0.mp4"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("one", "--paired"), 2),
        (("one", "two", "--paired", "--against", "a.mkv"), 2),
        (("a.mkv", "b.mkv", "-o", "c.json"), 2),
        (("a.mkv", "--export-vbench", "out", "--paired"), 2),
        (("a.mkv", "--chunk-frames", "0"), 2),
        ((), 2),
        (("missing.mkv",), 3),
        (("a.mkv", "--embedder", "missing"), 3),
        ((".",), 3),
    ],
)
def test_refusals(cfgen: Run, arguments: tuple[str, ...], code: int) -> None:
    write_film(Path("a.mkv"), pan(2))
    result = cfgen("score", *arguments, "--json")
    assert result.exit_code == code, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["ok"] is False
