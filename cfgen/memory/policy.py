"""What a policy is: its values as a person sets them, and the table that follows from them.

A policy stands in one file of this package with its `Table`: what may be set, which values go
together, how many latent frames it keeps, at which positions each pass reads them. Adding one is
that file, its class in `config.schema.MemoryConfig`, a preset, and a line in `tests/strategies.py`,
whose laws every policy must keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple, Protocol

from cfgen.errors import Problem
from cfgen.memory.commit_reads import CommitReads
from cfgen.memory.page_sizes import PageClass, tokens_of
from cfgen.memory.protocols import Table
from cfgen.memory.transitions import Transition

Storage = Literal["auto", "bf16", "int8", "fp8"]
"""How the KV cache is kept: as it is computed; in bfloat16; keys in int8 and values as they are
computed; keys in int8 and values in float8 e4m3."""


Order = Literal["forward", "inverted"]
"""In which order the chunks of a film are made: as they play, or from its end to its start."""


class AdmissionRule(NamedTuple):
    """When a chunk becomes key frames.

    Attributes:
        tau: It does if the cosine of its keys with the reference falls below this.
        layers: Layers that decide together for all; none: each layer decides for itself.
    """

    tau: float
    layers: tuple[int, ...]


class Policy(Protocol):
    """The values of a policy, a frozen dataclass.

    Attributes:
        VARIANTS: Defaults, as text, that follow the value of its field `variant`.
    """

    VARIANTS: ClassVar[Mapping[str, Mapping[str, str]]]

    @property
    def policy(self) -> str:
        """Its name."""

    @property
    def grows(self) -> bool:
        """Whether it keeps more and more as a clip gets longer."""

    @property
    def commit_reads(self) -> CommitReads:
        """What the commit pass may attend to."""

    @property
    def kv_cache(self) -> Storage:
        """How pages are stored."""

    @property
    def admission(self) -> AdmissionRule | None:
        """When key frames are admitted, if ever."""

    @property
    def order(self) -> Order:
        """The order of chunks that its positions are for."""

    @property
    def patches(self) -> tuple[int, ...]:
        """Patches larger than the chunk's that latent frames are encoded with again."""

    @property
    def pooled(self) -> bool:
        """Whether tokens of a larger patch have the mean of its rotations; see `Rope.cells`."""

    def capacity(self, latent_frames: int) -> int:
        """Most latent frames that are kept of a clip of so many."""

    def classes(self, latent_frames: int, chunk: int) -> tuple[PageClass, ...]:
        """Pages of each size that a layer needs, whole frames first; none if all are whole.

        Args:
            latent_frames: Latent frames of the clip.
            chunk: Those of a chunk.
        """

    def readable(self, latent_frames: int, chunk: int) -> int:
        """Most pages that a pass reads, those of its chunk of `chunk` latent frames included."""

    def table(self, latent_frames: int) -> Table:
        """One layer's table, empty, for a clip of so many latent frames."""

    @property
    def recaches(self) -> int:
        """Most latent frames that are committed again at once; 0 if that cannot be."""

    @property
    def reencodes(self) -> int:
        """Newest latent frames that may have to be encoded again with another patch."""

    def refuses(self, transition: Transition) -> str | None:
        """Why a shot cannot begin with a transition, or None if it can."""

    def problems(self, *, chunk: int, guidance: float, snapshot: str) -> Iterable[Problem]:
        """What does not go together with the rest of a configuration.

        Args:
            chunk: Latent frames of a chunk.
            guidance: Scale of classifier-free guidance.
            snapshot: What is kept to resume with: full, latents or off.
        """


def pages_of(policy: Policy, latent_frames: int) -> int:
    """Pages that a layer's pool needs: one more than is kept, to copy to before one is dropped."""
    return policy.capacity(latent_frames) + 1


def page_classes(policy: Policy, latent_frames: int, chunk: int) -> tuple[PageClass, ...]:
    """Pages of each size that a layer's pool needs, whole frames first."""
    mixed = policy.classes(latent_frames, chunk)
    return mixed or (PageClass(1, pages_of(policy, latent_frames)),)


def read_tokens(policy: Policy, latent_frames: int, chunk: int, grid: tuple[int, int]) -> int:
    """Most tokens that a pass reads; see `Policy.readable`."""
    mixed = policy.classes(latent_frames, chunk)
    if mixed:
        return tokens_of(mixed, grid)
    return policy.readable(latent_frames, chunk) * grid[0] * grid[1]


class WholeFrames:
    """What policies have in common whose pages are latent frames as they were committed."""

    __slots__ = ()

    @property
    def order(self) -> Order:
        """What was committed before plays before."""
        return "forward"

    @property
    def patches(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def pooled(self) -> bool:
        """There are none to pool."""
        return False

    def classes(self, latent_frames: int, chunk: int) -> tuple[PageClass, ...]:
        """All are whole."""
        return ()

    @property
    def reencodes(self) -> int:
        """None."""
        return 0
