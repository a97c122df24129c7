"""Runs a module of the tests in two processes on the CPU, as `accelerate launch` would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240


def run_in_two(module: str, folder: Path) -> None:
    """Run `python -m MODULE FOLDER` as two processes that find each other."""
    usual = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    usual |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    usual |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    argv = [sys.executable, "-m", module, str(folder)]
    running = []
    try:
        for rank in ("0", "1"):
            env = os.environ | usual | {"RANK": rank, "LOCAL_RANK": rank}
            with (folder / f"{rank}.log").open("wb") as log:
                running.append(subprocess.Popen(argv, env=env, cwd=ROOT, stdout=log, stderr=log))
        codes = [process.wait(TIMEOUT_S) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join((folder / f"{rank}.log").read_text() for rank in "01")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
