"""Renders as they are now, read from their run folders alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cfgen.errors import CfgenError, UsageError
from cfgen.files.reading import nbytes_under
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.runs import config_of
from cfgen.renderer.takes import takes_of
from cfgen.runs.contents import LOCK
from cfgen.runs.folder import RunFolder, is_run
from cfgen.runs.journal import ChunkLine, VideoLine
from cfgen.runs.lock import owner_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run folder, as it is now.

    Attributes:
        path: The run folder.
        state: finished, running, interrupted, video lost or damaged.
        detail: Who runs it, or what is damaged; empty otherwise.
        prompt: What the video shows.
        seed: Its seed.
        chunks_done: Chunks that were made.
        chunks: Chunks in the plan.
        done_s: Seconds of video that were made.
        total_s: Seconds of video in the plan.
        elapsed_s: Seconds spent.
        nbytes: Disk used by the run folder.
        changed: When something was last finished, in seconds since 1970.
        base: The chunk that it branched off at, or 0.
        takes: Names of the earlier takes that are kept of it, in order.
    """

    path: Path
    state: str
    detail: str = ""
    prompt: str = ""
    seed: int | None = None
    chunks_done: int = 0
    chunks: int = 0
    done_s: float = 0.0
    total_s: float = 0.0
    elapsed_s: float = 0.0
    nbytes: int = 0
    changed: float = 0.0
    base: int = 0
    takes: tuple[str, ...] = ()

    def data(self) -> dict[str, object]:
        """Plain values for `--json`."""
        names = [name for name in self.__dataclass_fields__ if name != "path"]
        return {"path": str(self.path), **{name: getattr(self, name) for name in names}}


def jobs_under(root: Path) -> Iterator[Job]:
    """The renders under a folder, in the order of their names.

    Raises:
        UsageError: There is no such folder.
    """
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}")
    found = []
    for place, folders, _ in os.walk(root):
        runs = [name for name in folders if is_run(Path(place, name))]
        found += [Path(place, name) for name in runs]
        folders[:] = [name for name in folders if name not in runs]
    return (job_of(path) for path in sorted(found))


def job_of(path: Path) -> Job:
    """One render; a damaged one says what is wrong."""
    try:
        folder = RunFolder(path)
        config = config_of(folder)
        plan = RenderJob(config).plan
    except CfgenError as error:
        return Job(path=path, state="damaged", detail=str(error), nbytes=nbytes_under(path))
    lines, owner = folder.journal.of(ChunkLine), owner_of(path / LOCK)
    state, detail = "interrupted", folder.journal.problem or ""
    if owner is not None:
        state, detail = "running", str(owner)
    elif folder.journal.of(VideoLine):
        state = "finished" if folder.output.exists() else "video lost"
    done = sum(line.frames for line in lines)
    file = folder.journal.path
    return Job(
        path=path,
        state=state,
        detail=detail,
        prompt=config.prompt,
        seed=config.seed,
        chunks_done=len(lines),
        chunks=plan.chunks,
        done_s=done / plan.geometry.fps,
        total_s=plan.seconds,
        elapsed_s=lines[-1].elapsed_s if lines else 0.0,
        nbytes=nbytes_under(path),
        base=folder.record.base,
        takes=tuple(path.name for path in takes_of(folder.output).values()),
        changed=file.stat().st_mtime if file.exists() else 0.0,
    )
