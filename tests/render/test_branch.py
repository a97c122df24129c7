"""Other continuations of a render: as a video of its own, or in the place of the old one."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from cfgen.cli.app import app
from cfgen.config.loader import from_mapping, load
from cfgen.pipeline.build import build_source
from cfgen.pipeline.job import RenderJob
from cfgen.rollout.transitions import enter
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine
from cfgen.timeline import KEPT_SNAPSHOTS, Plan
from cfgen.video.facts import chain_frames
from tests.render.crash import Crash, dying
from tests.render.film import MEMORIES, PROMPT, Film, MakeFilm

OTHER = "a blue kite bobs over grassland at night, static camera"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def spliced(
    settings: list[str],
    chunk: int,
    *,
    prompt: str,
    seed: str,
    duration: str = "5.8s",
    transition: str = "continue",
) -> str:
    """The digest of a film whose chunks from `chunk` on have another prompt and seed.

    Made without any of the code for branches: one memory, two sources.
    """

    def source(prompt: str, seed: str):
        values = {"prompt": prompt, "seed": seed, "duration": duration, "output": "x.mp4"}
        config = load(values, assignments=settings).config
        return build_source(RenderJob(config))

    first, second = source(PROMPT, "3"), source(prompt, seed)
    second = replace(second, memory=first.memory)
    state, frames = first.vae.start(), []
    for made in first.make(range(chunk)):
        frames.append(first.decode(made, state))
    with torch.inference_mode():
        enter(second.generator, first.memory, transition, second.conditionings[0])
    for made in second.make(range(chunk, second.plan.chunks)):
        frames.append(second.decode(made, state))
    return chain_frames(np.concatenate(frames))


def sidecar(video: Path) -> dict[str, dict[str, str]]:
    return dict(json.loads(video.with_name(f"{video.name}.json").read_text()))


def digest_of(video: Path) -> str:
    return sidecar(video)["facts"]["frames_sha256"]


def plan_of_film(made: Film) -> Plan:
    return RenderJob(from_mapping(RunFolder(made.run).record.config, label="run")).plan


PLACES = {
    "full": ("0.5s", 0, "continue"),
    "window-relative": ("1.4s", 2, "recache"),
    "release": ("3s", 4, "flush"),
    "cfgen": ("5.5s", 7, "cut"),
}


@pytest.mark.parametrize(("memory", "at", "chunk", "how"), [(k, *v) for k, v in PLACES.items()])
def test_a_branch_has_the_old_frames_and_then_its_own(
    film: MakeFilm,
    command: Callable[..., Result],
    memory: str,
    at: str,
    chunk: int,
    how: str,
) -> None:
    parent, before = film.whole(*MEMORIES[memory]), film.expected(*MEMORIES[memory])
    changes = ["--prompt", OTHER, "--seed", "9", *(["--transition", how] if chunk else [])]
    result = command("branch", str(parent.run), "--at", at, *changes, "-o", "b.mp4")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "b.mp4\n"
    assert f"going on at chunk {chunk + 1}" in result.stderr
    expected = spliced(parent.settings, chunk, prompt=OTHER, seed="9", transition=how)
    assert digest_of(Path("b.mp4")) == expected
    assert parent.output.read_bytes() == before
    config = RunFolder(Path("b.cfgen")).record.config
    begins = f"{plan_of_film(parent).chunk(chunk).frame_start / 16:g}s"
    shots = [f"{begins}: {PROMPT}", f"{5.8 - float(begins[:-1]):.6g}s {how}: {OTHER}"]
    assert config["shots"] == (shots if chunk else [])


def test_a_branch_may_branch_and_be_interrupted(
    film: MakeFilm,
    command: Callable[..., Result],
    tmp_path: Path,
) -> None:
    parent = film.whole()
    command("branch", str(parent.run), "--at", "2s", "--seed", "9", "-o", "b.mp4")
    expected = Path("b.mp4").read_bytes()
    child = RunFolder(tmp_path / "b.cfgen")
    assert child.record.base == 2
    for path in (child.snapshots).iterdir():
        if not path.name.startswith("000002"):
            path.unlink()
    Path("b.mp4").unlink()
    assert command("resume", "b.mp4").exit_code == 0
    assert Path("b.mp4").read_bytes() == expected
    result = command("branch", "b.mp4", "--at", "4s", "--seed", "3", "-o", "c.mp4")
    assert result.exit_code == 0, result.stderr
    early = command("branch", "b.mp4", "--at", "0.7s", "--seed", "3", "-o", "d.mp4")
    assert early.exit_code == 2
    assert "branched off after chunk 2, at 1.31 s, and chunk 2 lies before that" in early.stderr
    for path in (child.snapshots).iterdir():
        path.unlink()
    Path("b.mp4").unlink()
    for path in (child.path / "latents").glob("00000[5-7]*"):
        path.unlink()
    lost = command("resume", "b.mp4")
    assert lost.exit_code == 3
    assert "branched off after chunk 2, so that it cannot be worked out" in lost.stderr


def test_a_finished_film_keeps_the_newest_snapshots(film: MakeFilm) -> None:
    whole = film.whole()
    assert len(list((whole.run / "snapshots").glob("*.json"))) == KEPT_SNAPSHOTS


def test_a_branch_of_the_same_settings_is_the_same_film_and_may_be_longer(
    film: MakeFilm,
    command: Callable[..., Result],
) -> None:
    parent = film.whole()
    for asked in (["--seed", "3"], ["--prompt", PROMPT], ["--duration", "5s"]):
        same = command("branch", str(parent.run), "--at", "3s", "-o", "same.mp4", *asked)
        assert same.exit_code == 2, asked
        assert "nothing would be different: prompt and seed are those" in same.stderr
    for asked in ([], ["--seed", "-1"]):
        other = command("branch", str(parent.run), "--at", "3s", "-o", "other.mp4", "-y", *asked)
        assert other.exit_code == 0, other.stderr
        assert "(chosen at random)" in other.stderr
        assert RunFolder(Path("other.cfgen")).record.config["seed"] not in (3, None)
    ends = f"{plan_of_film(parent).seconds}"
    result = command("branch", str(parent.run), "--at", ends, "--duration", "8s", "-o", "l.mp4")
    assert result.exit_code == 0, result.stderr
    values = {"prompt": PROMPT, "seed": "3", "duration": "8s", "output": "x.mp4"}
    config = load(values, assignments=parent.settings).config
    frames = [frames for _, _, frames in build_source(RenderJob(config)).chunks()]
    assert digest_of(Path("l.mp4")) == chain_frames(np.concatenate(frames))
    assert "parts" not in sidecar(Path("l.mp4"))["metadata"]


@pytest.mark.parametrize(
    ("memory", "duration"),
    [
        *(("full", duration) for duration in ("3.5s", "8s")),
        ("window-relative", "8s"),
        ("release", "3.5s"),
        ("cfgen", "8s"),
    ],
)
def test_a_branch_of_another_length_holds_the_same_memory_in_another_pool(
    film: MakeFilm,
    command: Callable[..., Result],
    memory: str,
    duration: str,
) -> None:
    parent = film.killed(6, *MEMORIES[memory])
    changes = ["--at", "3.2s", "--seed", "9", "--duration", duration]
    result = command("branch", str(parent.run), *changes, "-o", "b.mp4")
    assert result.exit_code == 0, result.stderr
    expected = spliced(parent.settings, 4, prompt=PROMPT, seed="9", duration=duration)
    assert digest_of(Path("b.mp4")) == expected


@pytest.mark.parametrize("interrupted", [False, True])
def test_retry_replaces_what_comes_after(
    film: MakeFilm,
    command: Callable[..., Result],
    interrupted: bool,
) -> None:
    old = film.killed(6) if interrupted else film.whole()
    result = command("retry", str(old.run), "--from", "2s", "--seed", "9")
    assert result.exit_code == 0, result.stderr
    assert digest_of(old.output) == spliced(old.settings, 2, prompt=PROMPT, seed="9")
    folder = RunFolder(old.run)
    assert (folder.record.base, folder.record.take) == (0, 2)
    assert sorted(path.name for path in old.run.glob("snap*")) == ["snapshots-2"]
    again = command("retry", str(old.run), "--from", "4s", "--seed", "11")
    assert again.exit_code == 0, again.stderr
    assert len(folder.journal.of(ChunkLine)) == 8
    assert RunFolder(old.run).record.take == 3


@pytest.fixture(scope="module")
def seen() -> dict[str, tuple[bytes, int]]:
    return {}


@pytest.fixture
def retried(
    film: MakeFilm, command: Callable[..., Result], seen: dict[str, tuple[bytes, int]]
) -> tuple[bytes, int]:
    """The video of a retry that nothing disturbs, made once, and its changes to the disk."""
    if "retry" not in seen:
        counted = film.whole()
        with dying(counted.folder, None) as disk:
            assert command("retry", str(counted.run), "--from", "2s", "--seed", "9").exit_code == 0
        seen["retry"] = counted.output.read_bytes(), len(disk.changes)
    return seen["retry"]


@pytest.mark.parametrize("share", [i / 11 for i in range(12)])
def test_a_retry_that_dies_leaves_the_old_render_or_the_new(
    film: MakeFilm,
    command: Callable[..., Result],
    retried: tuple[bytes, int],
    share: float,
) -> None:
    old, (new, changes), cut = film.expected(), retried, film.whole()
    with dying(cut.folder, round(share * (changes - 1))), suppress(Crash):
        command("retry", str(cut.run), "--from", "2s", "--seed", "9")
    cut.bury()
    assert cut.output.read_bytes() in (old, new)
    folder = RunFolder(cut.run)
    if folder.finished is None:
        cut_settings = folder.record.config
        assert command("resume", str(cut.run)).exit_code == 0
        assert cut.output.read_bytes() == (new if cut_settings["seed"] == 9 else old)


def test_what_cannot_be_branched_is_refused(
    film: MakeFilm,
    command: Callable[..., Result],
) -> None:
    cut = film.killed(4)
    for arguments, code, said in [
        (
            ["--at", "9s", "--seed", "1", "-o", "b.mp4"],
            2,
            "the old video is 5.8125 s long, and 9 s is asked for",
        ),
        (["--at", "5s", "--seed", "1", "--duration", "4s", "-o", "b.mp4"], 2, "the new video is 4"),
        (["--at", "x", "--seed", "1", "-o", "b.mp4"], 2, "--at: 'x' is not a duration"),
        (
            ["--at", "5s", "--seed", "1", "-o", "b.mp4"],
            2,
            "is rendered up to chunk 4 of 8, and chunk 7 is asked",
        ),
        (["--at", "1s", "-o", str(cut.output)], 2, "needs an output of its own"),
        (["--at", "1s", "-o", "b.gif"], 2, "is a .mp4 too, and the output is b.gif"),
        (["--at", "1s", "--seed", "x", "-o", "b.mp4"], 2, "--seed: must be a whole number"),
        (["--at", "1s", "--seed", "1", "-o", "no/b.mp4"], 3, "does not exist"),
    ]:
        result = command("branch", str(cut.run), *arguments)
        assert result.exit_code == code, (arguments, result.stderr)
        assert said in result.stderr
        assert not Path("b.cfgen").exists()
    for name in ("nothing.mp4", ".", "/", ""):
        result = command("branch", name, "--at", "1s", "-o", "b.mp4")
        assert result.exit_code == 3
        assert "Traceback" not in result.stderr


def test_what_the_parts_of_a_film_were_made_with_is_told(
    film: MakeFilm,
    command: Callable[..., Result],
) -> None:
    parent = film.whole()
    command("branch", str(parent.run), "--at", "1.4s", "--prompt", OTHER, "-o", "b.mp4")
    assert "parts" not in sidecar(Path("b.mp4"))["metadata"]
    assert command("retry", "b.mp4", "--from", "4s", "--seed", "9").exit_code == 0
    first = {"until_frame": 57, "seed": 3}
    assert json.loads(sidecar(Path("b.mp4"))["metadata"]["parts"]) == [first]
    assert "up to frame 57: seed 3\n" in command("jobs", "show", "b.mp4").stdout
    assert command("retry", "b.mp4", "--from", "3s", "--seed", "3").exit_code == 0
    assert "parts" not in sidecar(Path("b.mp4"))["metadata"]
    assert command("retry", "b.mp4", "--from", "5s", "--seed", "4").exit_code == 0
    sets = [part for value in parent.settings for part in ("--set", value)]
    asked = command("render", OTHER, "--seed", "3", "-o", "b.mp4", "--resume", *sets)
    assert asked.exit_code == 3
    assert "its first frames are of another seed" in asked.stderr


def test_a_branch_does_not_replace_a_render_that_began_meanwhile(
    film: MakeFilm,
    command: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    parent, other = film.whole(), film.killed(5)
    it_was_free_then = "cfgen.pipeline.branch.check_place"
    monkeypatch.setattr(it_was_free_then, lambda *_, **__: None)
    target = str(other.output)
    refused = command("branch", str(parent.run), "--at", "3s", "--seed", "9", "-o", target)
    assert refused.exit_code == 3
    assert "holds an earlier render" in refused.stderr
    assert len(RunFolder(other.run).journal.of(ChunkLine)) == 5
    allowed = command("branch", str(parent.run), "--at", "3s", "--seed", "9", "-o", target, "-y")
    assert allowed.exit_code == 0, allowed.stderr


def test_a_retry_does_not_replace_a_video_of_somebody_else(
    film: MakeFilm,
    command: Callable[..., Result],
) -> None:
    cut = film.killed(4)
    cut.output.write_bytes(b"of somebody else")
    refused = command("retry", str(cut.run), "--from", "1s", "--seed", "9")
    assert refused.exit_code == 3
    assert "is not the video of this render" in refused.stderr
    assert cut.output.read_bytes() == b"of somebody else"
