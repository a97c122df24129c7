"""What is written down while a render works: latents, the journal, snapshots of the memory.

A chunk's latents are written before its line in the journal, so a line never refers to latents that
are missing. Nothing is written by a process whose lock another one took.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import fields, replace
from datetime import UTC, datetime

from torch import Tensor

from cfgen.errors import LockHeld
from cfgen.files.writing import disk_errors, sync_file, sync_folder
from cfgen.memory.paged import PagedMemory
from cfgen.model.vae import Mode
from cfgen.renderer.events import Saved
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine, SegmentLine, SessionLine, VideoLine
from cfgen.runs.lock import Lock
from cfgen.runs.snapshot import SnapshotStore, tensor_blocks
from cfgen.video.facts import SegmentFacts, VideoFacts

SNAPSHOT_SHARE = 0.02
"""Share of the time that snapshots may take."""
FIRST_GUESS_BYTES_PER_S = 100e6
"""Speed of the disk until the first snapshot has measured it."""


class RunRecorder:
    """The writing side of a run folder.

    Args:
        folder: The run folder.
        store: Its snapshots.
        lock: Its lock, which is ours.
        memory: What snapshots are taken of; None where none are.

    Attributes:
        keeping_s: Seconds spent on writing latents and snapshots.
        snapshots_nbytes: Bytes of snapshots written.
    """

    def __init__(
        self, folder: RunFolder, store: SnapshotStore, lock: Lock, memory: PagedMemory | None
    ) -> None:
        self._folder, self._store, self._lock, self._memory = folder, store, lock, memory
        lines = folder.journal.of(ChunkLine)
        self._earlier_sessions_s = lines[-1].elapsed_s if lines else 0.0
        self._synced = max(store.chunks, default=0)  # chunks of the newest snapshot, on the disk
        self._began = self._last_snapshot = time.monotonic()
        self._snapshot_s = (memory.nbytes if memory else 0) / FIRST_GUESS_BYTES_PER_S
        self.keeping_s = 0.0
        self.snapshots_nbytes = 0
        now = datetime.now(UTC).isoformat(timespec="seconds")
        folder.journal.append(
            SessionLine(chunk=len(lines), began=now, host=socket.gethostname(), pid=os.getpid())
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds of rendering so far, over all sessions."""
        return self._earlier_sessions_s + time.monotonic() - self._began

    @property
    def snapshot_due(self) -> bool:
        """Whether a snapshot would cost a small share of the time since the last one."""
        return time.monotonic() - self._last_snapshot >= self._snapshot_s / SNAPSHOT_SHARE

    def require_lock(self) -> None:
        """Refuse to touch what belongs to another process by now.

        Raises:
            LockHeld: The lock was taken over, or the folder removed.
        """
        if not self._lock.held:
            raise LockHeld(
                f"{self._folder.path} was removed, or taken over by another process while this "
                "one slept",
                "let that one finish",
            )

    def latents(self, chunk: int, latents: Tensor) -> str:
        """Keep a chunk's latents; return the digest of their file.

        Raises:
            LockHeld: The run is another process's now.
            BudgetError, WriterError: The disk refused.
        """
        self.require_lock()
        began = time.monotonic()
        sha256 = self._folder.keep_latents(chunk, list(tensor_blocks({"latents": latents})))
        self.keeping_s += time.monotonic() - began
        return sha256

    def chunk(
        self, index: int, frames: int, *, frames_sha256: str, latents_sha256: str, mode: Mode
    ) -> ChunkLine:
        """Write down a chunk whose latents are kept.

        Args:
            index: The chunk.
            frames: Frames of the film that it holds.
            frames_sha256: `chain_frames` up to its end, empty if its frames are not encoded yet.
            latents_sha256: Digest of the file of its latents.
            mode: How its frames were decoded.

        Raises: as `latents`.
        """
        self.require_lock()
        line = ChunkLine(
            index=index,
            frames=frames,
            frames_sha256=frames_sha256,
            latents_sha256=latents_sha256,
            elapsed_s=round(self.elapsed_s, 3),
            memory=self._memory.figures() if self._memory else {},
            tile=mode.tile or 0,
            on_cpu=mode.on_cpu,
        )
        self._folder.journal.append(line)
        return line

    def note_mode(self, begins: int, mode: Mode) -> dict[int, ChunkLine]:
        """Write down that memory ran out, and how chunks that are made play from one on.

        Args:
            begins: The first of them.
            mode: How they are decoded.

        Returns:
            The lines of all chunks that are made, by number.

        Raises: as `latents`.
        """
        self.require_lock()
        journal, tile = self._folder.journal, mode.tile or 0
        journal.rewrite(
            [
                replace(line, tile=tile, on_cpu=mode.on_cpu)
                if isinstance(line, ChunkLine) and line.index >= begins
                else line
                for line in journal.lines
            ]
        )
        return {line.index: line for line in journal.of(ChunkLine)}

    def segment(self, segment: SegmentFacts) -> None:
        """Write down a segment that is on the disk.

        Raises: as `latents`.
        """
        self._finished(SegmentLine, segment)

    def video(self, facts: VideoFacts) -> None:
        """Write down the video that is about to take its name.

        Raises: as `latents`.
        """
        self._finished(VideoLine, facts)

    def _finished(self, kind: type[SegmentLine | VideoLine], facts: object) -> None:
        """Write down a file by the facts of it that its line has."""
        self.require_lock()
        told = {item.name: getattr(facts, item.name) for item in fields(kind)}
        self._folder.journal.append(kind(**told), sync=True)

    def snapshot(self, chunk: int) -> Saved:
        """Write the memory as it is once `chunk` chunks are made, and what it builds on before.

        Raises: as `latents`.
        """
        self.require_lock()
        if self._memory is None:
            raise ValueError("there is no memory to take a snapshot of")
        began = time.monotonic()
        with disk_errors(self._folder.path):
            for line in self._folder.journal.of(ChunkLine)[self._synced : chunk]:
                sync_file(self._folder.latents(line.index))
            sync_folder(self._folder.latents(0).parent)
            sync_file(self._folder.journal.path)
        self._synced = chunk
        nbytes = self._store.save(chunk, self._memory.state())
        self._last_snapshot = time.monotonic()
        self._snapshot_s = self._last_snapshot - began
        self.keeping_s += self._snapshot_s
        self.snapshots_nbytes += nbytes
        return Saved(chunk=chunk, nbytes=nbytes, seconds=self._snapshot_s)
