"""What a render reports while it runs. The loop yields these; nothing calls upward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The model is in memory and rendering starts.

    Attributes:
        model: Name or folder of the model.
        backend: The ops that were taken, in words.
        seconds: Time that loading took.
        details: What else is worth knowing of it, a line each.
    """

    model: str
    backend: str
    seconds: float
    details: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkDone:
    """A chunk is denoised, committed, decoded and handed to the encoder.

    Attributes:
        index: Number of the chunk, from 0.
        chunks: Chunks in the plan.
        frames_done: Frames written so far.
        frames_total: Frames in the plan.
        elapsed_s: Seconds since rendering started, without loading.
        memory: Figures of the memory policy, such as pages held or bytes, by name.
    """

    index: int
    chunks: int
    frames_done: int
    frames_total: int
    elapsed_s: float
    memory: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Previewed:
    """The preview shows the newest chunk.

    Attributes:
        film: The film that grows.
        picture: The newest frame, as JPEG.
    """

    film: Path
    picture: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A segment is encoded and closed.

    Attributes:
        path: The segment file.
        segment: Number of the segment, from 0.
        frames: Frames in it.
    """

    path: Path
    segment: int
    frames: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """An interrupted render goes on.

    Attributes:
        chunk: First chunk that is still to be made.
        chunks: Chunks in the plan.
        frames_done: Frames that are there already.
        frames_total: Frames in the plan.
        elapsed_s: Seconds that were spent on them.
        snapshot: The chunk whose snapshot of the memory is taken, or 0 for none.
        replayed: Chunks that are worked out again from their latents, without denoising.
        made_again: Chunks that have to be denoised again.
        encoded_again: Frames that have to be encoded again.
    """

    chunk: int
    chunks: int
    frames_done: int
    frames_total: int
    elapsed_s: float
    snapshot: int
    replayed: int
    made_again: int
    encoded_again: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A snapshot of the memory is on the disk.

    Attributes:
        chunk: The chunk that a render can go on with from there.
        nbytes: Bytes that were written.
        seconds: Time that it took.
    """

    chunk: int
    nbytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Warned:
    """Something that does not stop the render but that its owner should know.

    Attributes:
        message: What it is, in one sentence.
        hint: What to do about it, or None.
    """

    message: str
    hint: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Noted:
    """Something worth knowing that nobody has to do anything about.

    Attributes:
        message: What it is, in one sentence.
    """

    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The video is verified and in place.

    Attributes:
        output: The video.
        frames: Frames counted in it.
        seconds: Its playing time.
        elapsed_s: Seconds from the start of rendering to the end, without loading, over all
            sessions.
        sidecar: The JSON file beside it that tells how it was made.
        keeping_s: Seconds of this session spent on keeping latents, journal and snapshots.
        snapshots_nbytes: Bytes of snapshots written in this session.
        sheet: The contact sheet beside it, if there is one.
    """

    output: Path
    frames: int
    seconds: float
    elapsed_s: float
    sidecar: Path
    keeping_s: float = 0.0
    snapshots_nbytes: int = 0
    sheet: Path | None = None


Event = Loaded | Resumed | ChunkDone | Previewed | Encoded | Saved | Warned | Noted | Finished
