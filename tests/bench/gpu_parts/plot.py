"""Results as one small picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_parts.report import verdict
from gpu_parts.store import Record

Axes = Any


def plot(content: Record, file: Path) -> bool:
    """Write the picture; False if there is nothing to show yet."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(content["cases"].values())
    panels = [
        (draw, some)
        for name, draw in PANELS.items()
        if (some := [case for case in cases if case["slice"] == name and _timed(case)])
    ]
    if not panels:
        return False
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5 * len(panels), 4), squeeze=False, layout="constrained"
    )
    for (draw, some), ax in zip(panels, axes[0], strict=True):
        draw(ax, some)
    reasons = {why for _, some in panels for case in some if (why := verdict(content, case))}
    device = content["runs"][-1]["device"]
    figure.suptitle(" - ".join([device, *sorted(reasons)[:1]]), fontsize=9)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)
    return True


def _timed(case: Record) -> list[Record]:
    return [entry for entry in case["contestants"] if "ms" in entry]


def _attention(ax: Axes, cases: list[Record]) -> None:
    """Rates over key frames, of one chunk at the usual resolution."""
    first = cases[0]["size"]
    same = [c for c in cases if all(c["size"][k] == first[k] for k in ("frames", "tokens"))]
    lines: dict[str, list[tuple[int, float]]] = {}
    for case in same:
        frames = case["size"]["context"] + case["size"]["frames"]
        for entry in _timed(case):
            lines.setdefault(entry["name"], []).append((frames, entry["tera_per_s"]))
    for name, points in lines.items():
        ours = name.startswith("ours")
        ax.plot(*zip(*sorted(points), strict=True), "o-" if ours else ".--", label=name)
    ax.set(title="attention", xlabel="key frames", ylabel="TFLOP/s", ylim=(0, None))
    ax.legend(fontsize=6, ncols=2)


def _shares(ax: Axes, cases: list[Record]) -> None:
    """Share of the copy ceiling of each fused op."""
    names = [case["name"] for case in cases]
    for index, way in enumerate(("eager", "compile", "ours")):
        shares = [
            next((e.get("percent", 0) for e in _timed(case) if e["name"] == way), 0)
            for case in cases
        ]
        ax.barh([at + 0.27 * index for at in range(len(names))], shares, 0.25, label=way)
    ax.set_yticks(range(len(names)), names, fontsize=6)
    ax.set(title="fused ops", xlabel="% of copy bandwidth")
    ax.legend(fontsize=6)


def _chunks(ax: Axes, cases: list[Record]) -> None:
    """Milliseconds of a chunk."""
    bars = [(f"{e['name']}, {case['name']}", e["ms"]) for case in cases for e in _timed(case)]
    ax.barh(range(len(bars)), [ms for _, ms in bars])
    ax.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=6)
    ax.set(title="chunks", xlabel="ms")


PANELS: dict[str, Callable[[Axes, list[Record]], None]] = {
    "k1": _attention,
    "k2": _shares,
    "s1": _chunks,
    "s2": _chunks,
}
