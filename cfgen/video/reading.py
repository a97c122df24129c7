"""Frames of video files, at another rate and size than they have."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from cfgen.video.ffmpeg import Ffmpeg, FfmpegRun
from cfgen.video.ffmpeg_graph import argv_of, graph_module, shielded

_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


def read_frames(
    ffmpeg: Ffmpeg, path: Path, *, fps: Fraction, width: int, height: int
) -> Iterator[bytes]:
    """Yield the frames of a file's first video stream, resampled, resized and cropped.

    A frame stands for the time at which it is shown: others are dropped or repeated. The picture is
    scaled until it covers the size asked for, and what stands out on either side is cut off.

    Args:
        ffmpeg: The ffmpeg to use.
        path: The file.
        fps: Frames per second.
        width: Width in pixels.
        height: Height in pixels.

    Yields:
        Each frame as rgb24, rows from the top, of height * width * 3 bytes.

    Raises:
        WriterError: ffmpeg cannot read the file, or not to its end.
    """
    source = graph_module().input(shielded(f"file:{path.absolute()}"))["v:0"]
    output = (
        source.filter("fps", fps=str(fps), start_time=0)
        .filter("scale", f"max({width},round({height}*dar))", f"max({height},round({width}/dar))")
        .filter("setsar", 1)
        .filter("crop", width, height)
        .output("pipe:1", format="rawvideo", pix_fmt="rgb24", sws_flags=_FLAGS)
    )
    argv = argv_of(output, [*ffmpeg.prefix(), "-xerror"])
    with FfmpegRun(argv, purpose=f"reading {path.name}", read=True) as run:
        yield from run.blocks(height * width * 3)
        run.finish()
