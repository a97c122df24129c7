"""The render itself: chunks are made, kept, decoded and encoded, and nothing finished is lost.

Each chunk's latents go to the run folder before its frames go to the encoder, and a line of the
journal comes last; snapshots of the memory are taken as often as the disk allows. A render that was
stopped, however it was stopped, goes on from there and gives the film that would have been.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Generator, Iterator
from dataclasses import fields
from pathlib import Path

from cfgen.errors import (
    BudgetError,
    CfgenError,
    Interrupted,
    WriterError,
)
from cfgen.files.writing import disk_errors
from cfgen.model.vae import Mode, State
from cfgen.renderer.events import (
    ChunkDone,
    Encoded,
    Event,
    Finished,
    Loaded,
    Resumed,
    Warned,
)
from cfgen.renderer.recorder import RunRecorder
from cfgen.renderer.replay import replay, require_same
from cfgen.renderer.source import Frames, FrameSource
from cfgen.runs.folder import LOCK, RunFolder, RunRecord, remove
from cfgen.runs.journal import ChunkLine, VideoLine
from cfgen.runs.lock import PATIENCE_S, Lock, must_watch, read_owner
from cfgen.runs.recovery import RunAudit, audit, chunk_list, plan_recovery
from cfgen.runs.snapshot import SnapshotStore
from cfgen.timeline import Plan
from cfgen.units import bytes_words
from cfgen.video.output import refuse_existing, resume_command, sidecar_of
from cfgen.video.writer import VideoWriter

WHOLE = Mode()
"""Frames decoded whole, which is the rule."""


class Render:
    """A source of frames, the writer that they go to, and the run folder that keeps them.

    Args:
        source: What makes the frames.
        writer: Where they go; its parts folder is that of the run.
        path: The run folder.
        record: What the render is, with the fingerprint of this machine.
        mode: What is kept, as in `SnapshotConfig`.
        budget_nbytes: Disk for snapshots.
        clean: Whether the run folder goes when the video is finished.
        loaded: Told before the first chunk.
        warnings: Told after it.
    """

    def __init__(
        self,
        *,
        source: FrameSource,
        writer: VideoWriter,
        path: Path,
        record: RunRecord,
        mode: str,
        budget_nbytes: int,
        clean: bool,
        loaded: Loaded,
        warnings: tuple[Warned, ...] = (),
    ) -> None:
        self.source, self.writer = source, writer
        self._path, self._record = path, record
        self._mode, self._budget, self._clean = mode, budget_nbytes, clean
        self._loaded, self._warnings = loaded, warnings
        self._stop: str | None = None
        self._exit_code = 130
        self._resume = self._worth_keeping = False
        self._video: VideoLine | None = None
        self._kept = ""
        self._allow_changed: frozenset[str] = frozenset()

    @property
    def record(self) -> RunRecord:
        """What the render is, here and now."""
        return self._record

    @property
    def plan(self) -> Plan:
        """What is made."""
        return self.source.plan

    def resume(self, allow_changed: frozenset[str] = frozenset()) -> None:
        """Before `run`: go on with what is in the run folder, instead of emptying it.

        Args:
            allow_changed: Names in the fingerprint that may differ.
        """
        self._resume = self._worth_keeping = True
        self._allow_changed = allow_changed

    def stop(self, why: str, *, exit_code: int) -> None:
        """Stop after the chunk that is being made, leaving everything ready to go on.

        Args:
            why: What stopped it, such as ``interrupted``.
            exit_code: That of the `Interrupted` that `run` will raise.
        """
        self._stop, self._exit_code = why, exit_code

    def run(self) -> Iterator[Event]:
        """Render, yielding what happens. Whatever stops it, the output is complete or untouched.

        Raises:
            CfgenError: It cannot go on; `Interrupted` after `stop`.
        """
        yield self._loaded
        yield from self._warnings
        with disk_errors(self._path):
            self._path.mkdir(exist_ok=True)
        if must_watch(self._path / LOCK):
            yield Warned(
                message=f"{self._path} is locked by {read_owner(self._path / LOCK) or 'somebody'}",
                hint=f"watching for up to {PATIENCE_S:.0f} s whether that process lives",
            )
        try:
            with Lock(self._path / LOCK) as lock:
                self._lock = lock
                if not self._resume and not self._record.overwrite:
                    # Once more: another process may have rendered it while the model was loaded.
                    refuse_existing(self._path.parent / self._record.output, self._path)
                done = False
                try:
                    self._folder = self._opened()
                    yield from self._logged()
                    done = True
                finally:
                    self._leave(done)
        finally:
            with contextlib.suppress(OSError):
                self._path.rmdir()  # if nothing is in it
        if self._kept:
            yield Warned(message=f"the run folder stays: {self._kept}")

    def _logged(self) -> Generator[Event, None, None]:
        """The work, with a log for people; the journal has the chunks."""
        try:
            with contextlib.closing(self._locked()) as work:
                for event in work:
                    if self._lock.held and not isinstance(event, ChunkDone):
                        facts = (
                            f"{item.name} {getattr(event, item.name)}" for item in fields(event)
                        )
                        self._folder.log(f"{type(event).__name__}: {', '.join(facts)}")
                    yield event
        except CfgenError as error:
            if isinstance(error, BudgetError):
                error.exit_code = WriterError.exit_code  # work had begun
            with contextlib.suppress(CfgenError):  # the disk may be what stopped it
                if self._lock.held:
                    self._folder.log(f"stopped: {error}")
            raise

    def _leave(self, done: bool) -> None:
        """Remove the run folder where nothing in it is of use to anybody."""
        useless = self._clean or self._mode == "off" if done else not self._worth_keeping
        if useless and self._lock.held:
            try:
                remove(self._path)
            except CfgenError as error:
                self._kept = str(error)

    def _locked(self) -> Generator[Event, None, None]:
        if self._video is not None:
            yield self._finished(self._video)
            return
        self._store = SnapshotStore(
            self._folder.snapshots,
            self._folder.record.digest,
            budget_nbytes=self._budget,
            base=self._folder.record.base,
        )
        audited = audit(self._folder, self.plan)
        if audited.journal != tuple(self._folder.journal.lines) or self._folder.journal.problem:
            self._folder.journal.rewrite(audited.journal)
        self.writer.go_on(audited.segments)
        self._segments_nbytes = sum(segment.nbytes for segment in audited.segments)
        self._recorder = RunRecorder(self._folder, self._store, self._lock, self.source.memory)
        with self.writer:
            try:
                state = self.source.vae.start()
                if self._resume:
                    yield from self._restore(audited, state)
                yield from self._render_rest(len(audited.lines), state)
                yield self._finish()
            except BaseException:
                if not self._lock.held:
                    self.writer.let_go()  # its files are another process's by now
                raise

    def _opened(self) -> RunFolder:
        """The run folder, made anew or as it is; the lock is ours.

        Raises:
            CfgenError: What is there is not what this render may go on with, or replace.
        """
        if not self._resume:
            return RunFolder.create(self._path, self._record)
        folder = RunFolder(self._path)
        self._video = folder.finished
        if self._video is None:  # what is finished and whole is so whatever changed since
            folder.expect(self._record, allow_changed=self._allow_changed)
        if folder.record.parts:
            parts = json.dumps(folder.record.parts, ensure_ascii=False)
            self.writer.add_metadata({"parts": parts})
        if self._video is None:
            folder.require_replaceable()
        return folder

    def _finished(self, line: VideoLine) -> Finished:
        """What there is to tell of a video that is in its place; what it was made from may go."""
        with disk_errors(self._folder.segments):
            self.writer.remove_segments()
        chunks = self._folder.journal.of(ChunkLine)
        return Finished(
            output=self._folder.output,
            frames=line.frames,
            seconds=self.plan.seconds,
            elapsed_s=chunks[-1].elapsed_s if chunks else 0.0,
            sidecar=sidecar_of(self._folder.output),
        )

    def _restore(self, audited: RunAudit, state: State) -> Iterator[Event]:
        """Bring memory, decoder and encoder to where they were after the last chunk."""
        recovery = plan_recovery(
            audited,
            self.plan,
            self._store,
            warm_up=self.source.warm_up,
            replayable=self.source.memory.replayable,
        )
        decode_from, encode_from = recovery.decode_from or 0, recovery.encode_from or 0
        again = [chunk for chunk in audited.damaged if chunk in recovery.recompute]
        spared = [chunk for chunk in audited.damaged if chunk not in recovery.recompute]
        problems = [*audited.problems, *self._store.problems]
        if again:
            problems.append(f"the latents of {chunk_list(again)} are damaged and made again")
        if spared:
            problems.append(
                f"the latents of {chunk_list(spared)} are missing or damaged; only a branch or a "
                "retry before them needs them, and makes them again"
            )
        for problem in problems:
            yield Warned(message=problem)
        self._store.drop(after=recovery.until)
        done = sum(line.frames for line in audited.lines)
        yield Resumed(
            chunk=recovery.until,
            chunks=self.plan.chunks,
            frames_done=done,
            frames_total=self.plan.frames,
            elapsed_s=audited.lines[-1].elapsed_s if audited.lines else 0.0,
            snapshot=recovery.snapshot,
            replayed=recovery.until - recovery.memory_from - len(recovery.recompute),
            made_again=len(recovery.recompute),
            encoded_again=sum(line.frames for line in audited.lines[encode_from:]),
        )
        for chunk in replay(self.source, self._folder, self._store, audited, recovery):
            self._stop_here(recovery.until)
            if chunk.index >= decode_from:
                line = audited.lines[chunk.index]  # frames are the same only if decoded likewise
                state.mode = Mode(line.tile or None, line.on_cpu)
                frames = self.source.decode(chunk, state)
                if chunk.index >= encode_from:
                    yield from self._encode(chunk.index, frames, before=audited.lines[chunk.index])

    def _render_rest(self, first: int, state: State) -> Iterator[Event]:
        """Make the chunks that are still to be made.

        Where a source decodes beside the next chunk, that chunk is begun before this one's frames
        are waited for, unless the memory is to be kept as it is now.
        """
        making, order = self.source.making(), self.plan.order
        if first < len(order):
            self._stop_here(first)
            making.start(order[first])
        for done in range(first + 1, len(order) + 1):
            chunk, before = making.finish(), state.mode
            decoding = self.source.decoding(chunk, state)
            beside = self.source.beside
            pauses = not beside or self._must_sync()
            if done < len(order) and not pauses:
                making.start(order[done])
            frames = decoding.wait()
            if state.mode != before:
                yield Warned(
                    message=f"memory ran out while chunk {chunk.index + 1} was decoded; from it "
                    f"on frames are decoded {state.mode}, which can show at the tiles' borders",
                    hint="nothing is lost; a smaller --size or --offload all leaves more room",
                )
            sha256 = self._recorder.latents(chunk.index, chunk.latents)
            yield from self._encode(chunk.index, frames, latents_sha256=sha256, mode=state.mode)
            if done < len(order) and pauses:
                if self._mode == "full" and (beside or self._must_sync()):
                    yield self._recorder.snapshot(done)
                self._stop_here(done)
                making.start(order[done])

    def _must_sync(self) -> bool:
        """Whether something is to be done before the next chunk is begun."""
        due = self._mode == "full" and self._recorder.snapshot_due
        return due or self._stop is not None

    def _stop_here(self, chunk: int) -> None:
        """Stop before `chunk` if a signal came.

        Raises:
            Interrupted: It did.
        """
        if self._stop and chunk == 0:
            raise Interrupted(
                f"{self._stop} before the first chunk: nothing was begun",
                exit_code=self._exit_code,
            )
        if self._stop:
            hint = f"go on with `{resume_command(self._path)}`"
            raise Interrupted(
                f"{self._stop} after chunk {chunk} of {self.plan.chunks}",
                "nothing was kept: --snapshot off" if self._mode == "off" else hint,
                exit_code=self._exit_code,
            )

    def _encode(
        self,
        index: int,
        frames: Frames,
        *,
        latents_sha256: str | None = None,
        mode: Mode = WHOLE,
        before: ChunkLine | None = None,
    ) -> Iterator[Event]:
        """Hand a chunk's frames to the encoder; a chunk that is new gets its line and its event.

        Args:
            index: The chunk.
            frames: Its frames.
            latents_sha256: Digest of its latents, if it is new.
            mode: How it was decoded, if it is new.
            before: Its line, if it is not.
        """
        planned = self.plan.chunk(index)
        self.writer.write(frames)
        if before is not None:  # and before a segment can end with it
            require_same(self._folder, before.frames_sha256, self.writer.frames_sha256)
        if latents_sha256 is not None:
            line = self._recorder.chunk(
                index,
                len(frames),
                frames_sha256=self.writer.frames_sha256,
                latents_sha256=latents_sha256,
                mode=mode,
            )
            self._worth_keeping = self._mode != "off"
            yield ChunkDone(
                index=index,
                chunks=self.plan.chunks,
                frames_done=planned.frame_start + len(frames),
                frames_total=self.plan.frames,
                elapsed_s=line.elapsed_s,
                memory=line.memory,
            )
        if planned.ends_segment:
            self._recorder.require_lock()
            segment = self.writer.end_segment()
            self._recorder.segment(segment)
            self._segments_nbytes += segment.nbytes
            self._require_disk()
            yield Encoded(path=segment.path, segment=segment.index, frames=segment.frames)

    def _require_disk(self) -> None:
        """Stop while there is still room to join what is encoded and to write what is left."""
        plan, done = self.plan, self.writer.frames
        to_come = self._segments_nbytes * plan.frames // done - self._segments_nbytes
        needed = 2 * to_come + self._segments_nbytes
        free = shutil.disk_usage(self._path).free
        if free < needed:
            raise BudgetError(
                f"the disk of {self._path} has {bytes_words(free)} free, and the rest of the video "
                f"needs about {bytes_words(needed)}",
                f"free some space, then go on with `{resume_command(self._path)}`",
            )

    def _finish(self) -> Finished:
        self._recorder.require_lock()
        facts = self.writer.join()
        self._recorder.video(facts)
        self.writer.publish()
        self._store.keep_newest()
        return Finished(
            output=facts.path,
            frames=facts.frames,
            seconds=facts.duration_s,
            elapsed_s=self._recorder.elapsed_s,
            sidecar=facts.sidecar,
            keeping_s=self._recorder.keeping_s,
            snapshots_nbytes=self._recorder.snapshots_nbytes,
        )
