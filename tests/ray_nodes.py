"""A Ray cluster of two nodes of one processor each, all on this machine, for tests and benches.

    python -P tests/ray_nodes.py

As a program it prints the address of its head node; each line of stdin is an order, answered by
``done``: ``lose`` the second node, or ``behead`` the cluster. It ends with stdin.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PATIENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_health_check_failure_threshold": "60",
}
"""Ray takes a machine that has much else to do for dead otherwise."""

SIZES = {"num_cpus": 1, "object_store_memory": 80_000_000}


class Nodes:
    """The cluster, in a process of its own.

    Attributes:
        address: Of its head node.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._answer()

    def order(self, what: str) -> None:
        """Have the process do something with its nodes."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("> "):  # Ray says something of its own now and then
                return line[2:].strip()
        raise RuntimeError("the cluster did not start")


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster that is gone at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-P", __file__],
        env={**os.environ, **PATIENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Nodes(process)
        process.communicate()


def kill_worker(state: Path, clip: str) -> None:
    """Kill the process that is at work on a clip, as its lock tells."""
    os.kill(json.loads((state / f"{clip}.lock").read_text())["pid"], 9)


def main() -> None:
    """Start the cluster and obey."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**SIZES, "include_dashboard": False})
    second = cluster.add_node(**SIZES)
    say(cluster.address)
    for order in sys.stdin:
        node = second if order.strip() == "lose" else cluster.head_node
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        say("done")
    for node in (second, cluster.head_node):
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def say(line: str) -> None:
    """Answer."""
    sys.stdout.write(f"> {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
