"""Films that are made from their end, as flags, lists and Python ask for them and are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import cfgen as package
from cfgen.pipeline.batch import BatchRunner, ClipList
from cfgen.renderer.events import Noted
from tests.cli.conftest import FakeBuild
from tests.conftest import ROOT
from tests.render.inputs import film, picture

PROMPT = "a red kite over green hills"
Cfgen = Callable[..., Result]
ENDS = ("--image", "a.png", "--last-image", "b.png")
BACK = ("--preset", "framepack-inverted")


@pytest.fixture(autouse=True)
def inputs(presets: Path) -> None:
    """A preset that makes films from their end, two pictures, a film, and what is neither."""
    inverted = (ROOT / "presets" / "framepack-inverted.yaml").read_text(encoding="utf-8")
    own = inverted.replace("extends: mini-base", "extends: mini")
    (presets / "framepack-inverted.yaml").write_text(own, encoding="utf-8")
    for name in ("a.png", "b.png"):
        picture(Path(name))
    film(Path("a.mp4"))
    Path("text.png").write_text("no picture")


def test_flags_say_what_a_film_begins_and_ends_with(cfgen: Cfgen, build: FakeBuild) -> None:
    result = cfgen("render", PROMPT, *BACK, *ENDS, "--seed", "1", "-o", "c.mp4")
    assert result.exit_code == 0, result.stderr
    config = build.configs[0]
    assert (config.order, config.memory.order) == ("inverted", "inverted")
    assert config.begin.image == Path("a.png").absolute()
    assert config.begin.last_image == Path("b.png").absolute()
    assert "latents are kept until all" in result.stderr


def test_a_plan_tells_that_nothing_can_be_watched_before_the_end(cfgen: Cfgen) -> None:
    told = " ".join(cfgen("plan", *BACK, *ENDS, "--duration", "3s").stdout.split())
    assert "order chunks are made from the end of the film to its start" in told
    assert "are kept until all 6 chunks are made; then the video is written" in told
    assert "no frame can be watched before that" in told
    assert "no weights that were trained for this order" in told
    assert "53 frames, 3.312 s" in told
    facts = json.loads(cfgen("plan", *BACK, *ENDS, "--duration", "3s", "--json").stdout)["data"]
    assert len(facts["order"]) == 4
    assert [row["latent_frames"] for row in facts["table"]] == [1, 3, 3, 3, 3, 1]
    assert "order " not in cfgen("plan", "--duration", "3s").stdout


REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "a last picture from the start": (
        ENDS,
        2,
        "preset mini makes films from their start and cannot be told how they end; a last picture "
        "is for presets of order inverted: framepack-inverted",
    ),
    "the same as a key": (("--set", "begin.last_image=b.png"), 2, "framepack-inverted"),
    "no first picture": (BACK, 2, "leads back to a first picture, and none is given"),
    "a last picture alone": ((*BACK, "--last-image", "b.png"), 2, "none is given"),
    "a film to go on from": ((*BACK, "--video", "a.mp4"), 2, "a past to go on from"),
    "that and a last picture": (
        (*BACK, "--video", "a.mp4", "--last-image", "b.png"),
        2,
        "a past to go on from",
    ),
    "a last picture behind a film": (
        ("--video", "a.mp4", "--last-image", "b.png"),
        2,
        "from their",
    ),
    "no length": ((*BACK, *ENDS, "--duration", "0"), 2, "longer than 0 seconds"),
    "no end": ((*BACK, *ENDS, "--duration", "inf"), 2, "is not a duration"),
    "no room": ((*BACK, *ENDS, "--duration", "0.5s"), 2, "leave no chunk between them"),
    "no picture": ((*BACK, *ENDS[:2], "--last-image", "text.png"), 3, "text.png"),
    "a picture that is not there": ((*BACK, *ENDS[:2], "--last-image", "c.png"), 3, "c.png"),
    "several processes": ((*BACK, *ENDS, "--parallel", "2"), 2, "cannot be shared out"),
    "another memory": ((*BACK, *ENDS, "--memory", "window"), 2, "are for order forward"),
    "another order": ((*BACK, *ENDS, "--set", "order=forward"), 2, "are for order inverted"),
    "another sink": ((*BACK, *ENDS, "--set", "memory.sink=2"), 2, "must be 1, the first picture"),
    "all of the past": ((*BACK, *ENDS, "--set", "memory.levels=4:1,all:4"), 2, "is inverted"),
    "the noise of others": ((*BACK, *ENDS, "--rng", "reference"), 2, "needs keyed"),
    "an order that is none": (("--set", "order=backwards"), 2, "must be forward or inverted"),
    "the place of the last picture": ((*BACK, *ENDS, "-o", "b.png", "-y"), 2, "ends with"),
}


@pytest.mark.parametrize(("flags", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_anything_loads(
    flags: tuple[str, ...], code: int, said: str, cfgen: Cfgen, build: FakeBuild
) -> None:
    result = cfgen("render", PROMPT, "--dry-run", *flags)
    assert (result.exit_code, build.configs) == (code, [])
    assert said in result.stderr


def test_shots_are_refused(cfgen: Cfgen, build: FakeBuild) -> None:
    shots = ("--shot", f"2s: {PROMPT}", "--shot", "2s: a blue star")
    result = cfgen("render", *shots, *BACK, *ENDS)
    assert (result.exit_code, build.configs) == (2, [])
    assert "--shot: cannot be with order inverted, which knows one prompt" in result.stderr


def test_python_says_it_by_names() -> None:
    ends = {"image": "a.png", "last_image": "b.png"}
    job = package.plan(PROMPT, preset="framepack-inverted", duration="3s", **ends)
    assert (list(job.plan.order), job.plan.given.at_end) == ([0, 5, 4, 3, 2, 1], 1)


def test_a_list_names_the_clip_that_cannot_end_so(tmp_path: Path) -> None:
    clip = {"name": "kite", "prompt": PROMPT, "begin": {"image": "a.png", "last_image": "b.png"}}
    listed = {"version": 1, "clips": [clip]}
    Path("list.yaml").write_text(json.dumps(listed))
    with pytest.raises(package.CfgenError, match="makes films from their start") as caught:
        ClipList.read(Path("list.yaml"))
    assert "list.yaml" in str(caught.value)


def test_clips_of_a_list_are_made_from_their_end(tiny_model: Path) -> None:
    settings = {
        "preset": "framepack-inverted",
        "duration": "1.1s",
        "model": {"path": str(tiny_model), "sizes": "[48x32]"},
        "schedule": {"timesteps": "[1000, 500]", "guidance": "1"},
        "threads": "1",
    }
    clips = [
        {"name": "ends", "prompt": PROMPT, "begin": {"image": "a.png", "last_image": "b.png"}},
        {"name": "neither", "prompt": PROMPT},
        {"name": "gone", "prompt": PROMPT, "begin": {"image": "a.png", "last_image": "gone.png"}},
    ]
    listed = {"version": 1, "defaults": settings, "clips": clips}
    Path("list.yaml").write_text(json.dumps(listed))
    runner = BatchRunner(ClipList.read(Path("list.yaml")))
    assert [bool(runner.obstacle(item)) for item in runner.batch.items] == [False, True, True]
    told = [event.message for event in runner if isinstance(event, Noted)]
    assert any("from the end" in line for line in told)
    states = {item.name: runner.batch.fate(item).state for item in runner.batch.items}
    assert states == {"ends": "done", "neither": "failed", "gone": "failed"}
