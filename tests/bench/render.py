"""Speed and memory of `cfgen render` with the models in the box, start-up included.

    python tests/bench/render.py speed    a 60 s clip of each: seconds of video per second
    python tests/bench/render.py memory   10 s against 10 min: peak memory, pace at both ends

Each writes its figures, with versions and machine, to tests/bench/results/render-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kept import PROMPT, RESULTS, cfgen, keep


def run(*arguments: str) -> tuple[list[dict[str, Any]], float, int]:
    """Run cfgen; its JSON events, the seconds it took, and its peak resident memory in bytes."""
    began = time.monotonic()
    process = cfgen(*arguments)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        assert process.stderr is not None
        sys.exit(f"cfgen failed: {lines[-1:]} {process.stderr.read()}")
    seconds = time.monotonic() - began
    return [json.loads(line) for line in lines], seconds, usage.ru_maxrss * 1024


def render(duration: str, preset: str = "mini") -> tuple[list[dict[str, Any]], float, int]:
    """Render one clip of `duration` into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--preset", preset, "--duration", duration, "--seed", "7", "--json"]
        return run("render", PROMPT, *flags, "-o", str(Path(folder) / "clip.mp4"))


def chunk_seconds(events: list[dict[str, Any]]) -> list[float]:
    """Seconds that each chunk took."""
    marks = [event["elapsed_s"] for event in events if event["type"] == "chunk"]
    return [later - earlier for earlier, later in zip([0.0, *marks], marks, strict=False)]


def speed() -> dict[str, Any]:
    """Three renders of 60 s by each model, in turns; the medians count."""
    times: dict[str, list[float]] = {"mini": [], "mini-base": []}
    for _ in range(3):
        for preset, seconds in times.items():
            seconds.append(render("60s", preset)[1])
    medians = {preset: statistics.median(seconds) for preset, seconds in times.items()}
    return {
        "clip_s": 60,
        "seconds": times,
        "video_s_per_s": {preset: 60 / seconds for preset, seconds in medians.items()},
        "mini_base_takes_times": medians["mini-base"] / medians["mini"],
    }


def memory() -> dict[str, Any]:
    """Peak memory of a short and a long clip, and the pace of the long one at both ends."""
    _, _, short = render("10s")
    events, seconds, long = render("10m")
    pace = chunk_seconds(events)
    early, late = statistics.median(pace[30:50]), statistics.median(pace[-20:])
    return {
        "peak_10s": short,
        "peak_10min": long,
        "peak_ratio": long / short,
        "chunk_s_30_to_50": early,
        "chunk_s_last_20": late,
        "chunk_ratio": late / early,
        "seconds_10min": seconds,
    }


def main() -> None:
    """Run one benchmark, print and keep its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("speed", "memory"))
    name = parser.parse_args().name
    figures = {"speed": speed, "memory": memory}[name]()
    keep(RESULTS / f"render-{name}.json", figures)


if __name__ == "__main__":
    main()
