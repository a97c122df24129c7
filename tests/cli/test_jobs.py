"""Jobs are told from run folders alone, and clearing away spares what is not finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from cfgen.config.loader import load
from cfgen.config.schema import to_mapping
from cfgen.files.writing import sha256_of
from cfgen.runs.folder import RunFolder, RunRecord
from cfgen.runs.journal import ChunkLine, VideoLine
from cfgen.runs.lock import Lock
from cfgen.video.output import format_of, run_of, sidecar_of

Run = Callable[..., Result]


def run_folder(
    name: str, *, chunks: int, finished: bool, nbytes: int = 5000, ending: str = ".mp4"
) -> RunFolder:
    video = Path(f"{name}{ending}")
    config = load({"prompt": f"a boat called {name}", "seed": "3", "output": str(video)}).config
    record = RunRecord(
        output=video.name,
        overwrite=False,
        config=to_mapping(config),
        fingerprint={"torch_version": "2"},
        created="2026-01-01T00:00:00+00:00",
    )
    video.parent.mkdir(parents=True, exist_ok=True)
    folder = RunFolder.create(run_of(video), record)
    for index in range(chunks):
        line = ChunkLine(
            index=index,
            frames=12 if index else 9,
            frames_sha256="0" * 64,
            latents_sha256="0" * 64,
            elapsed_s=float(index),
        )
        folder.journal.append(line)
        folder.latents(index).write_bytes(bytes(nbytes))
    folder.snapshots.mkdir()
    (folder.snapshots / "000003-0.safetensors").write_bytes(bytes(2 * nbytes))
    if finished:
        if format_of(video).is_folder:
            video.mkdir()
        frame = video / "000001.png" if video.is_dir() else video
        frame.write_bytes(b"video")
        line = VideoLine(frames=160, nbytes=5, sha256=sha256_of(video), frames_sha256="0" * 64)
        folder.journal.append(line)
        facts = {"facts": {"sha256": line.sha256}}
        sidecar_of(video).write_text(json.dumps(facts))
    return folder


def listed(cfgen: Run, *arguments: str) -> dict[str, dict[str, object]]:
    result = cfgen("jobs", "list", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    jobs = json.loads(result.stdout.splitlines()[-1])["data"]["jobs"]
    return {job["path"]: job for job in jobs}


def test_every_state_is_told(cfgen: Run) -> None:
    run_folder("done", chunks=14, finished=True)
    run_folder("deep/er/cut", chunks=5, finished=False)
    lost = run_folder("lost", chunks=14, finished=True)
    lost.output.unlink()
    damaged = run_folder("bad", chunks=2, finished=False)
    (damaged.path / "run.json").write_text("{}")
    busy = run_folder("busy", chunks=2, finished=False)
    with Lock(busy.path / "lock"):
        jobs = listed(cfgen)
        text = cfgen("jobs", "list").stdout
    assert {path: job["state"] for path, job in jobs.items()} == {
        "bad.cfgen": "damaged",
        "busy.cfgen": "running",
        "deep/er/cut.cfgen": "interrupted",
        "done.cfgen": "finished",
        "lost.cfgen": "video lost",
    }
    assert jobs["deep/er/cut.cfgen"]["chunks_done"] == 5
    assert jobs["deep/er/cut.cfgen"]["done_s"] == pytest.approx(57 / 16)
    assert "interrupted  0:04  0:10" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    shown = cfgen("jobs", "show", "deep/er/cut.mp4").stdout
    assert "a boat called deep/er/cut" in shown
    assert "chunk 5 of 14, 0:04 of 0:10" in shown
    assert "torch_version" in shown


def test_an_empty_folder_has_no_jobs(cfgen: Run) -> None:
    assert cfgen("jobs", "list").stdout == "no renders under .\n"
    result = cfgen("jobs", "list", "nowhere")
    assert result.exit_code == 2
    assert "there is no folder nowhere" in result.stderr


def test_gc_clears_finished_renders_oldest_first_and_nothing_else(cfgen: Run) -> None:
    import os

    old, new = (run_folder(name, chunks=14, finished=True) for name in ("old", "new"))
    cut = run_folder("cut", chunks=5, finished=False)
    os.utime(old.journal.path, (1, 1))
    before = sum(job["nbytes"] for job in listed(cfgen).values())
    dry = cfgen("jobs", "gc", "--budget", "0", "--dry-run")
    assert dry.exit_code == 0
    assert [line.split(" (")[0] for line in dry.stdout.splitlines()[:4]] == [
        "would remove old.cfgen/snapshots",
        "would remove new.cfgen/snapshots",
        "would remove old.cfgen",
        "would remove new.cfgen",
    ]
    assert "more than 0 B: what is left belongs to unfinished renders" in dry.stdout
    assert sum(job["nbytes"] for job in listed(cfgen).values()) == before
    cfgen("jobs", "gc", "--budget", str(before - 15000))
    assert not old.snapshots.exists()
    assert not new.snapshots.exists()
    assert old.path.exists()
    cfgen("jobs", "gc", "--budget", str(before - 60000))
    assert not old.path.exists()
    assert new.path.exists()
    cfgen("jobs", "gc", "--budget", "0")
    assert not new.path.exists()
    assert Path("old.mp4").exists()
    assert cut.path.exists()
    assert cut.snapshots.exists()


def test_gc_leaves_a_render_at_work_alone(cfgen: Run) -> None:
    done = run_folder("done", chunks=14, finished=True)
    with Lock(done.path / "lock"):
        cfgen("jobs", "gc", "--budget", "0")
        assert done.path.exists()
    assert cfgen("jobs", "gc", "--budget", "x").exit_code == 2


@pytest.mark.parametrize("dry", [False, True])
def test_gc_tells_why_something_stays(cfgen: Run, dry: bool) -> None:
    strange, littered, lost = (
        run_folder(name, chunks=14, finished=True) for name in ("strange", "littered", "lost")
    )
    (strange.path / "notes.txt").write_text("precious")
    (littered.path / "@eaDir").mkdir()
    (littered.path / ".DS_Store").write_text("x")
    lost.output.write_bytes(b"another")
    done = cfgen("jobs", "gc", "--budget", "0", *(["--dry-run"] if dry else []))
    assert (
        "strange.cfgen stays: strange.cfgen holds notes.txt, which is not of cfgen" in done.stderr
    )
    assert ("lost.cfgen stays: its video is no longer whole" in done.stderr) == (not dry)
    assert "stays for the reasons above" in done.stdout
    assert littered.path.exists() == dry
    assert (strange.path / "run.json").exists()
    assert (lost.path / "run.json").exists()
