"""What `cfgen score` says of a film, for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cfgen.cli.columns import labelled
from cfgen.plain_text import aligned
from cfgen.units import clock, count

if TYPE_CHECKING:
    from cfgen.metrics.table import Row
    from cfgen.scoring.api import Comparison, ScoredFilm
    from cfgen.scoring.embedding import Embedding
    from cfgen.scoring.settings import Compared

_DRIFTING = ("brightness", "contrast", "saturation", "detail", "motion")
_LATENTS = ("shift", "spread", "detail", "to_before", "to_first")
_ROW_S = 10


def lines_on(film: ScoredFilm) -> Iterator[str]:
    """Lines on one film: what it is, its tables, single figures, alarms."""
    source, frames = film.source, len(film.score.levels.change)
    size = f"{source.facts.width}x{source.facts.height}"
    yield from labelled("film", str(source.path))
    yield from labelled(
        "read as",
        f"{clock(float(frames / source.fps))}, {count(frames, 'frame')} of {size} at"
        f" {float(source.fps):.6g} a second, {source.codec} {source.pixel_format}",
    )
    for note in film.notes:
        yield from labelled("note", note)
    yield ""
    yield from _table(film)
    yield ""
    yield from _figures(film)
    if film.run is not None and film.run.latents is not None:
        yield ""
        yield from _latents(film)
    if film.embedding is not None:
        yield ""
        yield from _embedding(film, film.embedding)
    if film.against is not None:
        yield ""
        yield from _against(film.against)
    yield ""
    yield from labelled("alarms", "; ".join(film.alarms) or "none")


def _table(film: ScoredFilm) -> Iterator[str]:
    """Figures for every ten seconds, and how the last fifth of the film stands to the first."""
    rows = film.rows
    still, black = (any(getattr(row, name) for row in rows) for name in ("still_s", "black_s"))
    head = ["seconds", "luma", "contr.", "sat.", "detail", "motion", "flicker", "seams", "cuts"]
    lines = [[*head, *(["still"] if still else []), *(["black"] if black else [])]]
    for row in rows:
        cells = [
            _span(row),
            _number(row.brightness, 0),
            _number(row.contrast, 1),
            _number(row.saturation, 3),
            _number(row.detail, 2),
            _number(row.motion, 2),
            _number(row.flicker, 4),
            _number(row.seam_ratio, 2),
            str(row.cuts),
        ]
        cells += [f"{row.still_s:.1f}"] if still else []
        lines.append(cells + ([f"{row.black_s:.1f}"] if black else []))
    ratios = [_number(getattr(film.score.drift, name).ratio, 2) for name in _DRIFTING]
    lines.append(["drift", *ratios, *[""] * (len(lines[0]) - 1 - len(ratios))])
    yield from aligned(lines, right=range(len(lines[0])))


def _figures(film: ScoredFilm) -> Iterator[str]:
    """Figures of the whole film, motion first."""
    score, told = film.score, film.information
    parts = [f"motion {_number(score.motion, 2)}", f"flicker {_number(score.flicker, 4)}"]
    if score.seams is not None:
        parts += [f"seams {_number(score.seams.ratio, 2)}"]
        parts += [f"pulse {_number(score.seams.pulse, 2)}"]
    if told is not None:
        parts += [f"SI {told.si:.1f}", f"TI {told.ti:.1f}"]
    yield from labelled("in all", ", ".join(parts))
    if score.wrap is not None:
        psnr = _decibels(score.wrap.psnr)
        ratio = _number(score.wrap.ratio, 1)
        yield from labelled("loop", f"last to first frame {psnr}, {ratio} times the motion within")
    if score.cuts:
        shown = ", ".join(f"{float(frame / score.fps):.2f} s" for frame in score.cuts[:8])
        more = f" and {len(score.cuts) - 8} more" if len(score.cuts) > 8 else ""
        yield from labelled("cuts", f"at {shown}{more}")


def _latents(film: ScoredFilm) -> Iterator[str]:
    """The drift of the kept latents, each row the mean of the chunks that begin in it."""
    run, rows = film.run, film.rows
    assert run is not None
    assert run.latents is not None
    head = ["latents", "motion", *(name.replace("_", " ") for name in _LATENTS)]
    lines = [head]
    for number, row in enumerate(rows):
        mine = [i for i, second in enumerate(run.at_s) if second // _ROW_S == number]
        figures = [_mean([float(getattr(run.latents, name)[i]) for i in mine]) for name in _LATENTS]
        lines.append([_span(row), _number(row.motion, 2), *(_number(f, 3) for f in figures)])
    yield from aligned(lines, right=range(len(head)))


def _embedding(film: ScoredFilm, found: Embedding) -> Iterator[str]:
    """How alike frames are, beside the motion without which that says nothing."""
    lines = [[found.model, "motion", "to first"]]
    for number, row in enumerate(film.rows):
        seconds = found.to_first[number * _ROW_S : (number + 1) * _ROW_S]
        alike = _number(_mean(seconds.tolist()), 4)
        lines.append([_span(row), _number(row.motion, 2), alike])
    yield from aligned(lines, right=range(3))
    motion = f"motion {_number(found.motion, 2)}"
    clips = f"in clip {_number(found.in_clip, 4)}, clip to clip {_number(found.clip_to_clip, 4)}"
    yield from labelled("alike", f"{motion}: {clips}")
    yield from _by("to first", motion, found.to_first_by_mark, "s", scale=100)
    if found.to_text_by_mark is not None:
        yield from _by("to text", motion, found.to_text_by_mark, "s", scale=100)
    yield from _by("by lag", motion, found.by_lag, "frames", scale=1)
    if found.identity:
        parts = ", ".join(f"{name} {value:.4f}" for name, value in found.identity.items())
        yield from labelled("identity", f"{motion}: {parts}")


def _by(
    label: str, motion: str, values: Mapping[int, float], unit: str, *, scale: int
) -> Iterator[str]:
    if values:
        digits = 2 if scale > 1 else 4
        parts = (f"{key} {unit} {value * scale:.{digits}f}" for key, value in values.items())
        yield from labelled(label, f"{motion}: {', '.join(parts)}")


def _against(found: Comparison) -> Iterator[str]:
    likeness = found.likeness
    yield from labelled("against", str(found.source.path))
    vmaf = "" if found.vmaf is None else f", VMAF {found.vmaf:.2f}"
    ssim = float(likeness.ssim.mean())
    yield from labelled("", f"PSNR {_decibels(likeness.psnr)}, SSIM {ssim:.4f}{vmaf}")
    if likeness.first_unequal is None:
        yield from labelled("", "all frames are equal")
    else:
        yield from labelled(
            "", f"differs from frame {likeness.first_unequal} on, most at frame {likeness.worst}"
        )


def paired_lines(name: str, base: str, found: Sequence[Compared]) -> Iterator[str]:
    """One setting against the first, figure by figure.

    Args:
        name: The setting.
        base: The first one.
        found: Its figures; motion is the first of them.
    """
    from cfgen.scoring.settings import DIRECTIONS

    first = found[0].paired
    pairs = f"{count(first.pairs, 'pair')} of {count(first.prompts, 'prompt')}"
    yield from labelled("compared", f"{name} with {base}, {pairs}")
    lines = [["figure", "first", "this", "change", "95 % interval", ""]]
    for row in found:
        paired = row.paired
        sure = "told apart" if paired.told_apart else ""
        lines.append(
            [
                f"{row.figure}{f' ({way})' if (way := DIRECTIONS[row.figure]) else ''}",
                f"{row.base:.4g}",
                f"{row.other:.4g}",
                f"{paired.difference:+.3g}",
                f"{paired.low:+.3g} .. {paired.high:+.3g}",
                sure,
            ]
        )
    yield from aligned(lines, right=range(1, 5))


def _span(row: Row) -> str:
    return f"{row.from_s:.0f}-{row.to_s:.0f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _decibels(value: float) -> str:
    return f"{value:.2f} dB" if math.isfinite(value) else "infinite (equal)"


def _mean(values: Sequence[float]) -> float | None:
    counted = [value for value in values if not math.isnan(value)]
    return sum(counted) / len(counted) if counted else None
