"""The process that leads: it makes its share of each chunk, and tells the others to make theirs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from torch import Tensor

from cfgen.errors import ProcessLost
from cfgen.parallel.group import Group
from cfgen.parallel.messages import End, Finish, Recommit, Start
from cfgen.renderer.source import ChunkWorker, FrameSource
from cfgen.rollout.loop import Chunk


@dataclass(frozen=True, kw_only=True)
class LeadSource(FrameSource):
    """A source whose chunks are made together with processes that follow.

    Attributes:
        group: All of them.
    """

    group: Group

    def making(self) -> ChunkWorker:
        """See `ChunkSource`."""
        return _LeadWorker(self)

    def recommit(self, chunk: Chunk) -> None:
        """See `ChunkSource`."""
        with self.group.together():
            self.group.tell(Recommit(Chunk(chunk.index, chunk.latents.cpu())))
            super().recommit(chunk)

    def close(self) -> None:
        """See `FrameSource`."""
        if not self.group.is_broken:
            with contextlib.suppress(ProcessLost):  # whoever lost it has told
                self.group.tell(End())


class _LeadWorker(ChunkWorker):
    """See `ChunkWorker`; all others are told first, since none gets far without the others."""

    def __init__(self, source: LeadSource) -> None:
        super().__init__(source)
        self._group = source.group

    def begin(self, index: int, given: Tensor | None) -> None:
        """See `ChunkWorker`."""
        with self._group.together():
            self._group.tell(Start(index, None if given is None else given.cpu()))
            super().begin(index, given)

    def finish(self) -> Chunk:
        """See `ChunkWorker`."""
        self._group.tell(Finish())
        return super().finish()
