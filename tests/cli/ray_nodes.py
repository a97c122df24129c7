"""A Ray cluster of two nodes of one processor each, on this machine; a test or bench tells it what.

    python -P tests/cli/ray_nodes.py

Prints the address of its head node. Each line of stdin is an order, answered by ``done``: ``add`` a
node, ``lose`` the newest, or ``behead`` the cluster. It ends with stdin.
"""

from __future__ import annotations

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

SIZES = {"num_cpus": 1, "object_store_memory": 80_000_000}


def main() -> None:
    """Start the cluster and obey."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**SIZES, "include_dashboard": False})
    nodes = [cluster.add_node(**SIZES)]
    say(cluster.address)
    for order in sys.stdin:
        match order.strip():
            case "add":
                nodes.append(cluster.add_node(**SIZES))
            case "lose":
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            case "behead":
                cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        say("done")
    for node in (*nodes, cluster.head_node):
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def say(line: str) -> None:
    """Answer."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
