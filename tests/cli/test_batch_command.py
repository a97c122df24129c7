"""A night with a list: one clip impossible, one that brings the process down, and killed twice."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

NAMES = [f"clip-{i}" for i in range(6)]

CLUMSY = """\
import os, sys
from pathlib import Path
from cfgen.renderer.source import FrameSource
from cfgen.cli.app import main

decoding = FrameSource.decoding

def clumsy(self, chunk, state):
    marker = Path("crashed")
    if chunk.index == 1 and self.noise.seed == 77 and not marker.exists():
        marker.write_text("")
        os._exit(9)
    return decoding(self, chunk, state)

FrameSource.decoding = clumsy
sys.argv = ["cfgen", "batch", *sys.argv[1:]]
main()
"""


@pytest.fixture
def night(tiny_model: Path, tiny_settings: list[str], tmp_path: Path) -> Path:
    """A folder with a list of eight clips."""
    clips = [{"name": name, "prompt": f"a red kite, take {name}"} for name in NAMES]
    nowhere = {"path": str(tmp_path / "nowhere")}
    clips += [
        {"name": "impossible", "prompt": "a kite", "preset": "mini", "model": nowhere},
        {"name": "crashes", "prompt": "a red kite at night", "seed": 77},
    ]
    settings = {
        "duration": "2s",
        "model": {"path": str(tiny_model), "sizes": "[48x32]"},
        "schedule": {"timesteps": "[1000, 500]", "guidance": "1"},
        "threads": "1",
    }
    listed = {"version": 1, "defaults": settings, "clips": clips}
    for name in ("killed", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "list.yaml").write_text(json.dumps(listed))
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CLUMSY, "list.yaml", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def report(folder: Path) -> dict[str, dict[str, object]]:
    facts = json.loads((folder / "list.yaml.report.json").read_text())
    return {clip["name"]: clip for clip in facts["clips"]}


def videos(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.glob("*.mp4"):
        facts = json.loads(path.with_name(f"{path.name}.json").read_text())["facts"]
        found[path.stem] = facts["sha256"]
    return found


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=240)
    return process.returncode, stderr


@pytest.mark.skipif(sys.platform == "win32", reason="kills by POSIX signals")
def test_a_night_ends_with_every_possible_clip(night: Path) -> None:
    killed, two = night / "killed", night / "two"
    (two / "crashed").write_text("")
    pair = [start(two), start(two)]
    ends = [finished(process) for process in pair]
    assert [code for code, _ in ends] == [1, 1], ends
    begun = [line for _, stderr in ends for line in stderr.splitlines() if " of 8: " in line]
    names = sorted(line.split(": ")[1].split(",")[0] for line in begun)
    assert names == sorted([*NAMES, "crashes", "impossible"])
    told = "".join(stderr for _, stderr in ends)
    assert re.search("impossible failed: the model '.*/nowhere' is not on disk", told)
    assert sum(clip["state"] == "done" for clip in report(two).values()) == 7
    expected = videos(two)
    assert len(expected) == 7

    process = start(killed)
    while len(list(killed.glob("*.mp4.json"))) < 3 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    finished(process)
    codes = [finished(start(killed))[0] for _ in range(2)]
    assert codes == [9, 1], "it crashes once, and the next run ends the list"
    fates = report(killed)
    assert {name for name, fate in fates.items() if fate["state"] != "done"} == {"impossible"}
    assert videos(killed) == expected


def test_a_dry_run_lists_the_clips_and_what_stands_in_their_way(
    night: Path, cfgen: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(night / "two")
    result = cfgen("batch", "list.yaml", "--dry-run")
    assert result.exit_code == 1, result.stderr
    assert result.stdout.splitlines()[-1] == "8 clips, 0:16 of video"
    (line,) = [line for line in result.stdout.splitlines() if "will fail" in line]
    assert re.search("will fail: the model '.*/nowhere' is not on disk", line)
    assert "crashes     seed 77" in result.stdout
    assert sorted(path.name for path in (night / "two").iterdir()) == ["list.yaml"]
