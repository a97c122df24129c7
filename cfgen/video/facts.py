"""What is known of a finished segment and of a finished video, and the digest of their frames."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cfgen.errors import WriterError
from cfgen.files.writing import json_bytes, sha256_of

SIDECAR_VERSION = 1


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
        frames_sha256: `chain_frames` over all frames as they were before encoding.
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


def chain_frames(frames: npt.NDArray[np.uint8], before: str = "") -> str:
    """Return the digest of all frames so far: each link is sha256(previous link + frame's bytes).

    A chain and not one sha256 over everything, because a link is all the state there is: it can go
    on from a stored one, and that of a longer clip passes through the shorter clip's.

    Args:
        frames: uint8 [frames, height, width, 3].
        before: Digest of the frames before these; empty at the start, which counts as 32 zeros.
    """
    link = bytes.fromhex(before) if before else bytes(32)
    for frame in frames:
        digest = hashlib.sha256(link)
        digest.update(np.ascontiguousarray(frame).data)
        link = digest.digest()
    return link.hex()


def sidecar_text(facts: VideoFacts, metadata: Mapping[str, str]) -> str:
    """What stands beside a video: its facts, and texts that say how it was made."""
    named = asdict(facts) | {"path": facts.path.name, "sidecar": facts.sidecar.name}
    record = {"version": SIDECAR_VERSION, "metadata": metadata, "facts": named}
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
