"""What a video begins with, as flags, keys, arguments of Python and lists of clips say it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import cfgen as package
from cfgen.pipeline.batch import BatchRunner, ClipList
from cfgen.renderer.events import Noted
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine
from tests.cli.conftest import FakeBuild
from tests.render.inputs import film, picture

PROMPT = "a red kite over green hills"
Cfgen = Callable[..., Result]


def test_flags_say_what_a_video_begins_with(cfgen: Cfgen, build: FakeBuild) -> None:
    film(Path("a.mp4"), seconds=4)
    flags = ["--video", "a.mp4", "--from", "0:01", "--to", "3.5", "--keep-input", "--fit", "pad"]
    assert cfgen("render", PROMPT, *flags, "--seed", "1").exit_code == 0
    begin = build.configs[0].begin
    assert begin.video == Path("a.mp4").absolute()
    assert (begin.from_s, begin.to_s, begin.keep_input, begin.fit) == (1.0, 3.5, True, "pad")
    picture(Path("a.png"))
    assert cfgen("render", PROMPT, "--image", "a.png", "-o", "b.mp4").exit_code == 0
    assert build.configs[1].begin.file == Path("a.png").absolute()


def test_a_plan_tells_what_becomes_of_a_picture_or_film(cfgen: Cfgen) -> None:
    picture(Path("a.png"), 100, 100)
    told = cfgen("plan", "--image", "a.png", "--duration", "1s").stdout
    assert "a.png is 100x100" in told
    assert "1 frame is given" in told
    film(Path("a.mp4"))
    facts = json.loads(cfgen("plan", "--video", "a.mp4", "--duration", "1s", "--json").stdout)
    assert [row["frames"] for row in facts["data"]["table"]] == [0, 0, 0, 0, 12, 4]
    assert any("are the past of the video" in line for line in facts["data"]["begins"])


REFUSED = {
    "a picture at the end": (["--last-image", "a.png"], "--last-image"),
    "a picture and a film": (["--image", "a.png", "--video", "a.mp4"], "--image"),
    "a part of no film": (["--image", "a.png", "--from", "1s"], "--from"),
    "keeping no film": (["--keep-input"], "--keep-input"),
    "a part that ends before it begins": (
        ["--video", "a.mp4", "--from", "2s", "--to", "1s"],
        "--to",
    ),
    "a moment that is none": (["--video", "a.mp4", "--from", "soon"], "--from"),
    "another fit": (["--image", "a.png", "--fit", "stretch"], "--fit"),
}


@pytest.mark.parametrize(("flags", "named"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together_is_refused_by_name(
    flags: list[str], named: str, cfgen: Cfgen, build: FakeBuild
) -> None:
    result = cfgen("render", PROMPT, *flags)
    assert (result.exit_code, build.configs) == (2, [])
    assert named in result.stderr


def test_a_picture_that_is_not_there_is_refused_before_anything_loads(
    cfgen: Cfgen, build: FakeBuild
) -> None:
    result = cfgen("render", PROMPT, "--image", "a.png", "--json")
    assert (result.exit_code, build.configs) == (3, [])
    assert "input-refused" in result.stdout + result.stderr


def test_a_name_that_is_none_is_refused(cfgen: Cfgen, build: FakeBuild) -> None:
    for flag in ("--image", "--video"):
        assert cfgen("render", PROMPT, flag, "a\0.png").exit_code == 3


def test_a_film_is_not_replaced_by_what_goes_on_from_it(cfgen: Cfgen, build: FakeBuild) -> None:
    film(Path("a.mp4"))
    before = Path("a.mp4").read_bytes()
    result = cfgen("render", PROMPT, "--video", "a.mp4", "-o", "a.mp4", "-y")
    assert (result.exit_code, build.configs) == (2, [])
    assert Path("a.mp4").read_bytes() == before


def test_python_says_it_by_names() -> None:
    job = package.plan(PROMPT, image=picture(Path("a.png")), fit="pad", duration="1s")
    assert (job.config.begin.file, job.config.begin.fit) == (Path("a.png").absolute(), "pad")
    assert [chunk.latent_frames for chunk in job.plan] == [1, 3, 3]
    job = package.plan(PROMPT, video=film(Path("a.mp4")), start=1, end="2.5s", duration="1s")
    assert (job.config.begin.from_s, job.config.begin.to_s) == (1.0, 2.5)
    assert job.plan.given.latent_frames == 6


def test_clips_of_a_list_begin_with_files_beside_it(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "list"
    folder.mkdir()
    picture(folder / "start.png")
    film(folder / "before.mp4")
    settings = {
        "duration": "1s",
        "model": {"path": str(tiny_model), "sizes": "[48x32]"},
        "schedule": {"timesteps": "[1000, 500]", "guidance": "1"},
        "threads": "1",
    }
    clips = [
        {"name": "picture", "prompt": PROMPT, "begin": {"image": "start.png"}},
        {"name": "film", "prompt": PROMPT, "begin": {"video": "before.mp4", "from": "1s"}},
        {"name": "neither", "prompt": PROMPT, "begin": {"image": "gone.png"}},
    ]
    listed = {"version": 1, "defaults": settings, "clips": clips}
    (folder / "list.yaml").write_text(json.dumps(listed))
    runner = BatchRunner(ClipList.read(folder / "list.yaml"))
    blocked = [bool(runner.obstacle(item)) for item in runner.batch.items]
    assert blocked == [False, False, True]
    told = [event.message for event in runner if isinstance(event, Noted)]
    assert any("before.mp4" in line for line in told)
    states = {item.name: runner.batch.fate(item).state for item in runner.batch.items}
    assert states == {"picture": "done", "film": "done", "neither": "failed"}
    made = RunFolder(folder / "film.cfgen").journal.of(ChunkLine)
    assert [line.frames for line in made] == [0, 0, 12, 4]
    (folder / "before.mp4").unlink()  # a list that is finished looks at its videos alone
    again = BatchRunner(ClipList.read(folder / "list.yaml"))
    assert [*again] == []
