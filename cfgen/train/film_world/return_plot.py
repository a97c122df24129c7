"""A picture of the return test. Needs matplotlib, which the extra `train` brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from cfgen.plain_text import printable
from cfgen.train.plot import svg_figure

_LINES = ("-", "--", "-.", ":")
"""There are ten colours, so the next ten curves have other lines."""


def plot_hits(rows: Sequence[Mapping[str, Any]], picture: Path) -> None:
    """Draw the hit rate of landmarks over the time away, with its interval of 95 percent.

    Args:
        rows: as `return_figures.rows_of` gives them, each with `label`: the name of its curve.
        picture: the SVG to write: a panel for each way, a curve for each label, the hit rate of
            the control, all curves taken together, dotted.
    """
    ways = list(dict.fromkeys(row["way"] for row in rows))
    labels = list(dict.fromkeys(row["label"] for row in rows))
    size = (4.2 * max(1, len(ways)), 3.0 + 0.11 * len(labels))
    with svg_figure(picture, size, columns=2, place="outside lower left") as figure:
        for number, way in enumerate(ways):
            axes = figure.add_subplot(1, len(ways), number + 1)
            _draw(axes, [row for row in rows if row["way"] == way], labels)
            axes.set_title(f"back by a {way}")
        if ways:
            figure.axes[0].set_ylabel("landmarks found again")


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> None:
    for number, label in enumerate(labels):
        curve = sorted(
            (row for row in rows if row["label"] == label), key=lambda row: float(row["away_s"])
        )
        away, hits = ([row[key] for row in curve] for key in ("away_s", "hit_rate"))
        ends = [
            (row["hit_rate"], row["hit_rate"])
            if row["hit_low"] is None
            else (row["hit_low"], row["hit_high"])
            for row in curve
        ]
        style = _LINES[number // 10 % len(_LINES)]
        axes.plot(away, hits, style, marker="o", color=f"C{number % 10}", label=_plain(label))
        lows, highs = [low for low, _ in ends], [high for _, high in ends]
        axes.fill_between(away, lows, highs, color=f"C{number % 10}", alpha=0.12, linewidth=0)
    times = sorted({row["away_s"] for row in rows})
    chance = [
        sum(row["control_rate"] for row in rows if row["away_s"] == each)
        / sum(row["away_s"] == each for row in rows)
        for each in times
    ]
    axes.plot(times, chance, color="0.5", linestyle=":", label="control: another place")
    axes.set_xscale("log", base=2)
    axes.set_xticks(times, [f"{each:g}" for each in times])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds away")


def _plain(label: str) -> str:
    """A label that a legend does not leave out, as it does one that begins with a line."""
    text = printable(label)
    return f" {text}" if text.startswith("_") else text
