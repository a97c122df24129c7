"""What can be seen of a film while it is rendered: a film that grows, and its newest frame.

The film is a fragmented mp4 with one frame a fragment: whatever is there of it plays, in players
and in browsers, while more is added.
"""

from __future__ import annotations

import io
import struct
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cfgen.errors import WriterError
from cfgen.files.reading import open_binary
from cfgen.files.writing import append, create, disk_errors, open_update, write_file
from cfgen.video.encoding import exact_fps
from cfgen.video.ffmpeg import Ffmpeg, FfmpegRun, require_encoder
from cfgen.video.ffmpeg_graph import argv_of, graph_module

Frames = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

FILM = "preview.mp4"
PICTURE = "preview.jpg"

_ENCODER = "libx264"
_MOVFLAGS = "+empty_moov+default_base_moof+frag_every_frame+skip_trailer"
_TICKS = 100
"""Ticks in a unit of time of the frame rate's fraction."""
_KEYFRAME_INTERVAL_S = 2
_JPEG_QUALITY = 85
_HEADER = 8
_BLOCK_NBYTES = 1 << 14


class Preview:
    """The preview in a run folder: `FILM` and `PICTURE`.

    Args:
        folder: The run folder; it need not be there before `write`.
        width: Width of frames in pixels.
        height: Height of frames in pixels.
        fps: Playback rate.
        ffmpeg: The ffmpeg to use.

    Raises:
        UsageError: The rate cannot be used.
        FfmpegMissing: The ffmpeg lacks H.264, which every player and browser plays.
    """

    def __init__(
        self, folder: Path, *, width: int, height: int, fps: float | Fraction, ffmpeg: Ffmpeg
    ) -> None:
        require_encoder(ffmpeg, _ENCODER)
        self.film, self.picture = folder / FILM, folder / PICTURE
        self._size, self._fps, self._ffmpeg = (width, height), exact_fps(fps), ffmpeg
        self._run: FfmpegRun | None = None
        self._failed: list[OSError | WriterError] = []

    def write(self, frames: Frames, first: int) -> None:
        """Add frames to the film, and keep the newest as the picture.

        The first call cuts off what an earlier session added from these frames on.

        Args:
            frames: RGB, full range, [n, height, width, 3].
            first: Number of the first of them in the film.

        Raises:
            WriterError, BudgetError: ffmpeg or the disk failed.
        """
        shown = frames if frames.dtype == np.uint8 else (frames >> 8).astype(np.uint8)
        if self._run is None:
            with disk_errors(self.film):
                kept = _cut(self.film, first)
            self._run = self._started(first, new=not kept)
        self._run.write(np.ascontiguousarray(shown).data.cast("B"))
        if self._failed:
            with disk_errors(self.film):
                raise self._failed[0]
        with disk_errors(self.picture):
            write_file(self.picture, jpeg_bytes(shown[-1]), sync=False)

    def stop(self) -> None:
        """End the film with the frames that it has; harmless if there is none.

        Raises:
            WriterError: ffmpeg failed.
        """
        run, self._run = self._run, None
        if run is not None:
            with run:
                run.finish()

    def kill(self) -> None:
        """Let go of the film at once; harmless if there is none."""
        run, self._run = self._run, None
        if run is not None:
            run.kill()

    def remove(self) -> None:
        """Remove film and picture: the finished film shows all.

        Raises:
            WriterError: The disk refused.
        """
        self.kill()
        for path in (self.film, self.picture):
            with disk_errors(path):
                path.unlink(missing_ok=True)

    def _started(self, first: int, *, new: bool) -> FfmpegRun:
        run = FfmpegRun(self._argv(), purpose="making the preview", feed=True, read=True)
        run.read_beside(partial(self._copy, first, new))
        return run

    def _copy(self, first: int, new: bool, blocks: Iterator[bytes]) -> None:
        """Add what ffmpeg makes to the film, at the times that the frames have there."""
        try:
            with append(self.film) as film:
                for kind, box in _boxes(blocks):
                    if kind == b"moof":
                        film.write(_later(box, first * self._fps.denominator * _TICKS))
                    elif kind == b"mdat":
                        film.write(box)
                        film.flush()
                    elif new:
                        film.write(box)
        except (OSError, WriterError) as error:
            self._failed.append(error)
            deque(blocks, maxlen=0)  # so that ffmpeg never waits for a reader

    def _argv(self) -> list[str]:
        width, height = self._size
        stream = (
            graph_module()
            .input(
                "pipe:0",
                format="rawvideo",
                pix_fmt="rgb24",
                s=f"{width}x{height}",
                framerate=str(self._fps),
            )
            .filter("scale", out_color_matrix="bt709", out_range="tv")
            .filter("format", "yuv420p")
            .output(
                "pipe:1",
                format="mp4",
                movflags=_MOVFLAGS,
                video_track_timescale=self._fps.numerator * _TICKS,
                vcodec=_ENCODER,
                preset="ultrafast",
                tune="zerolatency",
                threads=1,
                flush_packets=1,  # else a buffer keeps the newest frames back
                g=max(1, round(self._fps * _KEYFRAME_INTERVAL_S)),
            )
        )
        return argv_of(stream, self._ffmpeg.prefix())


def jpeg_bytes(pixels: npt.NDArray[np.uint8], comment: str = "") -> bytes:
    """A picture as JPEG.

    Args:
        pixels: uint8 [height, width, 3], RGB.
        comment: What the file says of itself.
    """
    import PIL.Image

    made = io.BytesIO()
    PIL.Image.fromarray(pixels).save(
        made, "JPEG", quality=_JPEG_QUALITY, comment=comment.encode(errors="replace")
    )
    return made.getvalue()


def _cut(film: Path, frames: int) -> bool:
    """Keep the first frames of a film alone; tell whether anything of it is left.

    Raises:
        OSError: The disk refused.
    """
    kept = None if frames == 0 or not film.is_file() else _nbytes_of(film, frames)
    if not kept:
        with create(film):
            return False
    with open_update(film) as file:
        file.truncate(kept)
    return True


def _nbytes_of(film: Path, frames: int) -> int:
    """Bytes of what a film begins with and of at most so many whole frames; 0 if it is none."""
    nbytes, begun = 0, False
    with open_binary(film) as file:
        at, found = 0, 0
        for kind, box in _boxes(iter(lambda: file.read(_BLOCK_NBYTES), b"")):
            at += len(box)
            begun = begun or kind == b"moov"
            found += kind == b"mdat"
            if found > frames:
                break
            if kind in (b"moov", b"mdat"):
                nbytes = at
    return nbytes if begun else 0


def _boxes(blocks: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The whole boxes of an mp4 that comes in blocks: kind and bytes; one cut off is left out."""
    held = b""
    for block in blocks:
        held += block
        while len(held) >= _HEADER:
            nbytes, kind = struct.unpack(">I4s", held[:_HEADER])
            if nbytes < _HEADER:
                return  # no file of ours
            if len(held) < nbytes:
                break
            yield kind, held[:nbytes]
            held = held[nbytes:]


def _later(moof: bytes, ticks: int) -> bytes:
    """A fragment's header with another decoding time: so many ticks later.

    Source: ISO/IEC 14496-12, 8.8.12: `tfdt`, whose version 1 has the time in 64 bits.
    """
    for kind, traf in _boxes(iter((moof[_HEADER:],))):
        if kind != b"traf":
            continue
        for inner, tfdt in _boxes(iter((traf[_HEADER:],))):
            if inner == b"tfdt":
                form, old = (">Q", 12) if tfdt[_HEADER] == 1 else (">I", 12)
                size = struct.calcsize(form)
                time = struct.unpack(form, tfdt[old : old + size])[0] + ticks
                new = tfdt[:old] + struct.pack(form, time) + tfdt[old + size :]
                return moof.replace(tfdt, new, 1)
    raise WriterError("ffmpeg made a preview without times", "render without --preview")
