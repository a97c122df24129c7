"""A picture of a training log. Needs matplotlib, which the extra `train` brings."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from cfgen.files.reading import read_text
from cfgen.files.writing import write_file

mpl.use("Agg")


def plot_log(log: Path, picture: Path) -> None:
    """Draw every figure of a JSONL log over its steps, each in a panel, with a running mean.

    Args:
        log: the log that `loop.train` writes.
        picture: the PNG to write.
    """
    lines = [json.loads(line) for line in read_text(log).splitlines()]
    names = list(dict.fromkeys(name for line in lines for name in line))
    names = [name for name in names if name not in ("step", "seconds")]
    figure = Figure(figsize=(6, 2.2 * len(names)), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, i + 1)
        steps = [line["step"] for line in lines if name in line]
        values = [line[name] for line in lines if name in line]
        window = max(1, len(values) // 50)
        means = [
            sum(values[max(0, j - window + 1) : j + 1]) / min(window, j + 1)
            for j in range(len(values))
        ]
        axes.plot(steps, values, color="0.8", linewidth=0.8)
        axes.plot(steps, means, color="C0")
        axes.set_ylabel(name)
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
    axes.set_xlabel("step")
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    write_file(picture, content.getvalue(), shared=True)
