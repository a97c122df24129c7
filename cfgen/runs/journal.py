"""The journal of a render: one line for everything that was finished, each chained to the last.

A line carries a checksum over itself and the line before, so a changed, missing or cut-off line
ends the part that can be trusted; what comes after it is made again.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from cfgen.files.reading import read_bytes
from cfgen.files.writing import disk_errors, open_append, write_file
from cfgen.runs.records import parse_as, verify, with_checksum

_MOST = 1 << 53
"""No count in a journal reaches this."""

_LIMIT = 1 << 30
"""Bytes that a journal may have: a line of some hundred bytes a chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionLine:
    """A process began to work on the render.

    Attributes:
        chunk: First chunk that it was to make.
        began: When, in ISO 8601.
        host: Name of the machine.
        pid: Number of the process.
    """

    chunk: int
    began: str
    host: str
    pid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkLine:
    """A chunk is made: its latents are kept, its frames went to the encoder if it can play yet.

    Lines stand in the order in which chunks are made.

    Attributes:
        index: Number of the chunk in the film.
        frames: Frames of the video that it holds.
        frames_sha256: `chain_frames` over all frames up to its end; empty if it is made before one
            that plays earlier.
        latents_sha256: Digest of the file of its latents.
        elapsed_s: Seconds spent on rendering so far, over all sessions.
        memory: Figures of the memory policy.
        tile: Latent cells on the side of the tiles that it was decoded in, 0 for whole frames.
        on_cpu: Whether it was decoded on the CPU because the GPU's memory ran out.
    """

    index: int
    frames: int
    frames_sha256: str
    latents_sha256: str
    elapsed_s: float
    tile: int = 0
    on_cpu: bool = False
    memory: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentLine:
    """A segment is encoded, counted and on the disk.

    Attributes:
        index: Number of the segment.
        frames: Frames in it.
        nbytes: Size of its file.
        sha256: Digest of its file.
        frames_sha256: `chain_frames` over all frames of the video up to its end.
    """

    index: int
    frames: int
    nbytes: int
    sha256: str
    frames_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoLine:
    """The video is joined and verified, and about to take its name.

    Attributes:
        frames: Frames in it.
        nbytes: Size of its file.
        sha256: Digest of its file.
        frames_sha256: `chain_frames` over all its frames.
    """

    frames: int
    nbytes: int
    sha256: str
    frames_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundLine:
    """The sound of the video is kept.

    Attributes:
        nbytes: Size of its file; 0 if there is no sound.
        sha256: Digest of its file.
    """

    nbytes: int
    sha256: str


Line = SessionLine | ChunkLine | SegmentLine | SoundLine | VideoLine

_KINDS: dict[str, type[Line]] = {
    "session": SessionLine,
    "chunk": ChunkLine,
    "segment": SegmentLine,
    "sound": SoundLine,
    "video": VideoLine,
}
_NAMES = {cls: name for name, cls in _KINDS.items()}
_L = TypeVar("_L", SessionLine, ChunkLine, SegmentLine, SoundLine, VideoLine)


class Journal:
    """The lines of a journal file, and the file.

    Attributes:
        path: The file.
        lines: All lines that can be trusted.
        problem: What is wrong with the line after them, or None.
    """

    def __init__(self, path: Path, *, run: str) -> None:
        """Read the file; one that is not there has no lines.

        Args:
            path: The file.
            run: Digest of what fixes the render; the lines of another one are not believed.

        Raises:
            OSError: It is there and cannot be read.
        """
        self.path = path
        self.lines: list[Line] = []
        self.problem: str | None = None
        self._run = self._check = run
        content = read_bytes(path, limit=_LIMIT) if path.exists() else b""
        for number, raw in enumerate(content.splitlines(keepends=True), start=1):
            try:
                line, check = _parsed(raw, self._check)
            except ValueError as error:
                self.problem = f"line {number} of {path.name} is damaged: {error}"
                break
            self.lines.append(line)
            self._check = check

    def of(self, cls: type[_L]) -> list[_L]:
        """The lines of one kind, in order."""
        return [line for line in self.lines if isinstance(line, cls)]

    def rewrite(self, lines: Sequence[Line]) -> None:
        """Have these lines alone, in the file too.

        Raises:
            BudgetError, WriterError: The disk refused.
        """
        check, blocks = self._run, []
        for line in lines:
            block, check = _block(line, check)
            blocks.append(block)
        with disk_errors(self.path):
            write_file(self.path, blocks)
        self.lines, self._check, self.problem = list(lines), check, None

    def append(self, line: Line, *, sync: bool = False) -> None:
        """Add a line.

        Args:
            line: The line.
            sync: Whether to wait until it is on the disk.

        Raises:
            BudgetError, WriterError: The disk refused.
        """
        with disk_errors(self.path):
            descriptor = open_append(self.path)
            try:
                block, check = _block(line, self._check)
                if os.write(descriptor, block) != len(block):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if sync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self.lines.append(line)
        self._check = check


def _block(line: Line, before: str) -> tuple[bytes, str]:
    """A line as it stands in the file, and its checksum."""
    record = with_checksum({"kind": _NAMES[type(line)], **asdict(line)}, before=before)
    return (json.dumps(record) + "\n").encode(), str(record["check"])


def _parsed(raw: bytes, before: str) -> tuple[Line, str]:
    """A line and its checksum; ValueError if it cannot be trusted."""
    if not raw.endswith(b"\n"):
        raise ValueError("it is cut off")
    payload, check = verify(raw, before=before)
    kind = payload.pop("kind", None)
    if kind not in _NAMES.values():
        raise ValueError(f"it is of kind {kind!r}, which is unknown")
    line = parse_as(_KINDS[kind], payload)
    for name, value in asdict(line).items():
        if type(value) is int and not 0 <= value < _MOST:
            raise ValueError(f"its {name} is {value}")
    if isinstance(line, ChunkLine) and not all(
        isinstance(value, int | float) and math.isfinite(value) for value in line.memory.values()
    ):
        raise ValueError("a figure of its memory is no number")
    return line, check
