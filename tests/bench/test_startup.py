from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.bench
def test_help_answers_in_half_a_second(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cfgen", "--help"]
    times = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.5, f"seconds: {[round(each, 3) for each in times]}"
