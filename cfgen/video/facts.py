"""What is known of a finished segment and of a finished video, and the digest of their frames."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cfgen.errors import WriterError
from cfgen.files.writing import json_bytes, sha256_of

SIDECAR_VERSION = 1
_TITLE_NBYTES = 255


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """One finished segment.

    Attributes:
        index: Position of the segment in the video, from 0.
        sha256: Digest of the file.
        frames_sha256: `chain_frames` over all frames of the video up to the end of this segment.
    """

    index: int
    path: Path
    frames: int
    nbytes: int
    sha256: str
    frames_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFacts:
    """The finished video, as measured.

    Attributes:
        sidecar: The JSON file beside the video, with these facts and the metadata.
        duration_s: ``frames / fps``.
        segments: Number of segments that were joined.
        sha256: Digest of the video file.
        frames_sha256: `chain_frames` over all frames as they were before encoding, and before
            frames were interpolated.
    """

    path: Path
    sidecar: Path
    frames: int
    width: int
    height: int
    fps: float
    duration_s: float
    segments: int
    nbytes: int
    sha256: str
    frames_sha256: str
    quality: str
    encoder: str
    ffmpeg_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chapter:
    """A shot of a film, for players and for the sidecar.

    Attributes:
        frame: Its first frame.
        prompt: What it shows.
        transition: What became of the memory where it began.
    """

    frame: int
    prompt: str
    transition: str

    @property
    def title(self) -> str:
        """The prompt in at most 255 bytes of UTF-8, as a list of chapters in mp4 holds them."""
        return self.prompt.encode()[:_TITLE_NBYTES].decode(errors="ignore")


def chain_frames(frames: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], before: str = "") -> str:
    """Return the digest of all frames so far: each link is sha256(previous link + frame's bytes).

    A chain and not one sha256 over everything, because a link is all the state there is: it can go
    on from a stored one, and that of a longer clip passes through the shorter clip's.

    Args:
        frames: uint8 or uint16 [frames, height, width, 3].
        before: Digest of the frames before these; empty at the start, which counts as 32 zeros.
    """
    link = bytes.fromhex(before) if before else bytes(32)
    for frame in frames:
        digest = hashlib.sha256(link)
        digest.update(np.ascontiguousarray(frame).data)
        link = digest.digest()
    return link.hex()


def sidecar_text(
    facts: VideoFacts,
    metadata: Mapping[str, str],
    chapters: Sequence[Chapter] = (),
    *,
    frames: int | None = None,
    fps: float | None = None,
) -> str:
    """What stands beside a video: its facts, texts that say how it was made, and its shots.

    Args:
        facts: The video.
        metadata: The texts.
        chapters: Its shots, if there are several.
        frames: Frames that shots are counted in, where that are not those of the video.
        fps: Their number per second.
    """
    frames, fps = frames or facts.frames, fps or facts.fps
    named = asdict(facts) | {"path": facts.path.name, "sidecar": facts.sidecar.name}
    record: dict[str, object] = {"version": SIDECAR_VERSION, "metadata": metadata, "facts": named}
    if chapters:
        ends = [*(chapter.frame for chapter in chapters[1:]), frames]
        record["shots"] = [
            {"start_s": chapter.frame / fps, "end_s": end / fps, **asdict(chapter)}
            for chapter, end in zip(chapters, ends, strict=True)
        ]
    return json_bytes(record, indent=2).decode() + "\n"


def require_whole(segments: Iterable[SegmentFacts]) -> None:
    """Look at segments again: one may have changed since it was encoded.

    Raises:
        WriterError: One is not what was written.
    """
    for segment in segments:
        try:
            whole = sha256_of(segment.path) == segment.sha256
        except FileNotFoundError:
            whole = False
        if not whole:
            raise WriterError(
                f"{segment.path.name} is not what was written: it was changed or damaged",
                "resume, which encodes it again; if that comes again, check the disk",
            )
