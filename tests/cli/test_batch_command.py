"""A night with a list: one clip impossible, one that brings the process down, and killed twice."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

NAMES = [f"clip-{i}" for i in range(10)]

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
    """A folder with a list of twelve clips."""
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
    for name in ("killed", "whole", "two"):
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
    whole, killed, two = night / "whole", night / "killed", night / "two"
    (whole / "crashed").write_text("")
    code, stderr = finished(start(whole))
    assert code == 1, stderr
    assert re.search("impossible failed: the model '.*/nowhere' is not on disk", stderr)
    assert sum(clip["state"] == "done" for clip in report(whole).values()) == 11
    expected = videos(whole)
    assert len(expected) == 11

    for wait_for in (3, 7):
        process = start(killed)
        while len(list(killed.glob("*.mp4.json"))) < wait_for and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        finished(process)
    codes = [finished(start(killed))[0] for _ in range(2)]
    assert codes == [9, 1], "it crashes once, and the next run ends the list"
    fates = report(killed)
    assert {name for name, fate in fates.items() if fate["state"] != "done"} == {"impossible"}
    assert videos(killed) == expected

    (two / "crashed").write_text("")
    pair = [start(two), start(two)]
    ends = [finished(process) for process in pair]
    assert [code for code, _ in ends] == [1, 1], ends
    assert videos(two) == expected
    begun = [line for _, stderr in ends for line in stderr.splitlines() if " of 12: " in line]
    names = sorted(line.split(": ")[1].split(",")[0] for line in begun)
    assert names == sorted([*NAMES, "crashes", "impossible"])


def test_a_dry_run_lists_the_clips_and_what_stands_in_their_way(night: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cfgen", "batch", "list.yaml", "--dry-run"],
        cwd=night / "whole",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "12 clips, 0:24 of video"
    (line,) = [line for line in result.stdout.splitlines() if "will fail" in line]
    assert re.search("will fail: the model '.*/nowhere' is not on disk", line)
    assert "crashes     seed 77" in result.stdout
    assert sorted(path.name for path in (night / "whole").iterdir()) == ["list.yaml"]
