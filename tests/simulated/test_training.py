"""Two steps of training on the simulated GPU are those of the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulated import training


def test_a_step_of_training_is_the_one_of_the_cpu(library: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    command = [sys.executable, training.__file__, str(library), str(there)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    right = training.figures(here)
    assert len(right) == training.STEPS
    for found, expected in zip(told["figures"], right, strict=True):
        assert found == pytest.approx(expected, rel=1e-3)
    assert "cfgen/memory/autograd.py" not in told["waits"][-1], "pages are looked up on the host"
