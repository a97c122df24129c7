"""A process that follows: it makes its share of what the lead tells it to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from cfgen.errors import NotFinite
from cfgen.memory.protocols import MemoryState
from cfgen.parallel.group import Group
from cfgen.parallel.heads import HeadParallel
from cfgen.parallel.messages import (
    Begin,
    End,
    FetchPage,
    Finish,
    Recommit,
    Restore,
    Start,
    TakeState,
)
from cfgen.renderer.source import ChunkSource

Build = Callable[[Begin], tuple[ChunkSource, HeadParallel]]
"""Builds what a job needs in this process."""


def follow(group: Group, build: Build) -> None:
    """Do what the lead tells, film after film, until there are no more.

    Raises:
        CfgenError: Something here stands in the way of it.
        ProcessLost: The lead or another process ended.
    """
    message = group.hear()
    while isinstance(message, Begin):
        message = _follow_film(group, *build(message))


def _follow_film(group: Group, source: ChunkSource, split: HeadParallel) -> object:
    """Do what the lead tells of one film; returns what is told after it."""
    making = source.making()
    while True:
        match group.hear():
            case Start(index, given):
                making.begin(index, given)
            case Finish():
                with contextlib.suppress(NotFinite):  # the lead has the same latents, and tells
                    making.finish()
            case Recommit(chunk):
                source.recommit(chunk)
            case TakeState():
                source.memory.state()
            case FetchPage(name):
                split.send_page(name)
            case Restore(scalars, tensors, pages):
                source.memory.restore(MemoryState(scalars, tensors, pages))
            case End():
                return group.hear()
            case Begin() as other_film:  # this one was given up before its first chunk
                return other_film
            case other:
                raise TypeError(f"the lead tells what nobody knows: {other!r}")
