"""Frames and sound of films, at another rate and size than they have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from cfgen.errors import InputRefused, WriterError
from cfgen.video.ffmpeg import Ffmpeg, FfmpegRun
from cfgen.video.ffmpeg_graph import argv_of, graph_module, shielded
from cfgen.video.measure import film_input
from cfgen.video.pictures import Fit
from cfgen.video.probe import FilmFacts

_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_SEEK_BEFORE_S = 10
"""Seconds before a section at which reading begins: a frame may be shown for long."""

SOUND_RATE = 48_000
LOSSLESS_SOUND = {"format": "flac", "acodec": "flac", "sample_fmt": "s16", "flags": "bitexact"}
"""How sound is kept until the film is joined, which encodes it."""
SOUND_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a film, in frames at the rate that it is read at; half open.

    Attributes:
        first: First frame.
        stop: The frame after the last, or None for the end of the film.
    """

    first: int = 0
    stop: int | None = None


def read_frames(
    ffmpeg: Ffmpeg,
    path: Path,
    *,
    fps: Fraction,
    width: int,
    height: int,
    section: Section = Section(),
    fit: Fit = "crop",
    facts: FilmFacts | None = None,
) -> Iterator[bytes]:
    """Yield the frames of a film's first picture stream, resampled, resized and fitted.

    A frame stands for the time at which it is shown: others are dropped or repeated.

    Args:
        ffmpeg: The ffmpeg to use.
        path: The file.
        fps: Frames per second.
        width: Width in pixels.
        height: Height in pixels.
        section: Which frames.
        fit: Whether the picture is scaled until it covers the size asked for, and what stands out
            on either side is cut off, or until it is covered, and black is added.
        facts: What `probe` says of it, to read fields and colours rightly.

    Yields:
        Each frame as rgb24, rows from the top, of height * width * 3 bytes.

    Raises:
        WriterError: ffmpeg cannot read the file, or not to its end.
    """
    choose = "max" if fit == "crop" else "min"
    matrix = {"in_color_matrix": facts.matrix} if facts is not None and facts.matrix else {}
    sized = (
        _resampled(path, fps, section, facts)
        .filter(
            "scale",
            f"{choose}({width},round({height}*dar))",
            f"{choose}({height},round({width}/dar))",
            **matrix,
        )
        .filter("setsar", 1)
    )
    framed = (
        sized.filter("crop", width, height)
        if fit == "crop"
        else sized.filter("pad", width, height, "(ow-iw)/2", "(oh-ih)/2")
    )
    output = framed.output("pipe:1", format="rawvideo", pix_fmt="rgb24", sws_flags=_FLAGS)
    argv = argv_of(output, [*ffmpeg.prefix(), "-xerror"])
    with FfmpegRun(argv, purpose=f"reading {path.name}", read=True) as run:
        yield from run.blocks(height * width * 3)
        run.finish()


def count_frames(
    ffmpeg: Ffmpeg, path: Path, *, fps: Fraction, section: Section, facts: FilmFacts
) -> int:
    """How many frames `read_frames` gives.

    Raises:
        WriterError: ffmpeg cannot read the file, or not to its end.
    """
    output = (
        _resampled(path, fps, section, facts)
        .filter("scale", 2, 2)
        .output("pipe:1", format="rawvideo", pix_fmt="gray")
    )
    argv = argv_of(output, [*ffmpeg.prefix(), "-xerror"])
    with FfmpegRun(argv, purpose=f"reading {path.name}", read=True) as run:
        found = sum(len(block) for block in run.blocks(1 << 16))
        run.finish()
    return found // 4


def read_sound(
    ffmpeg: Ffmpeg, path: Path, *, begins_s: Fraction, ends_s: Fraction
) -> Iterator[bytes]:
    """Yield a part of a film's first sound stream as FLAC, with two channels.

    Args:
        ffmpeg: The ffmpeg to use.
        path: The file.
        begins_s: Where the part begins, in seconds.
        ends_s: Where it ends.

    Raises:
        WriterError: ffmpeg cannot read the file, or not to its end.
    """
    seek = Fraction(max(0, math.floor(begins_s) - _SEEK_BEFORE_S))
    source = graph_module().input(shielded(f"file:{path.absolute()}"), **_seeking(seek))["a:0"]
    output = (
        source.filter("aresample", SOUND_RATE, **{"async": 1}, first_pts=0)
        .filter("atrim", start=f"{float(begins_s - seek):.6f}", end=f"{float(ends_s - seek):.6f}")
        .filter("asetpts", "PTS-STARTPTS")
        .output("pipe:1", ac=2, **LOSSLESS_SOUND)
    )
    argv = argv_of(output, [*ffmpeg.prefix(), "-xerror"])
    with FfmpegRun(argv, purpose=f"reading the sound of {path.name}", read=True) as run:
        yield from run.blocks(SOUND_BLOCK)
        run.finish()


def _resampled(path: Path, fps: Fraction, section: Section, facts: FilmFacts | None) -> Any:
    """The frames of a section at a rate, upright."""
    # A multiple of a frame, so that frames fall on the same times wherever reading begins.
    skipped = max(0, section.first - math.ceil(_SEEK_BEFORE_S * fps))
    stream = film_input(path, fps, **_seeking(skipped / fps))["V:0"]
    if facts is not None and facts.interlaced:
        stream = stream.filter("yadif", deint="interlaced")
    stream = stream.filter("fps", fps=str(fps), start_time=0)
    end = {} if section.stop is None else {"end_frame": section.stop - skipped}
    if section != Section():
        stream = stream.filter("trim", start_frame=section.first - skipped, **end)
        # Or what writes frames fills the time before the first with copies of it.
        stream = stream.filter("setpts", "PTS-STARTPTS")
    return stream


def _seeking(seconds: Fraction) -> dict[str, str]:
    return {"ss": f"{float(seconds):.6f}"} if seconds else {}


def input_refused(path: Path, error: WriterError, whole: str = "a whole film") -> InputRefused:
    """What is told of a file that ffmpeg cannot read to its end; `whole` is to be given instead."""
    reason = error.stderr_tail[-1].strip() if error.stderr_tail else error.message
    return InputRefused(f"{path} cannot be read to its end: {reason}", f"give {whole}")
