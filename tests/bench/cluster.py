"""A list of clips on a Ray cluster whose workers are killed, and the same by plain processes.

    python tests/bench/cluster.py

One of the clips is impossible. The cluster has two nodes of one processor each, on this machine;
beside it, two plain `cfgen batch` processes make the same list. Ray's time is that of the command,
without the start of the cluster, which is told by itself. Videos must be the same byte for byte.

Prints one JSON object, and ends with 1 if a clip was not made, made twice, or came out otherwise.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kept import RESULTS, cfgen, keep

sys.path.append(str(Path(__file__).parent.parent))
from ray_nodes import kill_worker, nodes

COLOURS = ("red", "blue", "green", "yellow", "orange", "purple")


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--duration", default="2s")
    parser.add_argument("--timesteps", help="denoise in these steps, such as [1000]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cluster-") as name:
        folder = Path(name)
        for kind in ("ray", "plain"):
            (folder / kind).mkdir()
            (folder / kind / "list.yaml").write_text(list_of(options, folder))
        plain = by_processes(folder / "plain")
        ray = by_ray(folder / "ray", options.kills)
        same = videos(folder / "ray") == videos(folder / "plain")
    good = options.clips - 1
    ok = same and ray["made"] == dict.fromkeys(ray["made"], 1) and len(ray["made"]) == good
    keep(
        RESULTS / "cluster.json",
        {"clips": options.clips, "ray": ray, "plain": plain, "same_videos": same},
    )
    sys.exit(0 if ok and ray["states"] == {"done": good, "failed": 1} else 1)


def list_of(options: argparse.Namespace, folder: Path) -> str:
    """The list, of which the third clip is impossible."""
    defaults: dict[str, Any] = {"duration": options.duration, "threads": "1", "preset": "mini"}
    if options.timesteps:
        defaults["schedule"] = {"timesteps": options.timesteps}
    clips: list[dict[str, Any]] = [
        {"name": f"clip-{i}", "prompt": f"a {COLOURS[i % 6]} kite bobs by day"}
        for i in range(1, options.clips + 1)
    ]
    clips[2]["model"] = {"path": str(folder / "nowhere")}
    return json.dumps({"version": 1, "defaults": defaults, "clips": clips})


def by_processes(folder: Path) -> dict[str, Any]:
    """Two processes make the list together."""
    began = time.monotonic()
    pair = [cfgen("batch", "list.yaml", cwd=folder, OMP_NUM_THREADS="1") for _ in range(2)]
    for process in pair:
        process.communicate()
    return {
        "seconds": round(time.monotonic() - began, 1),
        "states": states(folder),
    }


def by_ray(folder: Path, kills: int) -> dict[str, Any]:
    """A cluster makes it; workers are killed after the first chunk of every fourth clip."""
    started = time.monotonic()
    with nodes() as cluster:
        began = time.monotonic()
        driver = cfgen("batch", "list.yaml", "--ray", cluster.address, "--json", cwd=folder)
        killed: list[str] = []
        told = collections.Counter[str]()
        made, begun = collections.Counter[str](), collections.Counter[str]()
        assert driver.stdout is not None
        for text in driver.stdout:
            line = json.loads(text)
            told[line["type"]] += 1
            if line["type"] == "clip":
                begun[line["name"]] += 1
            elif line["type"] == "done":
                made[line["clip"]] += 1
            due = len(killed) < min(kills, 1 + sum(begun.values()) // 4)
            if due and line["type"] == "chunk" and line["index"] == 0:
                kill_worker(folder / "list.yaml.cfgen-batch", line["clip"])
                killed.append(line["clip"])
        stderr = driver.communicate()[1]
        ended = time.monotonic()
    return {
        "seconds": round(ended - began, 1),
        "cluster_started_in_s": round(began - started, 1),
        "status": driver.returncode,
        "killed": killed,
        "begun": dict(begun),
        "made": dict(made),
        "resumed": told["resume"],
        "states": states(folder),
        "failures": [line for line in stderr.splitlines() if " failed: " in line],
    }


def states(folder: Path) -> dict[str, int]:
    """How many clips the report says to be done, or failed."""
    rows = json.loads((folder / "list.yaml.report.json").read_text())["clips"]
    return dict(collections.Counter(row["state"] for row in rows))


def videos(folder: Path) -> dict[str, str]:
    """The SHA-256 of each video."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.mp4"))
    }


if __name__ == "__main__":
    main()
