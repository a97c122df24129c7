"""The interface between a generator and its memory: passes, views of chunks, tables of slots.

A page is the stored keys and values of one latent frame in one layer. A policy is a `Table` per
layer: pure bookkeeping over page numbers, free of tensors, so its rules can be tested without a
model. The device decides whether a chunk is admitted, and the host must not wait for it. So a table
gives the visible slots for both outcomes before a chunk, and is told the outcome after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, runtime_checkable

from cfgen.memory.page_sizes import Patch

if TYPE_CHECKING:  # policies load without torch
    import torch
    from torch import Tensor

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


class VisibleSlot(NamedTuple):
    """A slot that a pass may read, at its temporal position.

    `bias` is added to the scores of its keys; those of the chunk itself have none.
    """

    slot: Slot
    position: int
    bias: float = 0.0


class Admission(NamedTuple):
    """What is to be decided on the keys of a chunk, in every pass whose keys its table inspects.

    Attributes:
        allowed: Whether it may be admitted to the key frames, at most one time.
        update_reference: Whether the keys become the reference even if they are not admitted.
    """

    allowed: bool
    update_reference: bool


class Table(Protocol):
    """One layer's slots under one policy. The current chunk always stands last.

    Attributes:
        capacity: Most slots.
        spare_pages: Pages that a chunk may be copied to before it is finished.
        steps: How many denoising passes may each read something of their own; later ones read as
            the last of them.
        biased: Whether slots may have a bias.
    """

    capacity: int
    spare_pages: int
    steps: int
    biased: bool

    def evict(self, frames: int) -> None:
        """Make room for a chunk of `frames` latent frames."""

    def append_chunk(self, start: int, pages: list[int], copies: list[int]) -> None:
        """The chunk whose first latent frame is `start` takes its place, on these pages."""

    def inspects_keys(self, pass_: Pass) -> bool:
        """Whether this pass's keys matter to the policy."""

    @property
    def admission(self) -> Admission:
        """What to decide in the current chunk."""

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        """What a pass reads, in table order, the current chunk last.

        If the table has spare pages, the pass that admits the chunk also copies its first latent
        frame there, and `admitted` is true from that pass on.
        """

    def commit(self, admitted: bool) -> None:
        """The chunk is finished, and was admitted or not."""

    def forget(self, newest: int) -> None:
        """Between two chunks: keep the sink and so many of the newest latent frames."""

    def rewind(self, reach: int, total: int) -> int:
        """Between two chunks: drop what is to be committed again, as one chunk.

        Args:
            reach: Newest latent frames that can be committed again.
            total: Latent frames committed so far.

        Returns:
            How many of the newest latent frames are to be committed again; the same in every layer,
            and `total` where the table is empty now.
        """

    def slots(self) -> list[Slot]:
        """Every slot held, in table order; a page may appear twice."""

    def state(self) -> Scalars:
        """Between two chunks: what `restore` needs."""

    def restore(self, scalars: Mapping[str, object]) -> None:
        """Restore a state that `state` returned, after a round trip through JSON."""


@runtime_checkable
class ChoosingTable(Table, Protocol):
    """A table that chooses what a chunk reads by keys that are stored."""

    def asked(self) -> list[list[Slot]]:
        """Groups of slots whose mean keys are to be told, once a chunk was appended; or none."""

    def choose(self, keys: Sequence[Sequence[float]]) -> None:
        """Choose by the mean key [D] of each group in the first layer, or with none by none."""


class Encoding(NamedTuple):
    """Pages that are written in one pass at t = 0, from latents that were committed before.

    Attributes:
        level: The level of memory that they stand in.
        patch: What their tokens stand for.
        frames: The latent frame of each page that was committed first.
        absent: Latent frames of the first page that there are not: zeros stand for them.
    """

    level: int
    patch: Patch
    frames: tuple[int, ...]
    absent: int = 0


@runtime_checkable
class CompressingTable(Table, Protocol):
    """A table whose older latent frames are encoded again, with larger patches."""

    @property
    def is_inverted(self) -> bool:
        """Whether chunks are made from the end of a clip: their last frame is committed first."""

    def settle(self) -> list[Encoding]:
        """A chunk is committed: drop what has left, and name what is to be encoded, in order.

        What is named has no pages any more; it is the same in every layer.
        """

    def begin_encoding(self, encoding: Encoding, pages: Sequence[int]) -> None:
        """What was named is about to be encoded, to these pages.

        Until `end_encoding`, `visible_slots` has what that pass reads, and its own slots last.
        """

    def end_encoding(self) -> None:
        """That pass has run."""


class PagePool(Protocol):
    """Storage of pages, numbered per layer."""

    layers: int

    @property
    def device(self) -> torch.device:
        """Where pages are written from."""

    @property
    def numbers_device(self) -> torch.device:
        """Where `write` takes numbers of pages from without waiting."""

    def allocate(self, layer: int, patch: int = 1) -> int:
        """A page that is not in use, now in use; of a size.

        Args:
            layer: The layer.
            patch: Rows and columns of tokens of a latent frame that a token of it stands for.
        """

    def retain(self, layer: int, pages: Iterable[int]) -> None:
        """Free every page of the layer but these."""

    def write(
        self,
        layer: int,
        into: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        only_if: Tensor | None = None,
        patch: int = 1,
    ) -> None:
        """Store frames, k and v [B, F * P, N, D], on pages `into` [F] int32.

        Args:
            layer: The layer.
            into: The page of each frame.
            k: Keys, rotated in space.
            v: Values.
            only_if: [1] int32; nothing is stored if it is 0.
            patch: The size of those pages, see `allocate`.
        """

    def keys(self, layer: int, page: int) -> Tensor:
        """Keys of a page as numbers, rotated in space: [B, N, P, D]."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


class Norms(NamedTuple):
    """The root-mean-square norms of a layer's queries and keys.

    Attributes:
        q: Gains of the queries, [N * D].
        k: Gains of the keys.
        eps: Epsilon of both.
        rates: Where heads are shared out among processes, what the norms multiply queries and keys
            by: 1 / root-mean-square over all heads, [B, L] each; None where it is to be computed.
    """

    q: Tensor
    k: Tensor
    eps: float
    rates: tuple[Tensor, Tensor] | None = None


class View(Protocol):
    """What one chunk may attend to, pass by pass."""

    def at(self, pass_: Pass) -> View:
        """The same chunk in another pass."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, norms: Norms) -> Tensor:
        """Attention of a layer to what its view shows: [B, F * P, N * D].

        q, k, v are the layer's projections, [B, F * P, N * D], before norm and rotation.
        """

    def write(self, layer: int, k: Tensor, v: Tensor, norms: Norms) -> None:
        """Store keys and values in a commit pass, without computing attention."""


V = TypeVar("V", bound=View)


class Memory(Protocol[V]):
    """What is kept of the chunks so far."""

    def begin(self, frames: int) -> V:
        """Open the next chunk, of `frames` latent frames."""

    def commit(self, view: V) -> None:
        """The finished chunk becomes pages; its commit pass must have run."""

    def remember(self, latents: Tensor) -> None:
        """Keep the clean latents [B, F, C, H, W] of the chunk that was committed, for `rewind`."""

    def reencode(self) -> Iterator[tuple[V, Tensor, Patch]]:
        """Once a chunk is remembered: have latents encoded again that are kept as fewer tokens.

        Yields:
            The view of each commit pass that is to run, its latents [B, F, C, H, W], and the patch
            that they are read with; one is to run before the next is asked for.
        """

    def clear(self) -> None:
        """Between two chunks: be as empty as at the start."""

    def forget(self, newest: int) -> None:
        """Between two chunks: keep the sink and so many of the newest latent frames."""

    def jump(self, frames: int) -> None:
        """Have the next chunk, and it alone, stand so many latent frames later in time."""

    def rewind(self) -> Tensor | None:
        """Between two chunks: go back to before the newest latent frames that can be told again.

        Returns:
            Their clean latents [B, n, C, H, W], to be committed again as one chunk; or None.
        """

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
        fetch: the content of a page by its name, where `pages` holds meta tensors: heads of other
            processes are brought one page at a time.
    """

    scalars: Scalars
    tensors: Mapping[str, Tensor]
    pages: Mapping[str, Tensor]
    fetch: Callable[[str], Tensor] | None = None

    def content(self, page: str) -> Tensor:
        """A page by its name."""
        return self.pages[page] if self.fetch is None else self.fetch(page)


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
