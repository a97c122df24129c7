"""What of an interrupted render can be trusted, and the shortest way back to where it stopped.

Nothing is taken on faith: segments and latents must have the digests that the journal gives, and a
snapshot those of its manifest. What is damaged is made again from the last thing that is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cfgen.errors import SnapshotCorrupt
from cfgen.files.writing import sha256_of
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine, Line, SegmentLine, SessionLine, VideoLine
from cfgen.runs.snapshot import SnapshotStore
from cfgen.timeline import Plan
from cfgen.units import count
from cfgen.video.output import format_of
from cfgen.video.writer import SegmentFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAudit:
    """What there is to stand on.

    Attributes:
        lines: The chunks that were made.
        sound: For each of them, whether its latents are there and whole.
        segments: The segments that are there and whole, up to the first that is not.
        problems: What was found damaged, in sentences.
        journal: Every line that still holds, in order.
    """

    lines: tuple[ChunkLine, ...]
    intact: tuple[bool, ...]
    segments: tuple[SegmentFacts, ...]
    problems: tuple[str, ...]
    journal: tuple[Line, ...]

    @property
    def damaged(self) -> list[int]:
        """The chunks whose latents are missing or damaged."""
        return [index for index, good in enumerate(self.intact) if not good]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryPlan:
    """How to get back to where the render stopped.

    Attributes:
        snapshot: Chunk that the memory's state is from; 0 is the empty memory.
        memory_from: First chunk that must pass through the memory again.
        until: The chunk after the last.
        recompute: Chunks that must be denoised again.
        decode_from: First chunk that the decoder must see, or None for none.
        encode_from: First chunk whose frames must be encoded again, or None for none.
    """

    snapshot: int
    memory_from: int
    until: int
    recompute: frozenset[int]
    decode_from: int | None = None
    encode_from: int | None = None

    @property
    def chunks(self) -> range:
        """The chunks to pass through."""
        first = self.until if self.decode_from is None else self.decode_from
        return range(min(self.memory_from, first), self.until)


def audit(folder: RunFolder, plan: Plan) -> RunAudit:
    """Look at everything that the journal tells of; nothing is changed.

    Raises:
        SnapshotCorrupt: The journal tells of another plan.
    """
    journal = folder.journal
    lines = tuple(journal.of(ChunkLine))
    if len(lines) > plan.chunks or any(
        line.frames != plan.chunk(line.index).frames for line in lines
    ):
        raise SnapshotCorrupt(
            f"{journal.path} tells of another plan than {folder.path / 'run.json'}",
            "render again from the start with -y",
        )
    sound = tuple(folder.has_latents(line.index, line.latents_sha256) for line in lines)
    problems = list(_journal_problem(folder, len(lines)))
    segments = _sound_segments(folder, lines, plan)
    if len(segments) < len(journal.of(SegmentLine)) and not journal.of(VideoLine):
        problems.append(
            f"segment {len(segments) + 1} is missing or damaged; it and what follows is encoded "
            "again"
        )
    return RunAudit(
        lines=lines,
        intact=sound,
        segments=segments,
        problems=tuple(problems),
        journal=tuple(
            line
            for line in journal.lines
            if isinstance(line, SessionLine | ChunkLine | VideoLine)  # what may be replaced, too
            or (isinstance(line, SegmentLine) and line.index < len(segments))
        ),
    )


def _journal_problem(folder: RunFolder, lines: int) -> Iterator[str]:
    journal = folder.journal
    lost = sum(1 for path in folder.latents(0).parent.glob("*[0-9].safetensors")) - lines
    if journal.problem or (not journal.lines and lost > 0):
        what = journal.problem or f"{journal.path.name} is missing or empty"
        yield f"{what}; {count(max(0, lost), 'chunk')} that it told of must be rendered again"


def _sound_segments(
    folder: RunFolder, lines: Sequence[ChunkLine], plan: Plan
) -> tuple[SegmentFacts, ...]:
    """The segments that are whole and hold the frames of their chunks, up to the first other."""
    segments: list[SegmentFacts] = []
    for line in folder.journal.of(SegmentLine):
        first = line.index * plan.segment_chunks
        chunks = lines[first : first + plan.segment_chunks]
        if not chunks or chunks[-1].frames_sha256 != line.frames_sha256:
            break
        if sum(chunk.frames for chunk in chunks) != line.frames:
            break
        path = folder.segments / format_of(folder.output).segment(line.index)
        try:
            if path.stat().st_size != line.nbytes or sha256_of(path) != line.sha256:
                break
        except OSError:
            break
        segments.append(
            SegmentFacts(
                line.index, path, line.frames, line.nbytes, line.sha256, line.frames_sha256
            )
        )
    return tuple(segments)


def plan_recovery(
    audited: RunAudit, plan: Plan, store: SnapshotStore, *, warm_up: int, replayable: bool
) -> RecoveryPlan:
    """Find the shortest way back.

    Args:
        audited: What can be trusted.
        plan: The plan of the render.
        store: Its snapshots.
        warm_up: Chunks that the decoder must see before one whose frames are to be right.
        replayable: Whether committing kept latents again gives the memory that was.
    """
    until = len(audited.lines)
    encode_from = min(len(audited.segments) * plan.segment_chunks, until)
    done = until == encode_from == plan.chunks
    decode_from = until if done else max(0, encode_from - warm_up)
    damaged = [chunk for chunk in range(decode_from, until) if not audited.intact[chunk]]
    if until == plan.chunks and not damaged:
        memory = RecoveryPlan(snapshot=0, memory_from=until, recompute=frozenset(), until=until)
    else:
        first = min([until, *damaged])
        memory = plan_memory(until, audited, store, snapshot_before=first, replayable=replayable)
    return replace(memory, decode_from=decode_from, encode_from=encode_from)


def plan_memory(
    chunk: int,
    audited: RunAudit,
    store: SnapshotStore,
    *,
    replayable: bool,
    snapshot_before: int | None = None,
) -> RecoveryPlan:
    """Find the shortest way to the memory as it was before `chunk`; nothing is decoded.

    Args:
        chunk: A chunk that was made, or the one after the last.
        audited: What can be trusted.
        store: The snapshots of the render.
        replayable: Whether committing kept latents again gives the memory that was.
        snapshot_before: Latest chunk whose snapshot will do, `chunk` if None.

    Raises:
        SnapshotCorrupt: There is no way: the render began with a snapshot, and that is damaged.
    """
    before = chunk if snapshot_before is None else snapshot_before
    snapshot = store.newest(before=before)
    if snapshot < store.base:
        raise SnapshotCorrupt(
            f"{store.folder} has no sound snapshot, and this render branched off after chunk "
            f"{store.base}, so that it cannot be worked out from the start",
            "branch off again",
        )
    recompute = frozenset(
        index for index in range(snapshot, chunk) if not (replayable and audited.intact[index])
    )
    return RecoveryPlan(snapshot=snapshot, memory_from=snapshot, until=chunk, recompute=recompute)


def chunk_list(indices: Sequence[int]) -> str:
    """Return ``chunk 3``, ``chunks 3 and 7`` or ``chunks 3, 7 and 12 more``, counted from 1."""
    numbers = [index + 1 for index in indices]
    if len(numbers) == 1:
        return f"chunk {numbers[0]}"
    if len(numbers) == 2:
        return f"chunks {numbers[0]} and {numbers[1]}"
    return f"chunks {numbers[0]}, {numbers[1]} and {len(numbers) - 2} more"
