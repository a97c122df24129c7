"""The long form of an attack that the tests make in short: run it before a release.

    python tests/bench/campaign.py --count 200

A render of `mini` in a process of its own gets SIGINT, SIGTERM, SIGHUP or SIGKILL at a random
moment between its start and its end. But for SIGKILL, it must end with 130, 143 or 129 (or 0 where
it was done) and a sentence, no traceback. Going on at once, or beginning again where nothing was
begun, must give the video of an undisturbed render, byte for byte, whatever the children of a
killed render still do meanwhile.

Prints one JSON object of counts; every exception to the above is printed as a line before it.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kept import cfgen

PROMPT = "a red balloon drifts over a meadow at noon"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200, help="signals to send")
    parser.add_argument("--duration", default="2s", help="length of the films")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        counts = campaign(Path(folder), options.count, options.duration, options.seed)
    sys.stdout.write(json.dumps(counts) + "\n")


def campaign(folder: Path, count: int, duration: str, seed: int) -> dict[str, int]:
    """Interrupt renders at random moments, each time go on and compare."""
    rng, counts = random.Random(seed), collections.Counter[str]()
    began = time.monotonic()
    rc, said = _end(_start(folder / "whole", duration))
    whole = time.monotonic() - began
    if rc:
        sys.exit(f"the undisturbed render failed: {said}")
    expected = _sha256(folder / "whole" / "film.mp4")
    for i in range(count):
        place, which = folder / f"{i}", rng.choice(SIGNALS)
        process = _start(place, duration)
        time.sleep(rng.uniform(0, whole))
        process.send_signal(which)
        rc, said = _end(process)
        counts[f"{which.name} {rc}"] += 1
        wrong = _wrong_end(rc, said, which)
        runs = list(place.glob("*.cfgen/run.json"))
        if rc:
            again = ["resume", str(runs[0].parent)] if runs else _render(place, duration)
            rc, after = _end(_process(place, again))
            counts["gone on" if runs else "begun again"] += 1
            wrong = wrong or (f"going on ended with {rc}: {after}" if rc else "")
        if not wrong and _sha256(place / "film.mp4") != expected:
            wrong = "another video"
        if wrong:
            counts["wrong"] += 1
            sys.stdout.write(f"{i} {which.name}: {wrong}\n")
    return dict(counts)


def _wrong_end(rc: int, said: str, which: signal.Signals) -> str:
    """What is wrong with the end of an interrupted render; empty if nothing."""
    if which == signal.SIGKILL and rc in (0, -which):
        return ""
    if rc == -which and not said:  # it came before the first line of Python was read
        return ""
    if rc not in (0, 128 + which):
        return f"ended with {rc}: {said}"
    if "Traceback" in said:
        return f"a traceback: {said}"
    return "" if said.strip() else "ended without a word"


def _render(place: Path, duration: str) -> list[str]:
    output = str(place / "film.mp4")
    return ["render", PROMPT, "--duration", duration, "--seed", "7", "-y", "-o", output]


def _start(place: Path, duration: str) -> subprocess.Popen[str]:
    place.mkdir()
    return _process(place, _render(place, duration))


def _process(place: Path, arguments: list[str]) -> subprocess.Popen[str]:
    return cfgen(*arguments, cwd=place, XDG_CACHE_HOME=str(place / "cache"))


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    said = process.communicate(timeout=1800)[1]
    return process.returncode, said


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


if __name__ == "__main__":
    main()
