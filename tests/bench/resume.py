"""Kills renders of `mini` at random moments, resumes them, and compares the films frame by frame.

    python tests/bench/resume.py kill --kills 100 --duration 60     every policy
    python tests/bench/resume.py kill --policy release --kills 20   one of them
    python tests/bench/resume.py cost --duration 600                snapshots: time, bytes, resume

A kill is SIGKILL to the process that renders; the next one is started with `cfgen resume`. A film
passes if its video is the very file of the render that nobody disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from kept import PROMPT, RESULTS, cfgen, keep
from rich.console import Console

from cfgen.video.ffmpeg import find_ffmpeg

POLICIES = {
    "full": ["memory.policy=full"],
    "window-absolute": ["memory.policy=window", "memory.positions=absolute"],
    "window-relative": ["memory.policy=window"],
    "release": [
        "memory.variant=release",
        "memory.admission_layers=[]",
        "memory.admits=first",
        "memory.tau=0.99",
        "schedule.guidance=1",
    ],
    "paper": ["memory.variant=paper", "memory.tau=0.99"],
    "cfgen": ["memory.variant=cfgen", "memory.tau=0.99"],
}
AIMS = ("time", "latents", "pages", "time", "snapshot")
"""What kills aim at while the film is made: a moment, or a file that appears."""
shown = Console(stderr=True, highlight=False, soft_wrap=True)


def render_arguments(name: str, policy: str, duration_s: float) -> list[str]:
    sets = [part for value in POLICIES[policy] for part in ("--set", value)]
    return ["render", PROMPT, "--seed", "5", "--duration", f"{duration_s}s", "-o", name, *sets]


def finished(process: subprocess.Popen[str]) -> str:
    _, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(f"cfgen failed with {process.returncode}:\n{stderr}")
    return stderr


def framemd5(video: Path) -> str:
    """Digest of ffmpeg's MD5 of every decoded frame."""
    command = [str(find_ffmpeg().path), "-v", "error", "-i", str(video), "-f", "framemd5", "-"]
    made = subprocess.run(command, capture_output=True, check=True).stdout
    return hashlib.sha256(made).hexdigest()


def killed(policy: str, kills: int, duration_s: float, work: Path) -> dict[str, object]:
    """One film, killed `kills` times along its life."""
    folder = work / policy
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    finished(cfgen(*render_arguments("whole.mp4", policy, duration_s), cwd=folder))
    whole_s = time.monotonic() - began
    lines = kinds(folder / "whole.cfgen")
    chunks = lines.count("chunk")
    ends = [lines[:i].count("chunk") for i, kind in enumerate(lines) if kind == "segment"]
    chance = random.Random(policy)
    last = max(2, kills // 10)  # of the kills fall on what comes after the last chunk
    plan = [(end - 1.0, "segment") for end in ends]
    plan += [
        (chance.uniform(0, chunks - 1), AIMS[number % len(AIMS)])
        for number in range(kills - last - len(plan))
    ]
    plan = sorted(plan) + [(float(chunks), "join")] * (last - 1) + [(float(chunks), "name")]
    chunk_s = whole_s / chunks
    moments: dict[str, int] = {}
    arguments = render_arguments("cut.mp4", policy, duration_s)
    done = 0
    for target, wanted in plan:
        for aim in (wanted, "time"):  # a process that was quicker is killed at any moment then
            process = cfgen(*arguments, "--json", cwd=folder)
            wait_for_chunk(process, target)
            seconds = chance.uniform(0, 3 * chunk_s)
            hit = wait_for(process, aim, folder, seconds, limit_s=6 * chunk_s)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            arguments = ["resume", "cut.mp4"]
            if process.returncode in (0, -signal.SIGKILL):
                break
        if process.returncode != -signal.SIGKILL:
            continue
        done += 1
        lines = kinds(folder / "cut.cfgen")
        found = f"{aim if hit else 'time'}, last line {lines[-1] if lines else 'none'}"
        moments[found] = moments.get(found, 0) + 1
        if done % 10 == 0:
            made = lines.count("chunk")
            shown.print(f"{policy}: killed {done} times, {made} of {chunks} chunks are made")
    finished(cfgen("resume", "cut.mp4", cwd=folder))
    same = (folder / "whole.mp4").read_bytes() == (folder / "cut.mp4").read_bytes()
    facts = {
        "policy": policy,
        "kills": done,
        "same_file": same,
        "same_framemd5": framemd5(folder / "whole.mp4") == framemd5(folder / "cut.mp4"),
        "whole_s": round(whole_s, 1),
        "killed_at": dict(sorted(moments.items())),
    }
    shown.print(f"{policy}: {facts}")
    return facts


def wait_for_chunk(process: subprocess.Popen[str], target: float) -> None:
    """Until that many chunks are made; at least until the model is loaded, or the process ends."""
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        made = {"load": 0, "resume": event.get("chunk"), "chunk": event.get("index", 0) + 1}
        if made.get(event["type"], -1) >= int(target):
            return


def wait_for(
    process: subprocess.Popen[str], aim: str, folder: Path, seconds: float, *, limit_s: float
) -> bool:
    """Until the moment that is aimed at: a file appears in the run folder, or so many seconds.

    Returns:
        Whether that moment came before the limit.
    """
    names = {
        "latents": "cut.cfgen/latents/*",
        "pages": "cut.cfgen/snapshots/*.safetensors",
        "snapshot": "cut.cfgen/snapshots/*[0-9].json",
        "segment": "cut.cfgen/segments/segment-??????.mp4",
        "join": "cut.part.mp4",
        "name": "cut.mp4.json",
    }
    if aim == "time":
        time.sleep(seconds)
        return True
    ends = time.monotonic() + (60.0 if aim in ("join", "name") else limit_s)
    before = stamps(folder, names[aim])
    if aim in ("pages", "snapshot"):
        process.send_signal(signal.SIGTERM)  # it finishes the chunk and takes a snapshot
    while not stamps(folder, names[aim]) - before:
        if process.poll() is not None or time.monotonic() > ends:
            return False
    return True


def stamps(folder: Path, pattern: str) -> set[tuple[Path, int]]:
    """Files and when they were changed."""
    found = set()
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            found.add((path, path.stat().st_mtime_ns))
    return found


def kinds(run: Path) -> list[str]:
    """The kinds of the whole lines of a journal."""
    try:
        lines = (run / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    return [str(json.loads(line)["kind"]) for line in lines if line.endswith("\n")]


def cost(duration_s: float, work: Path) -> dict[str, object]:
    """What snapshots cost by the run's own timers, and how soon a resumed render makes a chunk."""
    folder = work / "cost"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    process = cfgen(*render_arguments("a.mp4", "cfgen", duration_s), "--json", cwd=folder)
    stdout, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(stderr)
    events = [json.loads(line) for line in stdout.splitlines()]
    (done,) = [event for event in events if event["type"] == "done"]
    saved = [event["nbytes"] for event in events if event["type"] == "snapshot"]
    process = cfgen(*render_arguments("b.mp4", "cfgen", duration_s), "--json", cwd=folder)
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "chunk" and event["index"] > 0.9 * event["chunks"]:
            process.kill()
            break
    process.communicate()
    began = time.monotonic()
    process = cfgen("resume", "b.cfgen", "--json", cwd=folder)
    for line in process.stdout:
        if json.loads(line)["type"] == "chunk":
            resumed_s = time.monotonic() - began
            break
    process.communicate()
    return {
        "duration_s": duration_s,
        "elapsed_s": round(done["elapsed_s"], 1),
        "keeping_s": round(done["keeping_s"], 2),
        "keeping_share": round(done["keeping_s"] / done["elapsed_s"], 4),
        "snapshots": len(saved),
        "bytes_per_snapshot": round(sum(saved) / max(1, len(saved))),
        "first_chunk_after_resume_s": round(resumed_s, 2),
        "same_file": (folder / "a.mp4").read_bytes() == (folder / "b.mp4").read_bytes(),
        "peak_mb_of_a_minute": {mode: peak_mb(mode, folder) for mode in ("full", "off")},
    }


def peak_mb(mode: str, folder: Path) -> float:
    """The largest resident memory of a render of a minute."""
    arguments = render_arguments("peak.mp4", "cfgen", 60.0)
    process = cfgen(*arguments, "-y", "--snapshot", mode, "--quiet", cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the render with --snapshot {mode} failed")
    return round(usage.ru_maxrss / 1024, 1)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kill", "cost"))
    parser.add_argument("--policy", choices=POLICIES)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of film")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-resume"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.what == "cost":
        keep(options.results / "resume-cost.json", cost(options.duration, options.work))
        return
    for name in [options.policy] if options.policy else POLICIES:
        facts = killed(name, options.kills, options.duration, options.work)
        keep(options.results / f"resume-kill-{name}.json", facts)


if __name__ == "__main__":
    main(sys.argv[1:])
