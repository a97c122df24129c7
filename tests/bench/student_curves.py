"""The curves of student trainings, beside one another or against those of an earlier run.

    python tests/bench/student_curves.py dmd=a/dmd/log.jsonl cdmd=a/cdmd/log.jsonl --svg a.svg
    python tests/bench/student_curves.py dmd=a/dmd/log.jsonl --json curves.json
    python tests/bench/student_curves.py dmd=b/dmd/log.jsonl --against curves.json

A log is that of stage dmd or cdmd of `cfgen train mini`. A curve is the mean of each figure over
blocks of steps, with the standard error of that mean. `--against` compares a run, of which only the
beginning need be there, block by block with the run of its name: a figure agrees where it lies
within three standard errors of the difference.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfgen.errors import UsageError
from cfgen.files.json_lines import read_json_lines
from cfgen.plain_text import aligned
from cfgen.train.plot import svg_figure

FIGURES = {
    "student_gradient": "size of the student's gradient",
    "student_distance": "from the teacher's picture",
    "student_critic_lead": "the critic's lead on the teacher",
    "student_motion": "motion of the latents",
    "critic_loss": "loss of the critic",
    "adherence": "adherence of films on the way",
    "film_motion": "motion of films on the way",
    "return_db": "own departure above another's, dB",
}
"""Figures of a log that are drawn, and what the picture calls them."""
BLOCK = 28
"""Steps of a block."""
ERRORS = 3.0

Curve = dict[str, list[tuple[int, float, float | None]]]
"""For each figure, the last step of a block, the mean, and its standard error if it has one."""


def curve_of(log: Path, block: int = BLOCK) -> Curve:
    """Means over blocks of steps; of lines that a resumed run made again, the last one counts.

    Raises:
        UsageError: the log holds nothing of a student.
    """
    lines = {int(line["step"]): line for line in read_json_lines(log)}
    if not any("critic_loss" in line for line in lines.values()):
        raise UsageError(f"{log} tells of no student", "give the log of stage dmd or cdmd")
    curve: Curve = {}
    for name in FIGURES:
        blocks: dict[int, list[float]] = {}
        for step, line in sorted(lines.items()):
            if name in line:
                blocks.setdefault((step - 1) // block, []).append(line[name])
        if blocks:
            curve[name] = [
                ((number + 1) * block, round(statistics.fmean(values), 5), _error(values))
                for number, values in blocks.items()
            ]
    return curve


def _error(values: Sequence[float]) -> float | None:
    """Of the mean; one value tells nothing of it."""
    if len(values) == 1:
        return None
    return round(statistics.stdev(values) / math.sqrt(len(values)), 5)


def facts_of(log: Path) -> dict[str, Any]:
    """A run: its steps, hours, and curve."""
    last = max(read_json_lines(log), key=lambda line: line["step"], default={})
    curve = curve_of(log)
    return {"steps": last["step"], "hours": round(last["seconds"] / 3600, 2), "curve": curve}


def compared(run: Curve, kept: Curve) -> list[tuple[str, int, float, float, float]]:
    """Figure, step, value of either, and how many standard errors lie between, for common blocks.

    Films on the way are left out: of one measure a block, nothing tells the error.
    """
    rows = []
    for name, blocks in run.items():
        before = {step: (mean, error) for step, mean, error in kept.get(name, [])}
        for step, mean, error in blocks:
            if step not in before:
                continue
            expected, other = before[step]
            if error and other:
                apart = abs(mean - expected) / math.hypot(error, other)
                rows.append((name, step, mean, expected, apart))
    return rows


def draw(runs: Mapping[str, Mapping[str, Any]], picture: Path) -> None:
    """An SVG with a panel for each figure and a line for each run."""
    names = [name for name in FIGURES if any(name in run["curve"] for run in runs.values())]
    size = (11, 2.4 * math.ceil(len(names) / 4))
    with svg_figure(picture, size, columns=4, font=8) as figure:
        for place, name in enumerate(names, 1):
            axes = figure.add_subplot(math.ceil(len(names) / 4), 4, place, title=FIGURES[name])
            for color, (run, facts) in enumerate(runs.items()):
                rows = facts["curve"].get(name, [])
                xs, ys = [row[0] for row in rows], [row[1] for row in rows]
                marker = "." if len(xs) < 3 else None  # a single point is no line
                axes.plot(xs, ys, color=f"C{color}", label=run, marker=marker)
            axes.set_xlabel("step")


def main(arguments: Sequence[str]) -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("runs", nargs="+", metavar="NAME=LOG")
    parser.add_argument("--svg", type=Path, help="where the picture goes")
    parser.add_argument("--json", type=Path, help="where the curves go")
    parser.add_argument("--against", type=Path, help="curves of earlier runs, by the same names")
    options = parser.parse_args(arguments)
    given = dict(run.partition("=")[::2] for run in options.runs)
    if "" in given.values():
        raise UsageError("each run is NAME=LOG", f"got {' '.join(options.runs)}")
    runs = {name: facts_of(Path(log)) for name, log in given.items()}
    for name, facts in runs.items():
        sys.stdout.write(f"{name}: {facts['steps']} steps in {facts['hours']} h\n")
    if options.against:
        kept = json.loads(options.against.read_text(encoding="utf-8"))
        if lacking := runs.keys() - kept.keys():
            raise UsageError(
                f"{options.against} has no run {' or '.join(sorted(lacking))}",
                f"its runs are {', '.join(kept)}",
            )
        rows = [
            (name, *row)
            for name, facts in runs.items()
            for row in compared(facts["curve"], kept[name]["curve"])
        ]
        heads = [("run", "figure", "step", "now", "before", "errors between")]
        told = [(a, b, str(c), f"{d:.3f}", f"{e:.3f}", f"{f:.1f}") for a, b, c, d, e, f in rows]
        sys.stdout.write("\n".join(aligned([*heads, *told])) + "\n")
        agree = sum(row[-1] <= ERRORS for row in rows)
        sys.stdout.write(f"{agree} of {len(rows)} agree within {ERRORS:g} standard errors\n")
    if options.svg:
        draw(runs, options.svg)
    if options.json:
        text = json.dumps(runs, separators=(",", ":"))
        options.json.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    from kept import run  # beside this file, when it is the script that runs

    run(main)
