"""A process that renders with another one, which leads: `python -m cfgen.pipeline.follower`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from functools import partial

import torch

from cfgen.config.loader import from_mapping
from cfgen.errors import CfgenError, CheckpointError, ProcessLost, SetupError
from cfgen.out_of_memory import memory_errors
from cfgen.parallel.follow import follow
from cfgen.parallel.group import Group
from cfgen.parallel.heads import HeadParallel
from cfgen.parallel.launch import Launched, launched
from cfgen.parallel.messages import Begin
from cfgen.pipeline.build import ModelCache
from cfgen.pipeline.chunk_source import build_chunk_source
from cfgen.pipeline.job import RenderJob
from cfgen.renderer.source import ChunkSource


def follow_launched() -> None:
    """Render with the lead of the processes that were started with this one, film after film.

    Raises:
        CfgenError: Something here stands in the way of it.
        ProcessLost: The lead ended before it said so.
    """
    told = launched()
    if told is None:
        raise RuntimeError("nobody started this process together with others")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the lead finishes its chunk, with this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler would wait for the others to answer
    group = Group()
    try:
        follow(group, partial(_build, group, told, ModelCache()))
    finally:
        group.close()


def _build(
    group: Group, told: Launched, models: ModelCache, begin: Begin
) -> tuple[ChunkSource, HeadParallel]:
    """What makes this process's share of a film."""
    config = from_mapping(begin.config, label="the first process's configuration")
    if config.device != "cpu":
        if told.local >= (there := torch.cuda.device_count()):
            raise SetupError(
                f"process {told.rank + 1} of {told.size} has no GPU of its own: torch sees {there}",
                "start one process a GPU",
            )
        config = dataclasses.replace(config, device=f"cuda:{told.local}")
        torch.cuda.set_device(told.local)
    job = RenderJob(config)
    if job.model.digests != begin.digests:
        raise CheckpointError(
            f"process {told.rank + 1} of {told.size} finds other weights than the first one",
            "give all machines the same files",
        )
    torch.set_num_threads(job.runtime.threads)
    loaded = models.load(job.model, job.runtime, offload=begin.offload, compiled=config.compile)
    source, split = build_chunk_source(job, loaded, begin.text, offload=begin.offload, group=group)
    assert split is not None
    return source, split


def main() -> int:
    """Follow the process that started this one, whose end closes stdin.

    Returns:
        An exit status.
    """
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    os.write(1, b".")  # it is waited for: all that takes time is imported
    os.dup2(2, 1)  # and nobody reads what comes after it
    try:
        with memory_errors("render with more processes, or with --offload all"):
            follow_launched()
    except ProcessLost:
        return 1  # who ended first has told why
    except CfgenError as error:
        with contextlib.suppress(OSError):
            os.write(2, f"error: {error}\n".encode())
        return error.exit_code
    return 0


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    # An orderly end has time to come first: what is left is a process that waits for the dead.
    threading.Event().wait(5)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
