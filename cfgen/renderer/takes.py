"""Earlier takes of a film that was done over: each is a render of its own beside it.

``clip.mp4`` that is done over stays as ``clip.take-1.mp4``, with a run folder of its own. Files are
linked, not copied, wherever the disk can.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

from cfgen.errors import UsageError
from cfgen.files.writing import discard, disk_errors, link_or_copy, part_of, publish, sync_folder
from cfgen.runs.contents import JOURNAL, LOCK, make_empty, remove
from cfgen.runs.folder import RunFolder, is_run, settle_journal, write_record
from cfgen.runs.journal import ChunkLine, Journal
from cfgen.runs.lock import Lock
from cfgen.video.output import run_of, sidecar_of


def take_of(output: Path, number: int) -> Path:
    """The name of a take: ``clip.mp4`` has ``clip.take-1.mp4``."""
    return output.with_name(f"{output.stem}.take-{number}{output.suffix}")


def takes_of(output: Path) -> dict[int, Path]:
    """The videos of the takes that are kept of a film, by number; they may be missing."""
    before, after = run_of(take_of(output, 0)).name.rsplit("0", 1)
    name = re.compile(rf"{re.escape(before)}([1-9][0-9]{{0,8}}){re.escape(after)}")
    folder = output.absolute().parent
    runs = [path for path in folder.iterdir() if is_run(path)] if folder.is_dir() else []
    found = {int(match[1]): path for path in runs if (match := name.fullmatch(path.name))}
    return {number: take_of(output, number) for number in sorted(found)}


def next_take(output: Path) -> Path:
    """The name under which a film that is done over stays."""
    number = max(takes_of(output), default=0) + 1
    while take_of(output, number).exists() or run_of(take_of(output, number)).exists():
        number += 1
    return take_of(output, number)


def keep_take(folder: RunFolder) -> Path:
    """Keep a render as it is now under the name of a take; the caller holds its lock.

    Returns:
        The take's video; it is not there if the render is not finished.

    Raises:
        BudgetError, WriterError: The disk refused.
        OutputRefused: Something in the folder is not of cfgen.
    """
    take = next_take(folder.output)
    path, record = run_of(take), replace(folder.record, output=take.name, take=1)
    with disk_errors(path):
        path.mkdir(exist_ok=True)
    with Lock(path / LOCK):
        make_empty(path)
        with disk_errors(path):
            for line in folder.journal.of(ChunkLine):
                if folder.latents(line.index).is_file():
                    name = folder.latents(line.index).name
                    link_or_copy(folder.latents(line.index), path / "latents" / name)
            _link_all(folder.segments, path / "segments")
            _link_all(folder.snapshots, path / "snapshots")
            if folder.finished is not None:
                link_or_copy(sidecar_of(folder.output), sidecar_of(take))
                link_or_copy(folder.output, take)
                sync_folder(take.absolute().parent)
        Journal(part_of(path / JOURNAL), run=record.digest).rewrite(folder.journal.lines)
        write_record(path, record)
        settle_journal(path / JOURNAL)
    return take


def undo(folder: RunFolder) -> tuple[Path, Path]:
    """Put the newest take back in the place of a film, which becomes a take in turn.

    The caller holds the lock of the film's run. Until the record is written, the film is what it
    was; after that, resuming it makes what is missing from its latents.

    Returns:
        The names of the take that is back, and of the one that the film is now.

    Raises:
        UsageError: No take is kept, or the newest is not whole.
        OutputRefused: What is in the film's place is not of this render.
        BudgetError, WriterError: The disk refused.
    """
    output = folder.output
    takes = takes_of(output)
    if not takes:
        raise UsageError(
            f"no take of {output} is kept", "`cfgen retry` keeps the take that it replaces"
        )
    video = takes[max(takes)]
    with Lock(run_of(video) / LOCK):
        take = RunFolder(run_of(video))
        if take.finished is None:
            raise UsageError(f"{video} is not whole", f"make it whole with `cfgen resume {video}`")
        folder.require_replaceable()
        kept = keep_take(folder)
        _put(take, folder)
        with disk_errors(video):
            for path in (video, sidecar_of(video)):
                discard(path)
        remove(take.path)
    return video, kept


def _put(take: RunFolder, folder: RunFolder) -> None:
    """Make a take what a run folder holds, and its video the film."""
    before, output, path = folder.record, folder.output, folder.path
    record = replace(take.record, output=before.output, take=before.take + 1, overwrite=True)
    stem, _, ending = JOURNAL.partition(".")
    snapshots, journal = path / f"snapshots-{record.take}", path / f"{stem}-{record.take}.{ending}"
    with disk_errors(path):
        if snapshots.exists():
            shutil.rmtree(snapshots)
        snapshots.mkdir()
        _link_all(take.snapshots, snapshots)
        for line in take.journal.of(ChunkLine):
            if take.latents(line.index).is_file():
                link_or_copy(take.latents(line.index), folder.latents(line.index))
        sync_folder(path / "latents")
        link_or_copy(take.output, part_of(output))
        link_or_copy(sidecar_of(take.output), part_of(sidecar_of(output)))
    Journal(journal, run=record.digest).rewrite(take.journal.lines)
    write_record(path, record)
    with disk_errors(output):
        publish(sidecar_of(output), output)
    with contextlib.suppress(OSError):
        folder.journal.path.unlink()
        shutil.rmtree(folder.snapshots)


def _link_all(files: Path, into: Path) -> None:
    """The files of a folder in another, too; nothing if there is no such folder."""
    if not files.is_dir():
        return
    into.mkdir(exist_ok=True)
    for file in sorted(files.iterdir()):
        if file.is_file() and not file.is_symlink():
            link_or_copy(file, into / file.name)
    sync_folder(into)
