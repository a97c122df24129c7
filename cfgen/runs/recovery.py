"""What of an interrupted render can be trusted, and the shortest way back to where it stopped.

Nothing is taken on faith: segments and latents must have the digests that the journal gives, and a
snapshot those of its manifest. What is damaged is made again from the last thing that is whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from cfgen.errors import SnapshotCorrupt
from cfgen.files.writing import sha256_of
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import (
    ChunkLine,
    Line,
    SegmentLine,
    SessionLine,
    SoundLine,
    VideoLine,
)
from cfgen.runs.snapshot import SnapshotStore
from cfgen.timeline import Plan
from cfgen.units import count
from cfgen.video.facts import SegmentFacts
from cfgen.video.output import segment_of


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAudit:
    """What there is to stand on.

    Attributes:
        lines: The chunks that were made, in that order.
        intact: For each of them, whether its latents are there and whole.
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
        return [line.index for line, good in zip(self.lines, self.intact, strict=True) if not good]

    def first(self, chunks: Collection[int]) -> int:
        """How many chunks were made before the first of these; all, if none of them was."""
        places = (place for place, line in enumerate(self.lines) if line.index in chunks)
        return next(places, len(self.lines))


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryPlan:
    """How to get back to where the render stopped.

    The memory is told by how many chunks it was made with, the film by numbers of chunks.

    Attributes:
        snapshot: Chunks in the memory of the snapshot that is taken; 0 is the empty memory.
        memory_from: Chunks in the memory before the first that must pass through it again.
        until: Chunks in the memory in the end.
        recompute: Chunks that must be denoised again.
        begin: Chunks that were made before the first that is looked at again.
        decode_from: First chunk of the film that the decoder must see, or None for none.
        encode_from: First chunk whose frames must be encoded again, or None for none.
    """

    snapshot: int
    memory_from: int
    until: int
    recompute: frozenset[int]
    begin: int
    decode_from: int | None = None
    encode_from: int | None = None


def audit(folder: RunFolder, plan: Plan) -> RunAudit:
    """Look at everything that the journal tells of; nothing is changed.

    Raises:
        SnapshotCorrupt: The journal tells of another plan.
    """
    journal = folder.journal
    lines = tuple(journal.of(ChunkLine))
    made = [(line.index, line.frames) for line in lines]
    if made != [(chunk, plan.chunk(chunk).frames) for chunk in plan.order[: len(lines)]]:
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
            # what may be replaced, too
            if isinstance(line, SessionLine | ChunkLine | SoundLine | VideoLine)
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
    made = {line.index: line for line in lines}
    segments: list[SegmentFacts] = []
    for line in folder.journal.of(SegmentLine):
        chunks = [made[chunk] for chunk in plan.chunks_of(len(segments)) if chunk in made]
        if line.index != len(segments) or sum(chunk.frames for chunk in chunks) != line.frames:
            break
        if not chunks or chunks[-1].frames_sha256 not in ("", line.frames_sha256):
            break
        path = segment_of(folder.segments, line.index)
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
    encode_from = plan.chunks_of(len(audited.segments)).start
    decode_from = plan.chunks if encode_from == plan.chunks else max(0, encode_from - warm_up)
    begin = audited.first(range(decode_from, plan.chunks))
    damaged = [chunk for chunk in audited.damaged if chunk >= decode_from]
    if until == plan.chunks and not damaged:
        memory = RecoveryPlan(
            snapshot=0, memory_from=until, recompute=frozenset(), until=until, begin=until
        )
    else:
        first = audited.first(damaged)
        memory = plan_memory(
            until,
            audited,
            store,
            snapshot_before=first,
            replayable=replayable,
            given=plan.all_given,
        )
    begin = min(begin, memory.begin)
    return replace(memory, begin=begin, decode_from=decode_from, encode_from=encode_from)


def plan_memory(
    until: int,
    audited: RunAudit,
    store: SnapshotStore,
    *,
    replayable: bool,
    snapshot_before: int | None = None,
    given: Collection[int] = (),
) -> RecoveryPlan:
    """Find the shortest way to the memory of the first `until` chunks; nothing is decoded.

    Args:
        until: How many of the chunks that were made it is to hold.
        audited: What can be trusted.
        store: The snapshots of the render.
        replayable: Whether committing kept latents again gives the memory that was.
        snapshot_before: Most chunks that the memory of the snapshot may hold, `until` if None.
        given: Chunks of the film that are given: nothing but a commit pass made them.

    Raises:
        SnapshotCorrupt: There is no way: the render began with a snapshot, and that is damaged.
    """
    before = until if snapshot_before is None else snapshot_before
    snapshot = store.newest(before=before)
    if snapshot < store.base:
        raise SnapshotCorrupt(
            f"{store.folder} has no sound snapshot, and this render branched off after chunk "
            f"{store.base}, so that it cannot be worked out from the start",
            "branch off again",
        )
    recompute = frozenset(
        audited.lines[place].index
        for place in range(snapshot, until)
        if not (audited.intact[place] and (replayable or audited.lines[place].index in given))
    )
    return RecoveryPlan(
        snapshot=snapshot, memory_from=snapshot, until=until, recompute=recompute, begin=snapshot
    )


def chunk_list(indices: Sequence[int]) -> str:
    """Return ``chunk 3``, ``chunks 3 and 7`` or ``chunks 3, 7 and 12 more``, counted from 1."""
    numbers = [index + 1 for index in indices]
    if len(numbers) == 1:
        return f"chunk {numbers[0]}"
    if len(numbers) == 2:
        return f"chunks {numbers[0]} and {numbers[1]}"
    return f"chunks {numbers[0]}, {numbers[1]} and {len(numbers) - 2} more"
