"""Curves over the time of a film, as SVG that stands in the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300.0, 48.0
_PAD = 4.0
_LEAST_RANGE = 0.2
"""Share of the mean that the height stands for at least, so that noise looks small."""

CURVES = ("brightness", "contrast", "saturation", "detail", "motion")
"""Curves of `score.json`, in the order of the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A curve as the page draws it.

    Attributes:
        name: What it shows.
        path: The `d` of an SVG path in a box of `WIDTH` by `HEIGHT`.
        first: Its first value, as text.
        last: Its last value, as text.
        words: The curve in words, for who cannot see it.
        ratio: The late part over the early part, as text, or empty.
    """

    name: str
    path: str
    first: str
    last: str
    words: str
    ratio: str = ""


def curves_of(score: Mapping[str, object], seconds: float) -> list[Curve]:
    """The curves of a score that have at least two values.

    Args:
        score: What stands in `score.json`.
        seconds: Playing time of the film.
    """
    listed, summary = score.get("curves"), score.get("summary")
    drifts = summary.get("drift") if isinstance(summary, dict) else None
    found = []
    for name in CURVES:
        values = listed.get(name) if isinstance(listed, dict) else None
        if not isinstance(values, list):
            continue
        drift = drifts.get(name) if isinstance(drifts, dict) else None
        ratio = drift.get("ratio") if isinstance(drift, dict) else None
        shown = f"x{ratio:.2f}" if isinstance(ratio, int | float) else ""
        times = [min(index + 0.5, seconds) for index in range(len(values))]
        if curve := curve_of(name, times, values, seconds, ratio=shown):
            found.append(curve)
    return found


def curve_of(
    name: str,
    times: Sequence[float],
    values: Sequence[object],
    seconds: float,
    *,
    ratio: str = "",
    from_zero: bool = False,
) -> Curve | None:
    """A curve of values at times; None if fewer than two are numbers.

    Args:
        name: What it shows.
        times: Seconds of each value.
        values: Numbers, or None where nothing can be told, which leaves a gap.
        seconds: What the width stands for.
        ratio: As in `Curve`.
        from_zero: Whether the height begins at 0.
    """
    points = [
        (time, float(value)) if isinstance(value, int | float) else None
        for time, value in zip(times, values, strict=False)
    ]
    numbers = [point[1] for point in points if point]
    if len(numbers) < 2 or seconds <= 0:
        return None
    low, high = (0.0 if from_zero else min(numbers)), max(numbers)
    middle, half = (low + high) / 2, (high - low) / 2
    half = max(half, abs(middle) * _LEAST_RANGE / 2, 1e-9)
    if not from_zero:
        low = middle - half
    scale = (HEIGHT - 2 * _PAD) / (2 * half)
    drawn, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        x = point[0] / seconds * WIDTH
        y = HEIGHT - _PAD - (point[1] - low) * scale
        drawn.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    first, last = _figure(numbers[0]), _figure(numbers[-1])
    words = f"{name}: {first} at the start, {last} at the end, between {_figure(min(numbers))} and "
    return Curve(
        name=name,
        path="".join(drawn),
        first=first,
        last=last,
        words=words + _figure(max(numbers)),
        ratio=ratio,
    )


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
