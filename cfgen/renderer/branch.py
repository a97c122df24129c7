"""Another continuation of a render: as a render of its own, or in the place of the old one.

What lies before the branching point is taken over, latents and finished segments, and the memory
at that point becomes a snapshot that the new render can always go back to.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cfgen.errors import UsageError
from cfgen.files.writing import disk_errors, link_or_copy, part_of, sync_folder
from cfgen.renderer.replay import replay
from cfgen.renderer.source import FrameSource
from cfgen.runs.beginning import sound_of
from cfgen.runs.contents import JOURNAL, LOCK, make_empty
from cfgen.runs.folder import RunFolder, RunRecord, settle_journal, write_record
from cfgen.runs.journal import ChunkLine, Journal, Line, SegmentLine, SoundLine
from cfgen.runs.lock import Lock
from cfgen.runs.recovery import RecoveryPlan, RunAudit, audit, plan_memory
from cfgen.runs.snapshot import SnapshotStore
from cfgen.timeline import Plan
from cfgen.video.output import refuse_existing

NO_BUDGET = 2**62
"""Bytes that no disk holds: nothing is thinned out."""


@dataclass(frozen=True, kw_only=True)
class BranchPoint:
    """A point of a render, and what it takes to get the memory back to it.

    Attributes:
        folder: The run folder.
        source: What made its frames; its memory is empty.
        plan: Its plan.
        chunk: The first chunk of the film that is to be another.
        audited: What of the render can be trusted.
        store: Its snapshots.
        recovery: The way to the memory before `chunk` was made.
    """

    folder: RunFolder
    source: FrameSource
    plan: Plan
    chunk: int
    audited: RunAudit
    store: SnapshotStore
    recovery: RecoveryPlan

    @property
    def made(self) -> int:
        """How many chunks were made before `chunk`: they are taken over."""
        return self.recovery.until

    @property
    def replayed(self) -> int:
        """Chunks that are committed again from their latents."""
        return self.made - self.recovery.begin - len(self.recovery.recompute)

    def keeps(self, line: Line) -> bool:
        """Whether what a line of the journal tells of is taken over, and can be."""
        kept = self.plan.order[: self.made]
        if isinstance(line, SegmentLine):
            whole = line.index < len(self.audited.segments)
            return whole and all(chunk in kept for chunk in self.plan.chunks_of(line.index))
        if isinstance(line, SoundLine):
            audio = self.folder.record.config.get("audio")
            own = isinstance(audio, dict) and audio.get("file") is not None
            return self.plan.given.latent_frames > 0 and not own  # as long as the film
        return isinstance(line, ChunkLine) and line.index in kept


def locate(folder: RunFolder, source: FrameSource, plan: Plan, chunk: int) -> BranchPoint:
    """Look for the memory as it was before `chunk`; the caller holds the lock of the run.

    Raises:
        UsageError: The chunk is not made yet, or the render branched off after it.
        SnapshotCorrupt: It cannot be found.
    """
    audited, made = audit(folder, plan), plan.order.index(chunk)
    if made > len(audited.lines):
        raise UsageError(
            f"{folder.path} is rendered up to chunk {len(audited.lines)} of {plan.chunks}, and "
            f"chunk {chunk + 1} is asked for",
            "resume it first, or take an earlier time",
        )
    if made < folder.record.base:
        begins = plan.chunk(plan.order[folder.record.base]).frame_start / plan.geometry.fps
        raise UsageError(
            f"{folder.path} branched off after chunk {folder.record.base}, at {begins:.2f} s, and "
            f"chunk {chunk + 1} lies before that",
            "take a later time, or branch off from the render that it came from",
        )
    store = SnapshotStore(
        folder.snapshots, folder.record.digest, budget_nbytes=NO_BUDGET, base=folder.record.base
    )
    recovery = plan_memory(
        made,
        audited,
        store,
        snapshot_before=min(made, audited.first(audited.damaged)),
        replayable=source.memory.replayable,
        given=plan.all_given,
    )
    return BranchPoint(
        folder=folder,
        source=source,
        plan=plan,
        chunk=chunk,
        audited=audited,
        store=store,
        recovery=recovery,
    )


def fork(point: BranchPoint, path: Path, record: RunRecord) -> Iterator[int]:
    """Make the run folder of a render that goes on from `point`, yielding chunks passed again.

    Args:
        point: Where.
        path: The new run folder; one that is there is emptied, if `record` may overwrite.
        record: What the new render is; its base is set here.

    Raises:
        OutputRefused: Something is there that may not be overwritten.
        SnapshotMismatch: This machine does not make the same frames again.
        BudgetError, WriterError: The disk refused.
    """
    record = replace(record, base=point.made, parts=_parts(point, record))
    yield from _pass(point)
    with disk_errors(path):
        path.mkdir(exist_ok=True)
    with Lock(path / LOCK):
        if not record.overwrite:
            refuse_existing(path.parent / record.output, path)
        make_empty(path)
        with disk_errors(path):
            for line in _lines(point):
                if isinstance(line, ChunkLine):
                    _link(point.folder.latents(line.index), path / "latents")
                elif isinstance(line, SegmentLine):
                    _link(point.audited.segments[line.index].path, path / "segments")
                elif isinstance(line, SoundLine) and line.nbytes:
                    _link(sound_of(point.folder.path), path)
            for name in ("latents", "segments"):
                sync_folder(path / name)
        _save(point, path / "snapshots", record)
        # Without its record it is nothing yet, and with it the render is whole: see RunFolder.
        Journal(part_of(path / JOURNAL), run=record.digest).rewrite(_lines(point))
        write_record(path, record)
        settle_journal(path / JOURNAL)


def retry_from(point: BranchPoint, record: RunRecord) -> Iterator[int]:
    """Replace what a render made from `point` on, yielding chunks passed again.

    Until the record is written, the last thing of all, the render is what it was.

    Args:
        point: Where; the caller holds the lock of the run.
        record: What the render becomes; its base and take are set here.

    Raises:
        SnapshotMismatch: This machine does not make the same frames again.
        BudgetError, WriterError: The disk refused.
    """
    point.folder.require_replaceable()  # before anything is changed
    before = point.folder.record
    # What comes before has the shots that it had, so it can still be committed again from latents.
    base = point.made
    sound = not before.base or point.store.newest(before=before.base) == before.base
    if sound and point.source.memory.replayable:
        base = before.base
    record = replace(
        record,
        base=base,
        take=before.take + 1,
        overwrite=point.folder.mine,
        parts=_parts(point, record),
    )
    yield from _pass(point)
    path = point.folder.path
    stem, _, ending = JOURNAL.partition(".")
    snapshots, journal = path / f"snapshots-{record.take}", path / f"{stem}-{record.take}.{ending}"
    with disk_errors(snapshots):
        if snapshots.exists():
            shutil.rmtree(snapshots)
    _save(point, snapshots, record)
    Journal(journal, run=record.digest).rewrite(_lines(point))
    write_record(path, record)
    with contextlib.suppress(OSError):
        point.folder.journal.path.unlink()
        shutil.rmtree(point.folder.snapshots)


def _parts(point: BranchPoint, record: RunRecord) -> list[dict[str, object]]:
    """What the frames before the point were made with, where it is not what `record` has."""
    before, start = point.folder.record, point.plan.chunk(point.chunk).frame_start
    parts = [*before.parts, {"until_frame": point.plan.frames, "seed": before.config["seed"]}]
    kept: list[dict[str, object]] = []
    for part in parts:
        begins = int(str(kept[-1]["until_frame"])) if kept else 0
        if begins < start:
            kept.append({**part, "until_frame": min(start, int(str(part["until_frame"])))})
    if kept and kept[-1].get("prompt") is None and kept[-1]["seed"] == record.config["seed"]:
        kept.pop()
    return kept


def _pass(point: BranchPoint) -> Iterator[int]:
    passed = replay(point.source, point.folder, point.store, point.audited, point.recovery)
    for chunk in passed:
        yield chunk.index


def _save(point: BranchPoint, snapshots: Path, record: RunRecord) -> None:
    """Snapshots to go on from: at the point, and at the base if that lies before."""
    store = SnapshotStore(snapshots, record.digest, budget_nbytes=NO_BUDGET, base=record.base)
    if 0 < record.base < point.made:
        store.save(record.base, point.store.load(record.base))
    if point.made:
        store.save(point.made, point.source.memory.state())


def _lines(point: BranchPoint) -> list[Line]:
    """The lines of the chunks before the point, and of the segments that end before it."""
    return [line for line in point.audited.journal if point.keeps(line)]


def _link(file: Path, folder: Path) -> None:
    """The same file in another folder; its content is never changed in place."""
    link_or_copy(file, folder / file.name)
