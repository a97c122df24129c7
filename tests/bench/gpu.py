"""Measures cfgen's kernels, chunks and films on a GPU against their peers, in one process each run.

    python3 tests/bench/gpu.py --list                      slices and how long they take
    python3 tests/bench/gpu.py --slice first               are the kernels right? under 2 minutes
    python3 tests/bench/gpu.py --slice all                 whatever is left, for 8.5 minutes
    python3 tests/bench/gpu.py --slice correctness k1      the two slices that decide most
    python3 tests/bench/gpu.py --slice k2 k3 k4            fused ops, linear layers, decoders
    python3 tests/bench/gpu.py --slice s1                  a chunk of the generator
    python3 tests/bench/gpu.py --slice s2 --chunks 200     films; go on until nothing is left
    python3 tests/bench/gpu.py --report                    the tables once more
    python3 tests/bench/gpu.py --rehearse                  everything, tiny, on a CPU

A chunk on several GPUs is measured by a script of its own, which needs cfgen installed:

    python3 tests/bench/parallel.py --processes 1 2 4 --set backend=triton

Nothing needs to be installed for the slices but torch, triton, numpy, psutil and matplotlib: cfgen
is imported from this checkout. Peers that are not there are recorded as missing. To bring some as
wheels:

    python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl &&
        PYTHONPATH=/tmp/site python3 tests/bench/gpu.py --slice k1 k4

with sageattention 1.0.6 for k1, diffusers and importlib_metadata for the exact decoder of k4 and
s2, flashinfer-python for k1 (it compiles there), flash-attn-4 with nvidia-cutlass-dsl for k1, which
FlexAttention's FLASH backend (flexfa4) takes as well.

Each case is stored when it is done, in `tests/bench/results/<device>-<date>.json` and, if the
environment names a folder OUT, there too, beside a picture and the card's own log of clocks and
power. The same command goes on where the last one stopped, as long as the file is there; cases are
measured again when the code that they measure has changed, or with --again. A contestant that
kills the process is left out from then on. Settings of the card are never changed.

The slice `first` comes before anything is timed: where a kernel is wrong in it, nothing is, and the
status is 3. Every run that times then measures the ceilings of the card: a large copy, large
products in bf16 and fp8. Rates are told as shares of those. Contestants of a case take turns, three
times; each must be right before it is timed. Speed-ups are told only if every check of the slice
`correctness` was right with the same kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("first", "ceilings", "correctness", "k1", "k2", "k3", "k4", "s1", "s2")
GRACE_S = 30
"""What a run may take beyond its minutes, for its last case and its tables."""
RESTARTS = 6
LOST = 75
"""The status with which a process that measures asks for another one."""


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slice", nargs="+", choices=(*NAMES, "all"), default=["all"])
    parser.add_argument("--minutes", type=float, default=8.5, help="stop before so many are over")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose SLICE/NAME has one")
    parser.add_argument("--again", action="store_true", help="measure finished cases once more")
    parser.add_argument("--chunks", type=int, help="chunks of a film (200)")
    parser.add_argument("--rehearse", action="store_true", help="run it all, tiny, on a CPU")
    parser.add_argument("--report", action="store_true", help="tables of the newest results")
    parser.add_argument("--list", action="store_true", help="slices and expected minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="their folder")
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat())
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--since", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Supervise the process that measures, or be it."""
    options = parsed()
    sys.path[:0] = [str(HERE)]
    if options.report:
        return reported(options)
    if options.work or options.list:
        return worked(options)
    return supervised(options)


def supervised(options: argparse.Namespace) -> int:
    """Have a process measure, and another one where that loses the device; within the minutes."""
    deadline = time.monotonic() + 60 * options.minutes
    now = datetime.now(UTC).isoformat(timespec="seconds")
    own = ["--work", "--since", now if options.again else ""]
    for _ in range(RESTARTS):
        left = deadline - time.monotonic()
        command = [sys.executable, __file__, *sys.argv[1:], *own, "--minutes", str(left / 60)]
        try:
            status = subprocess.run(command, timeout=left + GRACE_S, check=False).returncode
        except subprocess.TimeoutExpired:
            sys.stdout.write("out of time: the case under way is lost, the others are stored\n")
            return 1
        if status >= 0 and status != LOST:
            return status
        sys.stdout.write(f"the process ended with status {status}; going on in another\n")
    return 1


def worked(options: argparse.Namespace) -> int:
    """Measure in this process."""
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        sys.path.append(str(HERE.parent / "kernels"))
    from gpu_parts import checkout

    checkout.install()
    from gpu_parts import work

    out = os.environ.get("OUT")
    names = NAMES if "all" in options.slice else [n for n in NAMES if n in options.slice]
    order = work.Order(
        slices=tuple(names),
        minutes=options.minutes,
        folder=options.results,
        copies=(Path(out),) if out and not options.rehearse else (),
        date=options.date,
        only=tuple(options.only),
        since=options.since,
        rehearse=options.rehearse,
        chunks=options.chunks,
    )
    if options.list:
        work.say(work.listed(order))
        return 0
    return work.run(order)


def reported(options: argparse.Namespace) -> int:
    """Tables of the newest results of the folder, without a GPU and without torch."""
    from gpu_parts.report import report

    found = sorted(options.results.glob(f"*-{options.date}.json")) or sorted(
        file for file in options.results.glob("*.json") if '"runs"' in file.read_text()[:20]
    )
    if not found:
        sys.stdout.write(f"no results in {options.results}\n")
        return 1
    newest = max(found, key=lambda file: file.stat().st_mtime)
    sys.stdout.write(report(json.loads(newest.read_text(encoding="utf-8")), NAMES) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
