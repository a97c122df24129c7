"""What the lead tells the processes that follow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cfgen.memory.protocols import Scalars
from cfgen.rollout.loop import Chunk


@dataclass(frozen=True, slots=True)
class Begin:
    """Build what a job needs.

    Attributes:
        config: Its configuration as plain values, `auto` settled.
        offload: Where its weights wait.
        text: Its encoded prompts.
        digests: Those of its weights, which must be the same everywhere.
    """

    config: Mapping[str, object]
    offload: Literal["none", "blocks", "all"]
    text: Mapping[str, Tensor]
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a chunk; `given` are its latents where it is not denoised."""

    index: int
    given: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """Finish the chunk that was begun."""


@dataclass(frozen=True, slots=True)
class Recommit:
    """Commit a chunk that was made before."""

    chunk: Chunk


@dataclass(frozen=True, slots=True)
class TakeState:
    """Keep the memory's state at hand: pages of it are asked for next."""


@dataclass(frozen=True, slots=True)
class FetchPage:
    """Give one's own heads of a page."""

    name: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Take a state of the memory; `pages` are meta tensors, their content is scattered."""

    scalars: Scalars
    tensors: Mapping[str, Tensor]
    pages: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class End:
    """The film is done, or given up; told where no film was begun, there are no more."""
