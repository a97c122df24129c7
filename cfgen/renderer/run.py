"""The render itself: chunks are made, kept, decoded and encoded, and nothing finished is lost.

Each chunk's latents go to the run folder before its frames go to the encoder, and a line of the
journal comes last; snapshots of the memory are taken as often as the disk allows. A render that was
stopped, however it was stopped, goes on from there and gives the film that would have been.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import fields
from pathlib import Path

from cfgen.errors import (
    BudgetError,
    CfgenError,
    WriterError,
)
from cfgen.files.writing import disk_errors
from cfgen.renderer.chunk_loop import ChunkLoop, StopRequest
from cfgen.renderer.events import (
    ChunkDone,
    Event,
    Finished,
    Loaded,
    Warned,
)
from cfgen.renderer.recorder import RunRecorder
from cfgen.renderer.source import FrameSource
from cfgen.runs.beginning import believed, keep_sound, told
from cfgen.runs.contents import LOCK, remove
from cfgen.runs.folder import RunFolder, RunRecord
from cfgen.runs.journal import ChunkLine, VideoLine
from cfgen.runs.lock import PATIENCE_S, Lock, look
from cfgen.runs.recovery import audit
from cfgen.runs.snapshot import SnapshotStore
from cfgen.timeline import Plan
from cfgen.video.output import refuse_existing, sidecar_of
from cfgen.video.preview import Preview
from cfgen.video.writer import VideoWriter


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
        sound: Gives the sound of the video, None where there is none.
        preview: Shows the frames while more are made, if that is asked for.
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
        sound: Callable[[], Iterable[bytes]] | None = None,
        preview: Preview | None = None,
    ) -> None:
        self.source, self.writer = source, writer
        self._path, self._record = path, record
        self._mode, self._budget, self._clean = mode, budget_nbytes, clean
        self._loaded, self._warnings, self._sound = loaded, warnings, sound
        self._stop, self._preview = StopRequest(), preview
        self._loop: ChunkLoop | None = None
        self._resume = False
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
        self._resume = True
        self._allow_changed = allow_changed

    def stop(self, why: str, *, exit_code: int) -> None:
        """Stop after the chunk that is being made, leaving everything ready to go on.

        Args:
            why: What stopped it, such as ``interrupted``.
            exit_code: That of the `Interrupted` that `run` will raise.
        """
        self._stop.why, self._stop.exit_code = why, exit_code

    def run(self) -> Generator[Event, None, None]:
        """Render, yielding what happens. Whatever stops it, the output is complete or untouched.

        Raises:
            CfgenError: It cannot go on; `Interrupted` after `stop`.
        """
        yield self._loaded
        yield from self._warnings
        with disk_errors(self._path):
            self._path.mkdir(exist_ok=True)
        owner, lives = look(self._path / LOCK)
        if lives is None:
            yield Warned(
                message=f"{self._path} is locked by {owner or 'somebody'}",
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
            self.source.close()
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
        begun = self._mode != "off" and self._loop is not None and self._loop.recorded
        useless = self._clean or self._mode == "off" if done else not (begun or self._resume)
        if useless and self._lock.held:
            try:
                remove(self._path)
            except CfgenError as error:
                self._kept = str(error)

    def _locked(self) -> Generator[Event, None, None]:
        if self._video is not None:
            yield self._finished(self._video)
            return
        folder = self._folder
        record, journal = folder.record, folder.journal
        store = SnapshotStore(
            folder.snapshots, record.digest, budget_nbytes=self._budget, base=record.base
        )
        audited = audit(folder, self.plan)
        if audited.journal != tuple(journal.lines) or journal.problem:
            journal.rewrite(audited.journal)
        self.writer.go_on(audited.segments)
        if self._sound is not None:
            self.writer.sound = keep_sound(folder, self._sound)
        recorder = RunRecorder(folder, store, self._lock, self.source.memory)
        with self.writer:
            try:
                loop = self._loop = ChunkLoop(
                    *(self.source, self.writer, folder, store, recorder, audited),
                    mode=self._mode,
                    stop=self._stop,
                    preview=self._preview,
                )
                if self._resume:
                    yield from loop.restore()
                yield from loop.render()
                yield loop.finish()
            except BaseException:
                if not self._lock.held:
                    self.writer.let_go()  # its files are another process's by now
                raise
            finally:
                if self._preview is not None:
                    self._preview.kill()

    def _opened(self) -> RunFolder:
        """The run folder, made anew or as it is; the lock is ours.

        Raises:
            CfgenError: What is there is not what this render may go on with, or replace.
        """
        if not self._resume:
            self.writer.add_metadata(told(self._record))
            return RunFolder.create(self._path, self._record)
        folder = RunFolder(self._path)
        self._video = folder.finished
        if self._video is None:  # what is finished and whole is so whatever changed since
            now = believed(folder, self._record, self.plan)
            folder.expect(now, allow_changed=self._allow_changed)
        self.writer.add_metadata(told(folder.record))
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
