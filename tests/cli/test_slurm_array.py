"""The job script of README.md as SLURM runs it: tasks of an array make one list together."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import write_list
from tests.conftest import ROOT


@pytest.fixture
def job(tiny_model: Path, tiny_settings: list[str], tmp_path: Path) -> Path:
    """The script, beside a list, with cfgen on the path."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (script,) = re.findall("^```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL | re.MULTILINE)
    write_list(tiny_model, "a", "b", "c", threads="1").rename("tonight.yaml")
    path = Path("job.sh")
    path.write_text(script)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "cfgen"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m cfgen "$@"\n')
    program.chmod(0o755)
    return path


def task(job: Path, number: int, programs: Path) -> subprocess.Popen[str]:
    environ = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number)}
    environ["PATH"] = f"{programs}:{environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(job)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(sys.platform == "win32", reason="SLURM runs on POSIX")
def test_two_tasks_make_a_list_and_one_whose_time_is_up_goes_on(job: Path, tmp_path: Path) -> None:
    tasks = [task(job, number, tmp_path / "bin") for number in (1, 2)]
    while not (
        working := [
            clip
            for clip in "abc"
            if Path(f"tonight.yaml.cfgen-batch/{clip}.lock").exists()
            and Path(f"{clip}.cfgen/journal.jsonl").exists()
        ]
    ):
        assert tasks[0].poll() is None
        time.sleep(0.02)
    owner = json.loads(Path(f"tonight.yaml.cfgen-batch/{working[0]}.lock").read_text())["pid"]
    (stopped,) = [each for each in tasks if each.pid == owner]  # `exec` hands the signal on
    stopped.send_signal(signal.SIGTERM)
    _, told = stopped.communicate(timeout=240)
    assert stopped.returncode == 143, told
    tasks = [task(job, 3, tmp_path / "bin"), *(each for each in tasks if each is not stopped)]
    texts = [told, *(each.communicate(timeout=240)[1] for each in tasks)]
    assert [each.returncode for each in tasks] == [1, 1], texts
    rows = json.loads(Path("tonight.yaml.report.json").read_text())["clips"]
    assert {row["name"]: row["state"] for row in rows} == {
        "a": "done",
        "bad": "failed",
        "b": "done",
        "c": "done",
    }
    finished = re.findall("33 frames, 2.1 s of video|32 frames, 2.0 s of video", "".join(texts))
    assert len(finished) == 3, texts
