"""The sound of a video from a file: cut, looped or faded, and exactly as long as the picture."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from cfgen.errors import InputRefused
from cfgen.files.reading import open_binary
from cfgen.video.ffmpeg import Ffmpeg, FfmpegRun, described
from cfgen.video.ffmpeg_graph import argv_of, graph_module, shielded
from cfgen.video.probe import streams_of
from cfgen.video.reading import LOSSLESS_SOUND, SOUND_BLOCK, SOUND_RATE

_MOST = 2**31 - 1
"""Samples that ffmpeg loops over at most: 12 hours."""


def require_sound(ffmpeg: Ffmpeg, path: Path) -> None:
    """Refuse a file that has no sound.

    Raises:
        InputRefused: It cannot be read, or has none.
    """
    try:
        open_binary(path).close()
    except (OSError, ValueError) as error:
        raise InputRefused(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    if not any(kind == "Audio" for kind, _ in streams_of(described(ffmpeg, path))):
        raise InputRefused(f"{path} has no sound that ffmpeg reads", "give a file with sound")


def count_samples(ffmpeg: Ffmpeg, path: Path) -> int:
    """Samples of a file's first sound stream, at `SOUND_RATE`.

    Raises:
        WriterError: ffmpeg cannot read the file, or not to its end.
    """
    output = _sound(path).output("pipe:1", format="s16le", ac=1)
    argv = argv_of(output, [*ffmpeg.prefix(), "-xerror"])
    with FfmpegRun(argv, purpose=f"reading the sound of {path.name}", read=True) as run:
        nbytes = sum(len(block) for block in run.blocks(SOUND_BLOCK))
        run.finish()
    return nbytes // 2


def read_track(
    ffmpeg: Ffmpeg,
    path: Path,
    *,
    first: int,
    seconds: Fraction,
    loop: bool,
    fade: tuple[Fraction, Fraction] | None = None,
) -> Iterator[bytes]:
    """Yield the sound for a video as FLAC, in one or two channels, as loud as it is.

    It is as long as the video, to the sample: silence follows a sound that is shorter.

    Args:
        ffmpeg: The ffmpeg to use.
        path: The file.
        first: The sample of it that the video begins with, at `SOUND_RATE`.
        seconds: Playing time of the video.
        loop: Whether the sound begins again when it ends.
        fade: When it begins to fade out, in seconds of the video, and how long that takes.

    Raises:
        WriterError: ffmpeg cannot read the file, or not to its end.
    """
    samples = int(seconds * SOUND_RATE)
    track = _sound(path).filter("aformat", channel_layouts="mono|stereo")
    track = track.filter("atrim", start_sample=first).filter("asetpts", "PTS-STARTPTS")
    if loop:
        track = track.filter("aloop", loop=-1, size=min(samples, _MOST))
    if fade is not None:
        begins, lasts = (f"{float(each):.6f}" for each in fade)
        track = track.filter("afade", type="out", start_time=begins, duration=lasts)
    track = track.filter("apad").filter("atrim", end_sample=samples)
    output = track.output("pipe:1", **LOSSLESS_SOUND)
    argv = argv_of(output, [*ffmpeg.prefix(), "-xerror"])
    with FfmpegRun(argv, purpose=f"reading the sound of {path.name}", read=True) as run:
        yield from run.blocks(SOUND_BLOCK)
        run.finish()


def _sound(path: Path) -> Any:
    """The first sound stream of a file at `SOUND_RATE`, gaps in it as silence."""
    source = graph_module().input(shielded(f"file:{path.absolute()}"))["a:0"]
    return source.filter("aresample", SOUND_RATE, **{"async": 1}, first_pts=0)
