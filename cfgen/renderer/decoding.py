"""Latents that a run keeps are decoded again: to another file, by another VAE, without a generator.

The new video has a run folder of its own, as a branch has, in which every chunk is made already:
latents are linked, and the lines of the journal tell of no frames yet. So whatever goes on with a
run goes on with this one too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cfgen.errors import Interrupted, SnapshotCorrupt, UsageError
from cfgen.files.writing import disk_errors, link_or_copy, part_of, sync_folder
from cfgen.model.vae import Mode
from cfgen.renderer.chunk_loop import StopRequest
from cfgen.renderer.events import ChunkDone, Encoded, Event, Finished, Loaded, Noted
from cfgen.renderer.recorder import RunRecorder
from cfgen.renderer.replay import kept_chunk, require_same
from cfgen.renderer.source import FrameDecoder
from cfgen.runs.beginning import keep_sound, sound_of, told
from cfgen.runs.contents import JOURNAL, LOCK, make_empty
from cfgen.runs.folder import RunFolder, RunRecord, settle_journal, write_record
from cfgen.runs.journal import ChunkLine, Journal, Line, SoundLine
from cfgen.runs.lock import Lock
from cfgen.runs.recovery import RunAudit, audit, chunk_list
from cfgen.runs.snapshot import SnapshotStore
from cfgen.timeline import Plan
from cfgen.video.output import refuse_existing, resume_command
from cfgen.video.writer import VideoWriter


def require_made(folder: RunFolder, plan: Plan) -> RunAudit:
    """What is there of a run that is rendered to its end.

    Raises:
        UsageError: It is not.
        SnapshotCorrupt: Latents are missing or damaged.
    """
    audited = audit(folder, plan)
    if len(audited.lines) < plan.chunks:
        raise UsageError(
            f"{folder.path} is rendered up to chunk {len(audited.lines)} of {plan.chunks}",
            f"finish it first: `{resume_command(folder.path)}`",
        )
    if audited.damaged:
        raise SnapshotCorrupt(
            f"the latents of {chunk_list(audited.damaged)} in {folder.path} are missing or damaged",
            "restore them, or render the film again",
        )
    return audited


def tells_of_no_frame(folder: RunFolder) -> bool:
    """Whether chunks are made and none has frames, as where `copy_latents` made them."""
    lines = folder.journal.of(ChunkLine)
    return bool(lines) and not any(line.frames_sha256 for line in lines)


def copy_latents(
    folder: RunFolder,
    plan: Plan,
    path: Path,
    record: RunRecord,
    *,
    tile: int | None,
    sound: bool,
) -> None:
    """Make the run folder of a video that is decoded from the latents of another run.

    Args:
        folder: The other run; the caller holds its lock.
        plan: The plan of both.
        path: The new run folder; one that is there is emptied, if `record` may overwrite.
        record: What the new run is.
        tile: Latent cells on the side of the tiles that it is decoded in, None for whole frames.
        sound: Whether it has the sound of the other.

    Raises:
        UsageError, SnapshotCorrupt: As `require_made`.
        OutputRefused: Something is there that may not be overwritten.
        BudgetError, WriterError: The disk refused.
    """
    lines: list[Line] = [
        replace(line, frames_sha256="", tile=tile or 0, on_cpu=False, elapsed_s=0.0)
        for line in require_made(folder, plan).lines
    ]
    heard = [line for line in folder.journal.of(SoundLine) if sound and line.nbytes]
    with disk_errors(path):
        path.mkdir(exist_ok=True)
    with Lock(path / LOCK):
        if not record.overwrite:
            refuse_existing(path.parent / record.output, path)
        make_empty(path)
        with disk_errors(path):
            for chunk in range(plan.chunks):
                file = folder.latents(chunk)
                link_or_copy(file, path / "latents" / file.name)
            sync_folder(path / "latents")
            if heard:
                heard_file = sound_of(folder.path)
                link_or_copy(heard_file, path / heard_file.name)
        # Without its record it is nothing yet, and with it everything is there: see RunFolder.
        journal = Journal(part_of(path / JOURNAL), run=record.digest)
        journal.rewrite([*heard[-1:], *lines])
        write_record(path, record)
        settle_journal(path / JOURNAL)


@dataclass(kw_only=True)
class Decoding:
    """Decodes and encodes what a run folder keeps; iterating over `run` does it.

    Attributes:
        decoder: What makes frames.
        writer: Where they go; its parts folder is that of the run.
        path: The run folder.
        record: What would be made here and now, with the fingerprint of this machine.
        loaded: Told first.
        sound: Gives the sound where the run keeps none of its own; None for what it keeps.
        allow_changed: Names in the fingerprint that may differ.
    """

    decoder: FrameDecoder
    writer: VideoWriter
    path: Path
    record: RunRecord
    loaded: Loaded
    sound: Callable[[], Iterable[bytes]] | None = None
    allow_changed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._stop = StopRequest()

    def stop(self, why: str, *, exit_code: int) -> None:
        """Stop after the chunk that is being decoded; see `Render.stop`."""
        self._stop.why, self._stop.exit_code = why, exit_code

    def run(self) -> Generator[Event, None, None]:
        """Decode, yielding what happens. Whatever stops it, the output is complete or untouched.

        Raises:
            CfgenError: It cannot go on; `Interrupted` after `stop`.
        """
        yield self.loaded
        with Lock(self.path / LOCK) as lock:
            folder = RunFolder(self.path)
            folder.expect(self.record, allow_changed=self.allow_changed)
            folder.require_replaceable()
            audited = require_made(folder, self.decoder.plan)
            if audited.journal != tuple(folder.journal.lines) or folder.journal.problem:
                folder.journal.rewrite(audited.journal)
            self.writer.add_metadata(told(folder.record))
            if folder.record.parts:
                parts = json.dumps(folder.record.parts, ensure_ascii=False)
                self.writer.add_metadata({"parts": parts})
            self.writer.go_on(audited.segments)
            self.writer.sound = self._kept_sound(folder)
            store = SnapshotStore(
                folder.snapshots, folder.record.digest, budget_nbytes=0, base=folder.record.base
            )
            recorder = RunRecorder(folder, store, lock, None)
            with self.writer:
                try:
                    yield from self._frames(folder, audited, recorder)
                    yield self._finish(recorder)
                except BaseException:
                    if not lock.held:
                        self.writer.let_go()  # its files are another process's by now
                    raise

    def _kept_sound(self, folder: RunFolder) -> Path | None:
        if self.sound is not None:
            return keep_sound(folder, self.sound)
        has = any(line.nbytes for line in folder.journal.of(SoundLine))
        return sound_of(folder.path) if has else None

    def _frames(
        self, folder: RunFolder, audited: RunAudit, recorder: RunRecorder
    ) -> Generator[Event, None, None]:
        """Decode what is not encoded yet, and what the decoder must see before that."""
        decoder, plan, state = self.decoder, self.decoder.plan, self.decoder.vae.start()
        lines = {line.index: line for line in audited.lines}
        encode_from = plan.chunks_of(len(audited.segments)).start
        first = max(decoder.decode_from, encode_from - decoder.warm_up)
        if audited.segments and first < plan.chunks:
            done = f"{self.writer.frames} of {plan.frames} frames are there"
            yield Noted(message=f"{folder.path} goes on: {done}")
        for index in range(max(0, first), plan.chunks):
            self._stop_here(folder, index)
            line = lines[index]
            state.mode = Mode(line.tile or None, line.on_cpu)
            frames = decoder.decode(kept_chunk(folder, plan, line), state)
            recorder.require_lock()
            if state.mode != Mode(line.tile or None, line.on_cpu):
                lines = recorder.note_mode(index, state.mode)
            if index >= encode_from and len(frames):
                self.writer.write(frames)
                now = self.writer.frames_sha256
                require_same(folder, line.frames_sha256 or now, now)
                if plan.chunk(index).ends_segment:
                    segment = self.writer.end_segment()
                    recorder.segment(segment)
                    yield Encoded(path=segment.path, segment=segment.index, frames=segment.frames)
            yield ChunkDone(
                index=index,
                chunks=plan.chunks,
                frames_done=self.writer.frames,
                frames_total=plan.frames,
                elapsed_s=recorder.elapsed_s,
            )

    def _stop_here(self, folder: RunFolder, chunk: int) -> None:
        if self._stop.why:
            raise Interrupted(
                f"{self._stop.why} after chunk {chunk} of {self.decoder.plan.chunks}",
                f"go on with `{resume_command(folder.path)}`",
                exit_code=self._stop.exit_code,
            )

    def _finish(self, recorder: RunRecorder) -> Finished:
        """Join what is encoded, and give the video its name."""
        recorder.require_lock()
        facts = self.writer.join()
        recorder.video(facts)
        self.writer.publish()
        return Finished(
            output=facts.path,
            frames=facts.frames,
            seconds=facts.duration_s,
            elapsed_s=recorder.elapsed_s,
            sidecar=facts.sidecar,
        )
