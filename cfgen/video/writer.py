"""Writes the video file: frames go to ffmpeg as they come, segment by segment, and are never held.

Each segment is an encoder's run of its own. At the end the segments are joined, most without
encoding them again, under a temporary name, measured, and only then given the name that the user
asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from cfgen.errors import OutputRefused, WriterError
from cfgen.files.writing import (
    create,
    discard,
    disk_errors,
    nbytes_of,
    own_name,
    part_of,
    publish,
    sha256_of,
    take_name,
    write_file,
)
from cfgen.video.encoding import (
    Encoding,
    exact_fps,
    require_encoders,
)
from cfgen.video.facts import (
    Chapter,
    SegmentFacts,
    VideoFacts,
    chain_frames,
    require_whole,
    sidecar_text,
)
from cfgen.video.ffmpeg import Ffmpeg, FfmpegRun
from cfgen.video.ffmpeg_texts import check_metadata, concat_listing, ffmetadata
from cfgen.video.formats import FRAME_NAME, SEGMENT_MUXERS, segment_stem
from cfgen.video.measure import Measured, measure
from cfgen.video.output import check_output, format_of, sidecar_of, standing_at

_LISTING = "segments.ffconcat"
_METADATA = "metadata.ffmeta"
_PALETTE = "palette.png"
_OWN_FILES = (
    *(f"segment-*.{each}" for each in SEGMENT_MUXERS),
    "joined.*",
    "segments*.ffconcat",
    "metadata*.ffmeta",
    "palette*.png",
)
"""What it leaves in the parts folder."""


class VideoWriter:
    """Encodes frames to a video in the format of its name: bt709, constant frame rate.

    Use it in a ``with`` block. Until `publish` returns, the output is untouched and everything
    lives in the parts folder and under ``NAME.part``. Leaving the block before that removes
    all but the finished segments, to `go_on` after. Only a process that is killed outright leaves
    more, and the next run clears it away.

    Attributes:
        frames: Frames written so far, those that it went on after included.
        frames_sha256: `chain_frames` over them.
        sound: A file of the video's sound, in FLAC, or None; it may be set until `join`.
    """

    def __init__(
        self,
        output: Path,
        *,
        width: int,
        height: int,
        fps: float | Fraction,
        ffmpeg: Ffmpeg,
        quality: str,
        metadata: Mapping[str, str],
        parts: Path,
        replaces: bool = False,
        chapters: Sequence[Chapter] = (),
        codec: str | None = None,
        bits: int | None = None,
        interpolate: float | None = None,
    ) -> None:
        """Check everything that can be checked without touching the disk.

        Args:
            output: The video file to make; its folder must exist.
            width: Width in pixels, even for H.264.
            height: Height in pixels, likewise.
            fps: Playback rate, 1 to 240.
            ffmpeg: The ffmpeg to use.
            quality: ``draft``, ``good``, ``best``, or a constant rate factor of the codec.
            metadata: Texts for the container and the sidecar, such as title, comment and seed.
            parts: Folder for the segments; it is made if need be.
            replaces: Whether a file may be replaced that comes to the output's place meanwhile.
            chapters: The film's shots, in order, if there are several.
            codec: A codec of the format, such as ``h265``; without it, the format's first.
            bits: Bits of a sample in the file; without it, the codec's first.
            interpolate: Frames per second of the file, where minterpolate works out those between
                the frames that are written; without it, `fps`.

        Raises:
            UsageError: A value cannot be used.
            FfmpegMissing: The ffmpeg lacks an encoder or a filter.
        """
        self._format = format_of(output)
        check_metadata(metadata)
        self._encoding = Encoding(
            format=self._format,
            width=width,
            height=height,
            fps=exact_fps(fps),
            quality=quality,
            codec_key=codec,
            asked_bits=bits,
            interpolate=None if interpolate is None else exact_fps(interpolate),
        )
        require_encoders(ffmpeg, self._encoding)
        self._dtype = np.dtype(np.uint8 if self._encoding.bits == 8 else np.uint16)
        self._ffmpeg = ffmpeg
        self._metadata, self._chapters = dict(metadata), tuple(chapters)
        self._output = output.absolute()
        self._parts = parts.absolute()
        self._open = False
        self._run: FfmpegRun | None = None
        self.frames = self._frames_in_segment = 0
        self._segments: list[SegmentFacts] = []
        self.frames_sha256 = ""
        self._joined: VideoFacts | None = None
        self._replaces = replaces
        self._before: tuple[object, ...] = ()
        self._part = Path()
        self.sound: Path | None = None

    def add_metadata(self, metadata: Mapping[str, str]) -> None:
        """Before the block: more texts for the container and the sidecar.

        Raises:
            UsageError: A text cannot be used.
        """
        check_metadata(metadata)
        self._metadata |= metadata

    def go_on(self, segments: Sequence[SegmentFacts]) -> None:
        """Before the block: stand after finished segments of the parts folder."""
        self._segments = list(segments)
        self.frames = sum(segment.frames for segment in segments)
        self.frames_sha256 = segments[-1].frames_sha256 if segments else ""

    def __enter__(self) -> Self:
        check_output(self._output)
        try:
            self._parts.mkdir(exist_ok=True)
            self.remove_segments(self._segments)
        except OSError as exc:
            raise OutputRefused(
                f"cannot keep the segments in {self._parts}: {exc.strerror}",
                "choose another output folder",
            ) from exc
        self._before = standing_at(self._output)
        self._open = True
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        left_open = self._open
        self.abort()
        if left_open and exc_type is None:
            raise RuntimeError("the block of a VideoWriter ended without publish() or abort()")

    def write(self, frames: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> None:
        """Encode frames as the next ones of the current segment.

        Args:
            frames: RGB, full range, uint8 [n, height, width, 3], C-contiguous, n >= 1; uint16,
                0 to 65535, where a sample of the file has more than 8 bits.

        Raises:
            WriterError: ffmpeg failed.
        """
        self._require_open()
        expected = (self._encoding.height, self._encoding.width, 3)
        if frames.dtype != self._dtype or frames.shape[1:] != expected or len(frames) < 1:
            raise ValueError(
                f"frames must be {self._dtype} [n >= 1, {', '.join(map(str, expected))}], "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        if not frames.flags.c_contiguous:
            raise ValueError("frames must be C-contiguous")
        if self._run is None:
            self._run = self._start_segment()
        self._run.write(frames.data.cast("B"))
        self.frames += len(frames)
        self._frames_in_segment += len(frames)
        self.frames_sha256 = chain_frames(frames, self.frames_sha256)

    def end_segment(self) -> SegmentFacts:
        """Finish the current segment; the next frames begin another one.

        Returns:
            The facts of the segment, whose file is complete, counted and on the disk.

        Raises:
            WriterError: ffmpeg failed, or the file has not the frames that were written.
        """
        self._require_open()
        if self._run is None:
            raise ValueError("no frame was written since the last segment ended")
        index, frames = len(self._segments), self._frames_in_segment
        self._run.finish()
        self._run, self._frames_in_segment = None, 0
        path = self._segment(index)
        with disk_errors(path):
            take_name(self._part, part_of(path))
            self._verify(part_of(path), frames, decode=False)
            publish(path)
            nbytes, digest = path.stat().st_size, sha256_of(path)
        facts = SegmentFacts(index, path, frames, nbytes, digest, self.frames_sha256)
        self._segments.append(facts)
        return facts

    def join(self) -> VideoFacts:
        """Join the segments and verify the video, which still has its temporary name.

        Returns:
            The facts of the video; the sidecar has them too, with the metadata.

        Raises:
            WriterError: No frame was written, ffmpeg failed, or the result is not as planned.
        """
        self._require_open()
        if self._run is not None:
            self.end_segment()
        if not self._segments:
            raise WriterError(f"no frame was written to {self._output}")
        part, sidecar = part_of(self._output), sidecar_of(self._output)
        with disk_errors(self._output):
            joined = own_name(self._parts / f"joined{self._format.ending}")
            if self._format.is_folder:
                joined.mkdir()
            self._join(joined)
            take_name(joined, part)
            for decode in (False, True):
                self._verify_film(part, decode=decode)
            facts = self._facts(part)
            with create(part_of(sidecar)) as file:
                file.write(self._sidecar(facts).encode())
        self._joined = facts
        return facts

    def publish(self) -> None:
        """Give the joined video its name, replacing what was there, and remove the segments.

        Raises:
            WriterError: The disk refused.
        """
        self._require_open()
        if self._joined is None:
            raise ValueError("the segments are not joined yet")
        with disk_errors(self._output):
            if not self._replaces and standing_at(self._output) != self._before:
                raise OutputRefused(
                    f"{self._output} or its sidecar came or changed while the video was made, and "
                    "is not replaced",
                    "move it away, then resume",
                )
            # The sidecar first: where the video is new, so is what is said of it.
            publish(sidecar_of(self._output), self._output)
        self._segments = []
        self.abort()

    def abort(self) -> None:
        """Stop ffmpeg and remove all but the finished segments; harmless after `publish`."""
        if not self._open:
            return
        self.let_go()
        for path in (self._output, sidecar_of(self._output)):
            with contextlib.suppress(OSError):
                discard(part_of(path))
        with contextlib.suppress(OSError):
            self.remove_segments(self._segments)

    def let_go(self) -> None:
        """Stop ffmpeg and touch no file any more: they are another process's now."""
        self._open = False
        if self._run is not None:
            self._run.kill()
            self._run = None

    def _require_open(self) -> None:
        if not self._open:
            raise ValueError("the VideoWriter is not open: use it in a with block before publish()")

    def _segment(self, index: int) -> Path:
        return self._parts / f"{segment_stem(index)}.{self._encoding.segments}"

    def remove_segments(self, keep: Iterable[SegmentFacts] = ()) -> None:
        """Remove what a finished video was made from, but these segments.

        Raises:
            OSError: The disk refused.
        """
        kept = {segment.path.name for segment in keep}
        for pattern in _OWN_FILES:
            for path in self._parts.glob(pattern):
                if path.name not in kept:
                    discard(path)

    def _start_segment(self) -> FfmpegRun:
        # A name of its own: the ffmpeg of a render that was killed may still write to another.
        index = len(self._segments)
        self._part = own_name(self._segment(index))
        return FfmpegRun(
            self._encoding.encode_argv(self._ffmpeg, self._part.name),
            purpose=f"encoding segment {index} of {self._output.name}",
            cwd=self._parts,
            feed=True,
        )

    def _join(self, part: Path) -> None:
        require_whole(self._segments)
        # Names relative to the parts folder, so that no character of a path needs quoting.
        segments = ((segment.path.name, segment.frames) for segment in self._segments)
        listing = concat_listing(segments, self._encoding.fps)
        metadata = {
            **self._metadata,
            **self._interpolation,
            "frames": str(self._encoding.frames_of(self.frames)),
            "frames_sha256": self.frames_sha256,
            "ffmpeg_version": self._ffmpeg.version,
            "quality": self._encoding.quality,
        }
        write_file(self._parts / _LISTING, listing.encode("ascii"), shared=True)
        texts = ffmetadata(metadata, self._chapters, frames=self.frames, fps=self._encoding.fps)
        write_file(self._parts / _METADATA, texts, shared=True)
        sound = None if self.sound is None else os.path.relpath(self.sound, self._parts)
        palette = self._encoding.palette_argv(self._ffmpeg, _LISTING, _PALETTE)
        argv = self._encoding.join_argv(
            *(self._ffmpeg, _LISTING, _METADATA),
            f"{part.name}/{FRAME_NAME}" if self._format.is_folder else part.name,
            frames=self.frames,
            palette=_PALETTE,
            sound=sound,
            chapters=bool(self._chapters),
        )
        for each in filter(None, (palette, argv)):
            with FfmpegRun(each, purpose=f"joining {self._output.name}", cwd=self._parts) as run:
                run.finish()

    @property
    def _interpolation(self) -> dict[str, str]:
        """What container and sidecar tell of frames that were worked out between frames."""
        encoding = self._encoding
        if encoding.interpolate is None:
            return {}
        rates = f"{float(encoding.fps):g} to {float(encoding.rate):g}"
        return {"interpolation": f"minterpolate of ffmpeg, {rates} frames a second"}

    def _sidecar(self, facts: VideoFacts) -> str:
        metadata = {**self._metadata, **self._interpolation}
        fps = float(self._encoding.fps)
        return sidecar_text(facts, metadata, self._chapters, frames=self.frames, fps=fps)

    def _verify(self, path: Path, frames: int, *, decode: bool) -> None:
        self._compare(path, frames, self._encoding.fps, measure(self._ffmpeg, path, decode=decode))

    def _verify_film(self, path: Path, *, decode: bool) -> None:
        rate = self._encoding.rate
        near = None if self._format.exact_times else rate
        found = measure(self._ffmpeg, path, decode=decode, near=near, rate=rate)
        self._compare(path, self._encoding.frames_of(self.frames), rate, found)

    def _compare(self, path: Path, frames: int, rate: Fraction, found: Measured) -> None:
        expected = Measured(frames, self._encoding.width, self._encoding.height, rate)
        if found != expected:
            raise WriterError(
                f"{path.name} should have {expected}, but ffmpeg made {found}",
                "run `cfgen doctor` to check ffmpeg and the disk",
            )

    def _facts(self, part: Path) -> VideoFacts:
        encoding = self._encoding
        frames = encoding.frames_of(self.frames)
        return VideoFacts(
            path=self._output,
            sidecar=sidecar_of(self._output),
            frames=frames,
            width=encoding.width,
            height=encoding.height,
            fps=float(encoding.rate),
            duration_s=float(frames / encoding.rate),
            segments=len(self._segments),
            nbytes=nbytes_of(part),
            sha256=sha256_of(part),
            frames_sha256=self.frames_sha256,
            quality=encoding.quality,
            encoder=self._encoding.codec.encoder,
            ffmpeg_version=self._ffmpeg.version,
        )
