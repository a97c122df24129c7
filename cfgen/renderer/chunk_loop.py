"""The loop of a render: chunks are made, kept, decoded and encoded, in the order of the plan.

Chunks may be made in another order than they play in: a chunk that is made before one that plays
earlier is decoded once that one is there, from the latents that the run folder keeps.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from cfgen.errors import BudgetError, Interrupted, WriterError
from cfgen.model.vae import Mode
from cfgen.renderer.events import (
    ChunkDone,
    Encoded,
    Event,
    Finished,
    Noted,
    Previewed,
    Resumed,
    Warned,
)
from cfgen.renderer.playing import Playing
from cfgen.renderer.recorder import RunRecorder
from cfgen.renderer.replay import kept_chunk, replay, require_same
from cfgen.renderer.source import FrameSource
from cfgen.rollout.loop import Chunk
from cfgen.runs.folder import RunFolder
from cfgen.runs.recovery import RunAudit, chunk_list, plan_recovery
from cfgen.runs.snapshot import SnapshotStore
from cfgen.units import bytes_words, count
from cfgen.video.output import resume_command
from cfgen.video.preview import Frames, Preview
from cfgen.video.writer import VideoWriter


@dataclass(slots=True)
class StopRequest:
    """What may be asked of a render while it works: to stop after the chunk that is being made.

    Attributes:
        why: What stopped it, such as ``interrupted``; None until then.
        exit_code: That of the `Interrupted` that it ends with.
    """

    why: str | None = None
    exit_code: int = 130


class ChunkLoop:
    """Makes all chunks of a film that are not made yet, and the film of them.

    Args:
        source: What makes the frames.
        writer: Where they go; it is open.
        folder: The run folder.
        store: Its snapshots.
        recorder: What writes to it.
        audited: What was made before.
        mode: What is kept, as in `SnapshotConfig`.
        stop: Looked at between two chunks.
        preview: Shows the frames while more are made, if that is asked for.

    Attributes:
        recorded: Whether a chunk was written down.
    """

    def __init__(
        self,
        source: FrameSource,
        writer: VideoWriter,
        folder: RunFolder,
        store: SnapshotStore,
        recorder: RunRecorder,
        audited: RunAudit,
        *,
        mode: str,
        stop: StopRequest,
        preview: Preview | None = None,
    ) -> None:
        self.source, self.writer, self.plan = source, writer, source.plan
        self.recorded = False
        self._folder, self._store, self._recorder = folder, store, recorder
        self._audited, self._mode, self._stop = audited, mode, stop
        self._preview = preview
        self._segments_nbytes = sum(segment.nbytes for segment in audited.segments)
        self._frames_made = sum(line.frames for line in audited.lines)
        self._lines = {line.index: line for line in audited.lines}
        self._playing, self._state = Playing[int](), source.vae.start()

    def restore(self) -> Iterator[Event]:
        """Bring memory, decoder and encoder to where they were after the last chunk."""
        audited, state = self._audited, self._state
        recovery = plan_recovery(
            audited,
            self.plan,
            self._store,
            warm_up=self.source.warm_up,
            replayable=self.source.memory.replayable,
        )
        decode_from, encode_from = recovery.decode_from or 0, recovery.encode_from or 0
        self._playing.next = decode_from
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
        yield Resumed(
            chunk=recovery.until,
            chunks=self.plan.chunks,
            frames_done=self._frames_made,
            frames_total=self.plan.frames,
            elapsed_s=audited.lines[-1].elapsed_s if audited.lines else 0.0,
            snapshot=recovery.snapshot,
            replayed=recovery.until - recovery.memory_from - len(recovery.recompute),
            made_again=len(recovery.recompute),
            encoded_again=sum(
                line.frames
                for line in self._lines.values()
                if line.index >= encode_from and line.frames_sha256
            ),
        )
        for made in replay(self.source, self._folder, self._store, audited, recovery):
            self._stop_here(recovery.until)
            if made.index < decode_from:
                continue
            for index in self._playing.add(made.index, made.index):
                self._stop_here(recovery.until)
                chunk = made if index == made.index else self._kept(index)
                line = self._lines[index]  # frames are the same only if decoded likewise
                state.mode = before = Mode(line.tile or None, line.on_cpu)
                frames = self.source.decode(chunk, state)
                if not line.frames_sha256:
                    yield from self._told_later(index, before)
                if chunk.index >= encode_from and len(frames):
                    self.writer.write(frames)
                    now = self.writer.frames_sha256
                    require_same(self._folder, line.frames_sha256 or now, now)
                    yield from self._previewed(frames)
                    yield from self._end_segment(chunk.index)

    def render(self) -> Iterator[Event]:
        """Make the chunks that are still to be made.

        Where a source decodes beside the next chunk, that chunk is begun before this one's frames
        are waited for, unless the memory is to be kept as it is now.
        """
        making, order, state = self.source.making(), self.plan.order, self._state
        first = len(self._audited.lines)
        if first < len(order):
            self._stop_here(first)
            making.start(order[first])
        for done in range(first + 1, len(order) + 1):
            chunk, before = making.finish(), state.mode
            # This chunk first, if it can play yet, then those that were made early and wait for it.
            playable = list(self._playing.add(chunk.index, chunk.index))
            seen = playable and chunk.index >= self.source.decode_from
            decoding = self.source.decoding(chunk, state) if seen else None
            beside = self.source.beside
            pauses = not beside or self._must_sync()
            if done < len(order) and not pauses:
                making.start(order[done])
            frames = None if decoding is None else decoding.wait()
            yield from self._told(chunk.index, before)
            sha256 = self._recorder.latents(chunk.index, chunk.latents)
            if frames is None or not len(frames):
                yield self._record(chunk.index, sha256, "", state.mode)
            else:
                self.writer.write(frames)
                yield self._record(chunk.index, sha256, self.writer.frames_sha256, state.mode)
                yield from self._previewed(frames)
                yield from self._end_segment(chunk.index)
            if len(playable) > 1 and done == len(order):
                yield Noted(message=f"{count(done, 'chunk')} made; now the video is written")
            for later in playable[1:]:
                if done == len(order):
                    self._stop_here(done)
                before = state.mode
                frames = self.source.decode(self._kept(later), state)
                self.writer.write(frames)
                yield from self._previewed(frames)
                yield from self._told_later(later, before)
                yield from self._end_segment(later)
            if done < len(order) and pauses:
                if self._mode == "full" and (beside or self._must_sync()):
                    yield self._recorder.snapshot(done)
                self._stop_here(done)
                making.start(order[done])

    def _kept(self, index: int) -> Chunk:
        """A chunk that was made before, as the run folder keeps it.

        Raises:
            SnapshotCorrupt: Its latents changed since.
        """
        return kept_chunk(self._folder, self.plan, self._lines[index])

    def _previewed(self, frames: Frames) -> Iterator[Event]:
        """Show frames that were just written; a preview that cannot be made stops nothing else."""
        if self._preview is None or not len(frames):
            return
        self._recorder.require_lock()
        try:
            self._preview.write(frames, self.writer.frames - len(frames))
        except (WriterError, BudgetError) as error:
            self._preview.kill()
            self._preview = None
            yield Warned(message=f"the preview ends here: {error}", hint="the film goes on")
        else:
            yield Previewed(film=self._preview.film, picture=self._preview.picture)

    def _told(self, index: int, before: Mode) -> Iterator[Warned]:
        """A warning if frames are decoded in another mode than before."""
        if self._state.mode != before:
            yield Warned(
                message=f"memory ran out while chunk {index + 1} was decoded; from it on frames "
                f"are decoded {self._state.mode}, which can show at the tiles' borders",
                hint="nothing is lost; a smaller --size or --offload all leaves more room",
            )

    def _told_later(self, index: int, before: Mode) -> Iterator[Warned]:
        """As `_told`, of a chunk that was written down before it was decoded."""
        yield from self._told(index, before)
        if self._state.mode != before:
            self._lines = self._recorder.note_mode(index, self._state.mode)

    def _must_sync(self) -> bool:
        """Whether something is to be done before the next chunk is begun."""
        due = self._mode == "full" and self._recorder.snapshot_due
        return due or self._stop.why is not None

    def _stop_here(self, chunk: int) -> None:
        """Stop after `chunk` chunks if a signal came.

        Raises:
            Interrupted: It did.
        """
        if self._stop.why and chunk == 0:
            raise Interrupted(
                f"{self._stop.why} before the first chunk: nothing was begun",
                exit_code=self._stop.exit_code,
            )
        if self._stop.why:
            hint = f"go on with `{resume_command(self._folder.path)}`"
            raise Interrupted(
                f"{self._stop.why} after chunk {chunk} of {self.plan.chunks}",
                "nothing was kept: --snapshot off" if self._mode == "off" else hint,
                exit_code=self._stop.exit_code,
            )

    def _record(self, index: int, sha256: str, frames_sha256: str, mode: Mode) -> ChunkDone:
        """Write down a chunk that is new."""
        frames = self.plan.chunk(index).frames
        line = self._recorder.chunk(
            index, frames, frames_sha256=frames_sha256, latents_sha256=sha256, mode=mode
        )
        self.recorded, self._lines[index] = True, line
        self._frames_made += frames
        return ChunkDone(
            index=index,
            chunks=self.plan.chunks,
            frames_done=self._frames_made,
            frames_total=self.plan.frames,
            elapsed_s=line.elapsed_s,
            memory=line.memory,
        )

    def _end_segment(self, index: int) -> Iterator[Encoded]:
        """Close the segment if it ends with this chunk."""
        if self.plan.chunk(index).ends_segment:
            self._recorder.require_lock()
            segment = self.writer.end_segment()
            self._recorder.segment(segment)
            self._segments_nbytes += segment.nbytes
            self._require_disk()
            yield Encoded(path=segment.path, segment=segment.index, frames=segment.frames)

    def _require_disk(self) -> None:
        """Stop while there is still room to join what is encoded and to write what is left."""
        path, plan, done = self._folder.path, self.plan, self.writer.frames
        to_come = self._segments_nbytes * plan.frames // done - self._segments_nbytes
        needed = 2 * to_come + self._segments_nbytes
        free = shutil.disk_usage(path).free
        if free < needed:
            raise BudgetError(
                f"the disk of {path} has {bytes_words(free)} free, and the rest of the video "
                f"needs about {bytes_words(needed)}",
                f"free some space, then go on with `{resume_command(path)}`",
            )

    def finish(self) -> Finished:
        """Join what is encoded, and give the video its name."""
        self._recorder.require_lock()
        facts = self.writer.join()
        self._recorder.video(facts)
        self.writer.publish()
        if self._preview is not None:
            self._preview.remove()
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
