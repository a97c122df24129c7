"""The frames of a video file: imageio-ffmpeg ships no ffprobe, so ffmpeg itself counts them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from cfgen.video.ffmpeg import Ffmpeg, FfmpegRun
from cfgen.video.ffmpeg_graph import argv_of, graph_module, shielded
from cfgen.video.formats import FRAME_NAME


@dataclass(frozen=True, slots=True)
class Measured:
    """What ffmpeg finds in the first video stream of a file.

    Attributes:
        frames: Number of frames.
        width: Width in pixels, 0 if there is no frame.
        height: Height in pixels, 0 if there is no frame.
        fps: Frames per second, or None unless frame n stands at exactly n / fps and lasts 1 / fps.
    """

    frames: int
    width: int
    height: int
    fps: Fraction | None

    def __str__(self) -> str:
        rate = "uneven" if self.fps is None else self.fps
        return f"{self.frames} frames of {self.width}x{self.height} at {rate} fps"


def measure(
    ffmpeg: Ffmpeg,
    path: Path,
    *,
    decode: bool,
    near: Fraction | None = None,
    rate: Fraction | None = None,
) -> Measured:
    """Count the frames of a video file and read their size and timing.

    Args:
        ffmpeg: The ffmpeg to use.
        path: The file.
        decode: Whether to decode every frame, and fail at the first that does not decode, or
            only to read the packets, which is quicker and shows the timestamps as stored.
        near: A frame rate, for files that round times: frames within a tick of it have it.
        rate: Frames per second, of a folder of frames.

    Raises:
        WriterError: ffmpeg cannot read the file.
    """
    options = {} if decode else {"vcodec": "copy"}
    stream = film_input(path, rate)["v:0"]
    output = stream.output("pipe:1", format="framecrc", **options)
    argv = argv_of(output, [*ffmpeg.prefix(), "-xerror"])
    with FfmpegRun(argv, purpose=f"reading {path.name}", read=True) as run:
        measured = _parse_framecrc(run.lines(), near)
        run.finish()
    return measured


def film_input(path: Path, rate: Fraction | None = None, **options: object) -> Any:
    """A film as an input of a graph, a folder of frames too, which play at a rate."""
    place = f"file:{path.absolute()}"
    if not path.is_dir():
        return graph_module().input(shielded(place), **options)
    # A percent sign in the name of a folder stands for no number.
    named = f"{place.replace('%', '%%')}/{FRAME_NAME}"
    told = {"format": "image2", "framerate": str(rate), **options}
    return graph_module().input(shielded(named), **told)


def _parse_framecrc(lines: Iterable[str], near: Fraction | None = None) -> Measured:
    """Parse lines of ``stream, dts, pts, duration, size, checksum`` and their ``#`` header."""
    header: dict[str, str] = {}
    frames = 0
    interval: int | None = None
    even = True
    for line in lines:
        if line.startswith("#"):
            key, _, value = line[1:].partition(":")
            header[key] = value.strip()
        elif line:
            pts, duration = (int(field) for field in line.split(",")[2:4])
            interval = duration if interval is None else interval
            if near is None:
                even = even and duration == interval and pts == frames * interval
            else:
                even = even and abs(pts - frames / near / Fraction(header["tb 0"])) < 1
            frames += 1
    width, height = (int(side) for side in header.get("dimensions 0", "0x0").split("x"))
    if near is not None:
        return Measured(frames, width, height, near if even and frames else None)
    seconds = (interval or 0) * Fraction(header.get("tb 0", "0"))
    return Measured(frames, width, height, 1 / seconds if even and seconds else None)
