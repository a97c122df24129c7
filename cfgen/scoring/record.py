"""`score.json`: what was found of a film, written beside it for pages and programs.

It lies in the film's run folder; a film without one has it beside it, ``clip.mp4`` as
``clip.mp4.score.json``. Numbers are finite, or null where they cannot be told; times are in seconds
from the start of the film, levels from 0 to 255, saturation from 0 to 1. Within a version of the
layout keys are added only, and mean what they meant.

    schema      cfgen.score/1
    film        name of the film's file
    provenance  the file as it was scored (sha256, codec, lossy, frames, fps, size), what read it,
                where chunks begin, prompt and seed if they are known, and notes
    summary     figures of the whole film; `drift` has for each curve the ratio of its last fifth to
                seconds 4 to 8, of seconds 38 to 48 to these, and the difference of its ends
    curves      brightness, contrast, saturation, detail and motion, a value a second
    table       the same and more, a row for ten seconds
    events      cuts, freezes and black
    latents     how the kept latents drift, a value a chunk, or null
    alarms      a sentence each; none if the film holds
    against     the film against a reference, or null
    embedding   what an embedder says, or null
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from cfgen import __version__
from cfgen.errors import OutputRefused
from cfgen.files.reading import read_text
from cfgen.files.writing import disk_errors, json_bytes, sha256_of, write_file
from cfgen.metrics.drift import STRIDE, Drift, per_second
from cfgen.metrics.events import Span
from cfgen.runs.folder import is_run
from cfgen.scoring.api import Comparison, ScoredFilm, by_second_psnr
from cfgen.scoring.embedding import Embedding
from cfgen.scoring.runs import RunFacts
from cfgen.video.output import run_of

SCHEMA = "cfgen.score/1"
_CURVES = ("brightness", "contrast", "saturation", "detail", "motion")


def score_file_of(film: Path) -> Path:
    """Where the score of a film lies."""
    run = run_of(film)
    return run / "score.json" if is_run(run) else film.with_name(f"{film.name}.score.json")


def read_score(film: Path) -> dict[str, object] | None:
    """The score of a film, as the module describes it.

    Returns:
        None if there is none, it is of another version, or not of the film that stands there now.
    """
    try:
        found = json.loads(read_text(score_file_of(film)))
        current = found["schema"] == SCHEMA and found["provenance"]["sha256"] == sha256_of(film)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if current else None


def write_score(scored: ScoredFilm, path: Path | None = None) -> Path:
    """Write down what was found of a film; an earlier score is replaced.

    Args:
        scored: What was found.
        path: Where to; beside the film by default.

    Returns:
        The file.

    Raises:
        OutputRefused: Something else stands there.
        BudgetError, WriterError: The disk refused.
    """
    target = path or score_file_of(scored.source.path)
    if target.exists() and not _is_score(target):
        raise OutputRefused(
            f"{target} is there and is no score", "move it away, or choose another file with -o"
        )
    with disk_errors(target):
        write_file(target, [json_bytes(score_record(scored), indent=1), b"\n"])
    return target


def score_record(scored: ScoredFilm) -> dict[str, object]:
    """What was found of a film, as plain values; the module describes them."""
    score = scored.score
    seams, wrap, told = score.seams, score.wrap, scored.information
    return {
        "schema": SCHEMA,
        "film": scored.source.path.name,
        "provenance": _provenance(scored),
        "summary": {
            "motion": score.motion,
            "flicker": score.flicker,
            "seam_ratio": None if seams is None else seams.ratio,
            "seam_worst_frame": None if seams is None else seams.worst,
            "seam_pulse": None if seams is None else seams.pulse,
            "wrap_psnr_db": None if wrap is None else _finite(wrap.psnr),
            "wrap_ratio": None if wrap is None else wrap.ratio,
            "si": None if told is None else told.si,
            "ti": None if told is None else told.ti,
            "drift": {name: _drift(getattr(score.drift, name)) for name in _CURVES},
        },
        "curves": {name: _list(getattr(score.drift, name).seconds) for name in _CURVES},
        "table": [asdict(row) for row in scored.rows],
        "events": {
            "cuts": [{"frame": frame, "s": float(frame / score.fps)} for frame in score.cuts],
            "freezes": [_span(span, scored) for span in score.freezes],
            "black": [_span(span, scored) for span in score.black],
        },
        "latents": _latents(scored.run),
        "alarms": list(scored.alarms),
        "against": None if scored.against is None else _against(scored.against),
        "embedding": None if scored.embedding is None else _embedding(scored.embedding),
    }


def _provenance(scored: ScoredFilm) -> dict[str, object]:
    source, grid = scored.source, scored.score.grid
    frames = len(scored.score.levels.change)
    by_run = scored.run is not None and scored.run.grid is grid
    return {
        "sha256": source.sha256,
        "nbytes": source.nbytes,
        "scored": datetime.now(UTC).isoformat(timespec="seconds"),
        "cfgen_version": __version__,
        "ffmpeg_version": source.ffmpeg.version,
        "codec": source.codec,
        "pixel_format": source.pixel_format,
        "lossy": source.lossy,
        "quality": source.quality,
        "frames": frames,
        "fps": float(source.fps),
        "width": source.facts.width,
        "height": source.facts.height,
        "seconds": float(frames / source.fps),
        "level_stride": STRIDE,
        "chunk_starts": None if grid is None else grid.starts(frames).tolist(),
        "chunk_frames": None if grid is None else grid.size,
        "chunks_by": None if grid is None else "run" if by_run else "flag",
        "prompt": source.prompt,
        "seed": source.seed,
        "notes": list(scored.notes),
    }


def _drift(drift: Drift) -> dict[str, float | None]:
    return {"ratio": drift.ratio, "late_ratio": drift.late_ratio, "ends": drift.ends}


def _span(span: Span, scored: ScoredFilm) -> dict[str, float]:
    fps = scored.score.fps
    return {"from_s": float(span.first / fps), "to_s": float(span.stop / fps)}


def _latents(run: RunFacts | None) -> dict[str, object] | None:
    if run is None or run.latents is None:
        return None
    return {"at_s": list(run.at_s)} | {
        name: _list(getattr(run.latents, name))
        for name in ("shift", "spread", "detail", "to_before", "to_first")
    }


def _against(found: Comparison) -> dict[str, object]:
    likeness = found.likeness
    return {
        "film": found.source.path.name,
        "sha256": found.source.sha256,
        "psnr_db": _finite(likeness.psnr),
        "ssim": float(likeness.ssim.mean()),
        "vmaf": found.vmaf,
        "worst_frame": likeness.worst,
        "first_unequal_frame": likeness.first_unequal,
        "psnr_db_by_second": by_second_psnr(found),
        "ssim_by_second": _list(per_second(likeness.ssim, found.source.fps)),
    }


def _embedding(found: Embedding) -> dict[str, object]:
    names = ("model", "folder", "sha256", "motion", "in_clip", "clip_to_clip", "identity")
    text = found.to_text_by_mark
    return {name: getattr(found, name) for name in names} | {
        "to_first_by_mark": _keyed(found.to_first_by_mark),
        "to_text_by_mark": None if text is None else _keyed(text),
        "by_lag": _keyed(found.by_lag),
        "to_first_by_second": _list(found.to_first),
    }


def _keyed(values: Mapping[int, float]) -> dict[str, float]:
    return {str(key): value for key, value in values.items()}


def _list(values: Iterable[float]) -> list[float | None]:
    return [_finite(float(value)) for value in values]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_score(path: Path) -> bool:
    try:
        schema = json.loads(read_text(path))["schema"]
        return isinstance(schema, str) and schema.startswith("cfgen.score/")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
