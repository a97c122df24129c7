"""What a Ray worker does: it makes one clip of a list, or goes on with it, and tells what happens.

This module loads without torch, so that what torch reads of the environment is set before it loads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cfgen.config.batch_list import Clip
from cfgen.errors import CfgenError, SetupError

if TYPE_CHECKING:
    from cfgen.pipeline.batch import BatchRunner
    from cfgen.renderer.batch import BatchEvent

STOPPED = "interrupted"


def make_clip(
    clip: Clip,
    *,
    state: Path,
    folder: Path,
    environ: Mapping[str, str],
    threads: int | None,
    overwrite: bool,
    attempts: int,
    fail_fast: bool,
) -> Iterator[BatchEvent | CfgenError]:
    """Make a clip until it is done or failed for good; a Ray task.

    It runs in the main thread of a worker. `ray.cancel` without force stops it after the chunk that
    is being made, as Ctrl-C stops a render.

    Args:
        clip: What is made.
        state: Folder of the list's statuses and locks, which all nodes share.
        folder: Current folder of the command; relative names mean the same here.
        environ: Variables of the command's environment that a render reads.
        threads: CPU threads of a new clip whose configuration names no number.
        overwrite: Whether its video may replace a file.
        attempts: As for `BatchRunner`.
        fail_fast: Likewise.

    Yields:
        What happens; last the error, if one stopped it that is not the clip's own.
    """
    try:
        _enter(folder, state)
    except SetupError as error:
        yield error
        return
    os.environ.update(environ)
    runner = _runner(clip, state, overwrite=overwrite, attempts=attempts, fail_fast=fail_fast)
    runner.take_place(threads)
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        runner.stop(STOPPED)

    before, work = signal.signal(signal.SIGINT, stop), iter(runner)
    try:
        for event in work:
            if not stopped:
                yield _placed(event)
    except CfgenError as error:
        if not stopped:
            yield error
    finally:
        # Where Ray leaves a cancelled task that hands on an event, its chunk is finished here.
        runner.stop(STOPPED)
        with contextlib.suppress(CfgenError):
            for _ in work:
                pass
        signal.signal(signal.SIGINT, before)


def _enter(folder: Path, state: Path) -> None:
    """Go to the folder of the command.

    Raises:
        SetupError: This node does not see it, or the list's statuses.
    """
    try:
        os.chdir(folder)
        os.stat(state)
    except OSError as error:
        raise SetupError(
            f"the Ray node {socket.gethostname()} does not see {error.filename}: {error.strerror}",
            "put the list into a folder that all nodes of the cluster share under one name",
        ) from error


def _runner(
    clip: Clip, state: Path, *, overwrite: bool, attempts: int, fail_fast: bool
) -> BatchRunner:
    from cfgen.pipeline.batch import BatchRunner, ClipList

    listed = ClipList([clip], state, report=state / "report.json")
    return BatchRunner(listed, overwrite=overwrite, attempts=attempts, fail_fast=fail_fast)


def _placed(event: BatchEvent) -> BatchEvent:
    from cfgen.renderer.batch import ClipBegun

    if isinstance(event, ClipBegun):
        return dataclasses.replace(event, host=socket.gethostname())
    return event
