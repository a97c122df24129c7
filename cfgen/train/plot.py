"""Pictures of trainings and of what they came to. Needs matplotlib, which extra `train` brings."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import matplotlib as mpl
from matplotlib.figure import Figure

from cfgen.files.reading import read_text
from cfgen.files.writing import write_file

mpl.use("Agg")


Place = Literal["outside lower left", "outside lower center"]


@contextmanager
def svg_figure(
    picture: Path,
    size: tuple[float, float],
    *,
    columns: int,
    place: Place = "outside lower center",
    font: float = 10,
) -> Iterator[Figure]:
    """A figure to draw panels on; then it is written, with the legend of its first panel below.

    Text stays text, a dollar a dollar, and the same drawing is the same bytes.

    Args:
        picture: the SVG to write.
        size: width and height in inches.
        columns: of the legend.
        place: where it stands.
        font: size of text in points.
    """
    with mpl.rc_context(
        {
            "svg.hashsalt": "cfgen",
            "svg.fonttype": "none",
            "text.parse_math": False,
            "font.size": font,
        }
    ):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        if figure.axes:
            handles, names = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, names, loc=place, ncols=columns, frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_file(picture, content.getvalue(), shared=True)


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
