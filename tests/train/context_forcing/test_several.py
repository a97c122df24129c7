"""Two processes on the CPU: they hold the same weights, those that one process comes to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from cfgen.train.state import read_state
from tests.train.context_forcing import several

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 240


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of every case."""
    folder = tmp_path_factory.mktemp("two")
    usual = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    usual |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    usual |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    argv = [sys.executable, "-m", "tests.train.context_forcing.several", str(folder)]
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
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", several.CASES)
def test_two_processes_train_as_one_does_on_all_their_films(
    case: str, two: Path, tmp_path: Path
) -> None:
    """Bit by bit: one process makes the two micro-batches that two make one each of."""
    first, second = (
        load_file(two / case / f"process {rank}" / "all.safetensors") for rank in (0, 1)
    )
    assert all(torch.equal(w, second[name]) for name, w in first.items())
    several.trained(tmp_path, case, micro_batches=2)
    alone = load_file(tmp_path / "process 0" / "all.safetensors")
    assert alone.keys() == first.keys()
    (state,), (whole,) = (
        [read_state(path.parent) for path in folder.glob("*/state.json")]
        for folder in (two / case, tmp_path)
    )
    assert state is not None
    assert whole is not None
    assert state[2].keys() == whole[2].keys()
    for found, expected in ((first, alone), (state[2], whole[2])):
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=0, atol=0, msg=name, equal_nan=True
            )
