"""`cfgen batch --ray` on a cluster of two nodes: workers, a node and the head are lost."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import write_list
from tests.ray_nodes import Nodes, kill_worker, nodes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason='Ray is not installed (pip install "cfgen[ray]")',
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as started:
        yield started


@pytest.fixture
def listed(tiny_model: Path, tiny_settings: list[str]) -> Path:
    """A list of clips of three chunks in the current folder."""
    return write_list(tiny_model, "a", "b", "c", threads="1")


Disturb = Callable[[subprocess.Popen[str], str], None]


def play(listed: Path, *arguments: str, disturb: Disturb | None = None) -> tuple[int, list[Any]]:
    """Run `cfgen batch`, disturb it once when a clip has its first chunk; its status and lines."""
    command = [sys.executable, "-P", "-m", "cfgen", "batch", str(listed), *arguments, "--json"]
    lines: list[Any] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            if disturb is not None and lines[-1]["type"] == "chunk":
                disturb(process, lines[-1]["clip"])
                disturb = None
        stderr = process.stderr.read() if process.stderr else ""
    return process.returncode, [*lines, stderr]


def states(listed: Path) -> dict[str, str]:
    report = json.loads(Path(f"{listed}.report.json").read_text())
    return {row["name"]: row["state"] for row in report["clips"]}


DONE = {"a": "done", "bad": "failed", "b": "done", "c": "done"}


@pytest.mark.parametrize("loss", ["worker", "node"])
def test_what_is_lost_is_made_elsewhere_and_nothing_twice(
    cluster: Nodes, listed: Path, loss: str
) -> None:
    lost: list[str] = []

    def disturb(_: object, clip: str) -> None:
        lost.append(clip)
        if loss == "worker":
            kill_worker(Path("list.yaml.cfgen-batch"), clip)
        else:
            cluster.order("lose")

    code, lines = play(listed, "--ray", cluster.address, disturb=disturb)
    assert (code, states(listed)) == (1, DONE), lines[-1]
    told = [line for line in lines[:-1] if line["type"] == "done"]
    assert Counter(line["clip"] for line in told) == {"a": 1, "b": 1, "c": 1}
    if loss == "worker":
        assert f"warning: {lost[0]} failed: its Ray worker was lost" in lines[-1]
        begun = Counter(line["name"] for line in lines[:-1] if line["type"] == "clip")
        assert begun == Counter({"a": 1, "b": 1, "c": 1, "bad": 1}) + Counter(lost)
        resumed = [line for line in lines[:-1] if line["type"] == "resume"]
        assert [line["clip"] for line in resumed] == lost
        assert resumed[0]["chunk"] >= 1
    assert "Traceback" not in lines[-1]
    assert play(listed)[0] == 1
    assert states(listed) == DONE


def test_ctrl_c_finishes_the_chunks_and_a_plain_process_goes_on(
    cluster: Nodes, listed: Path
) -> None:
    code, lines = play(
        listed,
        *("--ray", cluster.address),
        disturb=lambda driver, _: driver.send_signal(signal.SIGINT),
    )
    assert code == 130, lines[-1]
    assert not list(Path("list.yaml.cfgen-batch").glob("*.lock"))
    assert "started" not in states(listed).values()
    code, lines = play(listed)
    assert (code, states(listed)) == (1, DONE), lines[-1]


def test_the_loss_of_the_head_leaves_every_clip_to_be_gone_on_with(
    cluster: Nodes, listed: Path
) -> None:
    code, lines = play(
        listed,
        *("--ray", cluster.address),
        disturb=lambda *_: cluster.order("behead"),
    )
    assert (code, lines[-2]["error"]["code"]) == (1, "cluster-lost"), lines[-1]
    assert "the same command goes on" in lines[-1]
    code, lines = play(listed)
    assert (code, states(listed)) == (1, DONE), lines[-1]
