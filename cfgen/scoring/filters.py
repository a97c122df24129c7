"""Figures that ffmpeg's own filters give, where the ffmpeg at hand has them: VMAF, SI and TI."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cfgen.errors import WriterError
from cfgen.files.reading import read_text
from cfgen.scoring.source import FilmSource
from cfgen.video.ffmpeg import Ffmpeg, FfmpegRun
from cfgen.video.ffmpeg_graph import argv_of, graph_module
from cfgen.video.measure import film_input

_SITI = re.compile(r"lavfi\.siti\.(si|ti)=([0-9.eE+-]+)")
_PIXELS = "yuv420p"
_LOG = "vmaf.json"


@dataclass(frozen=True, slots=True)
class Information:
    """How much there is to see in a film, by ITU-T P.910.

    Attributes:
        si: Spatial information, mean over frames.
        ti: Temporal information, mean over frames but the first.
    """

    si: float
    ti: float


def filters_of(ffmpeg: Ffmpeg) -> frozenset[str]:
    """The names of the filters that an ffmpeg was built with.

    Raises:
        WriterError: It does not say.
    """
    argv = [str(ffmpeg.path), "-hide_banner", "-filters"]
    with FfmpegRun(argv, purpose="listing its filters", read=True) as run:
        rows = [line.split() for line in run.lines()]
        run.finish()
    return frozenset(row[1] for row in rows if len(row) > 2 and "->" in row[2])


def information(film: FilmSource) -> Information | None:
    """SI and TI of a film of two frames or more.

    Raises:
        WriterError: ffmpeg cannot read it.
    """
    output = (
        _picture(film)
        .filter("siti")
        .filter("metadata", mode="print", file="pipe:1")
        .output("pipe:2", format="null")
    )
    argv = argv_of(output, film.ffmpeg.prefix())
    found: dict[str, list[float]] = {"si": [], "ti": []}
    with FfmpegRun(argv, purpose=f"measuring {film.path.name}", read=True) as run:
        for line in run.lines():
            if match := _SITI.search(line):
                found[match[1]].append(float(match[2]))
        run.finish()
    if len(found["si"]) < 2:
        return None
    return Information(si=fmean(found["si"]), ti=fmean(found["ti"][1:]))


def vmaf(film: FilmSource, reference: FilmSource) -> float:
    """VMAF of a film against a reference of the same size and rate, by the model in ffmpeg.

    Raises:
        WriterError: ffmpeg cannot compare them.
    """
    # A graph would hold two equal inputs, of a film against itself, as one.
    other = _picture(reference, itsoffset=0)
    with tempfile.TemporaryDirectory(prefix="cfgen-") as folder:
        output = (
            graph_module()
            .filter([_picture(film), other], "libvmaf", log_fmt="json", log_path=_LOG)
            .output("pipe:1", format="null")
        )
        argv = argv_of(output, film.ffmpeg.prefix())
        with FfmpegRun(argv, purpose="computing VMAF", cwd=Path(folder)) as run:
            run.finish()
        try:
            log = json.loads(read_text(Path(folder) / _LOG))
            return float(log["pooled_metrics"]["vmaf"]["mean"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WriterError(f"ffmpeg gave no VMAF: {error}") from None


def _picture(film: FilmSource, **options: object) -> Any:
    """The frames of a film as they come, numbered anew, in the form that the filters take."""
    return (
        film_input(film.path, film.fps, **options)["V:0"]
        .filter("scale", film.facts.width, film.facts.height)
        .filter("setsar", 1)
        .filter("format", _PIXELS)
        .filter("settb", "1/25")
        .filter("setpts", "N")
    )
