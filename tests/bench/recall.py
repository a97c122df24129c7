"""What memory saves over a training of the base: a true past against one of another film.

    python tests/bench/recall.py mini-training/base/log.jsonl --svg recall.svg --json recall.json

The log is that of the base stage of `cfgen train mini`, which measures recall every few hundred
steps: the flow error of cells that come back to view, at three noise levels, with the film's own
past in memory (`own`), with another film's (`foreign`), and of a film that never left
(`never_left`). `recall` is (foreign - own) / (foreign - never_left): 1 if memory gives all that it
could, 0 if nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cfgen.errors import UsageError
from cfgen.files.json_lines import read_json_lines
from cfgen.train.plot import svg_figure

PASTS = {
    "foreign": ("C3", "the past of another film"),
    "own": ("C0", "the film's own past"),
    "never_left": ("0.6", "a film that never left"),
}
"""A figure of the log: its colour and its name in the picture."""


def measured(log: Path) -> list[dict[str, float]]:
    """The lines of a log that hold recall, by step, with the figures of recall alone."""
    wanted = ("step", "recall_", *(f"{past}_" for past in PASTS))
    rows = [
        {name: value for name, value in line.items() if name.startswith(wanted)}
        for line in read_json_lines(log)
        if any(name.startswith("recall_") for name in line)
    ]
    if not rows:
        raise UsageError(f"{log} holds no recall", "give the log of stage base, which measures it")
    return rows


def draw(rows: list[dict[str, float]], picture: Path) -> None:
    """An SVG with a panel for each noise level."""
    levels = [name.removeprefix("recall_") for name in rows[0] if name.startswith("recall_")]
    with svg_figure(picture, (3 * len(levels), 3.2), columns=3) as figure:
        for number, level in enumerate(levels):
            axes = figure.add_subplot(1, len(levels), number + 1, title=f"noise {level}")
            for past, (color, label) in PASTS.items():
                errors = [row[f"{past}_{level}"] for row in rows]
                axes.plot([row["step"] for row in rows], errors, color=color, label=label)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("step")
        figure.axes[0].set_ylabel("flow error")


def main(arguments: list[str]) -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("log", type=Path)
    parser.add_argument("--svg", type=Path, help="where the picture goes")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(arguments)
    rows = measured(options.log)
    for row in rows:
        told = " ".join(f"{k}={v:.2f}" for k, v in row.items() if k.startswith("recall_"))
        sys.stdout.write(f"step {row['step']}: {told}\n")
    if options.svg:
        draw(rows, options.svg)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from kept import run  # beside this file, when it is the script that runs

    run(main)
