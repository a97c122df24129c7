"""The seam between a generator and its memory: passes, views of chunks, tables that policies edit.

A page is the stored keys and values of one latent frame in one layer. A policy is a `Table` per
layer: pure bookkeeping over page numbers, free of tensors, so its rules can be tested without a
model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

D = TypeVar("D")
Scalars = dict[str, object]
"""Plain values that JSON can hold."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward over a chunk: denoising step `index`, or the commit pass at t = 0."""

    index: int
    commit: bool = False


class Slot(NamedTuple):
    """A page's place in a table: the latent frame it came from and its page in the pool."""

    frame: int
    page: int


class Placed(NamedTuple):
    """A slot that a pass may read, at its temporal position."""

    slot: Slot
    position: int


class Table(Protocol, Generic[D]):
    """One layer's slots under one policy. The current chunk always stands last.

    `D` is whatever describes a chunk's keys; a table only hands it on to its own `decide`.
    """

    capacity: int

    def evict(self, frames: int) -> None:
        """Make room for a chunk of `frames` latent frames."""

    def enter(self, start: int, pages: list[int]) -> None:
        """The chunk whose first latent frame is `start` takes its place, on these pages."""

    def watches(self, pass_: Pass) -> bool:
        """Whether this pass's keys matter to the policy."""

    def observe(self, pass_: Pass, keys: D, copy: Callable[[int], int]) -> bool:
        """Decide on the keys of a pass, before that pass attends.

        `copy` stores a current page once more and returns the number of the copy.

        Returns:
            whether a key frame was admitted.
        """

    def visible(self, pass_: Pass) -> list[Placed]:
        """What the pass reads, in table order, the current chunk last."""

    def commit(self) -> None:
        """The chunk is finished: what was decided in it takes effect."""

    def slots(self) -> list[Slot]:
        """Every slot held, in table order; a page may appear twice."""

    def state(self) -> tuple[Scalars, D | None]:
        """Between two chunks: what `restore` needs, and the keys the next ones are compared with.

        `restore` takes the scalars as they come back from JSON.
        """

    def restore(self, scalars: Mapping[str, object], reference: D | None) -> None:
        """Be as the table was when it gave this state."""


class View(Protocol):
    """What one chunk may attend to, pass by pass."""

    def at(self, pass_: Pass) -> View:
        """The same chunk in another pass."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a layer; the output is like q.

        q, k, v are [B, F * P, N, D], after their norm and before any rotation.
        """


V = TypeVar("V", bound=View)


class Memory(Protocol[V]):
    """What is kept of the chunks so far."""

    def begin(self, frames: int) -> V:
        """Open the next chunk, of `frames` latent frames."""

    def commit(self, view: V) -> None:
        """The finished chunk becomes pages; its commit pass must have run."""

    @property
    def nbytes(self) -> int:
        """Bytes of the page pool."""


@dataclass(frozen=True, slots=True)
class MemoryState:
    """What a memory holds between two chunks.

    Attributes:
        scalars: plain values.
        tensors: small tensors, which change from chunk to chunk.
        pages: keys and values; a name stands for one content as long as the clip lasts, so what is
            stored once need not be stored again.
    """

    scalars: Scalars
    tensors: Mapping[str, Tensor]
    pages: Mapping[str, Tensor]


def pairs_of(slots: Sequence[Slot]) -> list[list[int]]:
    """Slots as JSON holds them."""
    return [[slot.frame, slot.page] for slot in slots]


def slots_of(pairs: object) -> list[Slot]:
    """Slots from what JSON held. TypeError or ValueError if it is anything else."""
    if not isinstance(pairs, list):
        raise TypeError(f"slots must be a list, got {type(pairs).__name__}")
    return [Slot(int(frame), int(page)) for frame, page in pairs]


def whole(value: object) -> int:
    """A whole number from what JSON held. TypeError if it is anything else."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value
