"""What benchmarks share: cfgen in a process of its own, figures kept as JSON, told errors."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cfgen.errors import CfgenError

RESULTS = Path(__file__).parent / "results"
PROMPT = "a red balloon drifts over snowy hills at sunset, the camera pans right"


def keep(file: Path, figures: dict[str, Any]) -> None:
    """Write figures to a file and to standard output, with the command that made them."""
    script, *arguments = sys.argv
    told = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"tests/bench/{Path(script).name}", *arguments]),
        **figures,
        "machine": machine(),
    }
    text = json.dumps(told, indent=1) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def cfgen(*arguments: str, cwd: Path | None = None, **environ: str) -> subprocess.Popen[str]:
    """Start cfgen in a process of its own, with these variables besides."""
    return subprocess.Popen(
        [sys.executable, "-m", "cfgen", *arguments],
        cwd=cwd,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Do what a benchmark's arguments ask for; an error that a user can act on is a sentence."""
    try:
        main(sys.argv[1:])
    except CfgenError as error:
        sys.exit("\n".join(filter(None, (error.message, error.hint))))


def machine() -> dict[str, Any]:
    """What it ran on."""
    cpu = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("cfgen", "torch", "numpy")},
        },
    }
