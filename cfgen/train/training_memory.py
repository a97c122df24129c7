"""The memories of training: one of several policies a step, admission by chance.

One set of weights is to run under every policy, so each has its share; slow memory sees every
filling, and most often what a good rule would put there: the first chunk of each shot.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cfgen.errors import CheckpointError
from cfgen.kernels.pages import ADMITTED, CAN_ADMIT
from cfgen.memory.autograd import GraphCache
from cfgen.memory.build import build_memory
from cfgen.memory.compressed import CompressedMemory
from cfgen.memory.paged import PagedMemory
from cfgen.memory.policy import Policy
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.memory.window import FullMemory, WindowMemory
from cfgen.model.generator import Generator
from cfgen.model.patches import embedding_name
from cfgen.ops.select import TORCH


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySettings:
    """Sizes in latent frames, and how often which policy is trained.

    Attributes:
        sink: attention sink of `slow_fast` and of the larger window.
        slow: slow memory of `slow_fast`.
        fast: fast memory of `slow_fast`, the current chunk included.
        windows: sizes of the two windows; the first has `sink`, the second a sink of 1.
        window_shares: shares of steps that run under either window.
        far_share: share of steps that keep old frames by themselves with a larger patch (FAR).
        far: its levels, see `memory.compressed`.
        framepack_share: share of steps that keep them in cubes (FramePack), behind a sink of 1.
        framepack: its levels.
        full_share: share of steps that keep everything, of those whose films are short enough.
        full_chunks: chunks of a film that is short enough.
        start_chance: chance that the first chunk of a shot is admitted.
        chances: range that the chance of any other chunk is drawn from.
        together: share of steps in which all layers admit the same chunks.
    """

    sink: int = 3
    slow: int = 6
    fast: int = 6
    windows: tuple[int, int] = (12, 6)
    window_shares: tuple[float, float] = (0.1, 0.05)
    far_share: float = 0.0
    far: tuple[str, ...] = ("6:1", "all:4")
    framepack_share: float = 0.0
    framepack: tuple[str, ...] = ("1:1", "2:2", "16:4")
    full_share: float = 0.15
    full_chunks: int = 14
    start_chance: float = 0.85
    chances: tuple[float, float] = (0.0, 0.5)
    together: float = 0.7

    @property
    def patches(self) -> tuple[int, ...]:
        """Patches, larger than the chunk's, that are trained."""
        used = [p for p, share in compressed(self) if share]
        return tuple(sorted({patch for policy in used for patch in policy.patches}))


def compressed(settings: MemorySettings) -> list[tuple[CompressedMemory, float]]:
    """The policies that keep old frames as fewer tokens, and their shares of steps.

    Raises:
        PresetError: levels do not go together.
    """
    far, framepack = far_of(settings), framepack_of(settings)
    return [(far, settings.far_share), (framepack, settings.framepack_share)]


def far_of(settings: MemorySettings) -> CompressedMemory:
    """FAR's scheme, of its levels."""
    return CompressedMemory(levels=settings.far)


def framepack_of(settings: MemorySettings) -> CompressedMemory:
    """FramePack's scheme, of its levels."""
    return CompressedMemory(
        sink=1, levels=settings.framepack, page="cube", rotary="pooled", layout="reordered"
    )


def draw_policy(settings: MemorySettings, rng: np.random.Generator, chunks: int) -> Policy:
    """Draw a policy for films of so many chunks."""
    s, draw = settings, rng.uniform()
    larger, smaller = s.window_shares
    above = 1.0
    for policy, share in compressed(s):
        above -= share
        if above <= draw < above + share:
            return policy
    if draw < larger:
        return WindowMemory(size=s.windows[0], sink=s.sink)
    if draw < larger + smaller:
        return WindowMemory(size=s.windows[1], sink=1)
    if draw < larger + smaller + s.full_share and chunks <= s.full_chunks:
        return FullMemory()
    return SlowFastMemory(sink=s.sink, slow=s.slow, fast=s.fast)


class TrainingAdmission:
    """Admits chunks as a plan says that was drawn beforehand; an `Admit` op.

    Attributes:
        chunk: the chunk that is being committed; whoever plays a film sets it.
    """

    def __init__(self, chances: Sequence[float], rng: np.random.Generator, *, together: bool):
        self.chunk = 0
        self._chances, self._rng = chances, rng
        self._shared = rng.uniform(size=len(chances)) < np.array(chances) if together else None

    @classmethod
    def drawn(
        cls, settings: MemorySettings, rng: np.random.Generator, starts: Collection[int], count: int
    ) -> TrainingAdmission:
        """Draw a plan for a film of `count` chunks, of which `starts` begin a shot."""
        usual = rng.uniform(*settings.chances)
        at_start = max(usual, settings.start_chance)
        chances = [at_start if chunk in starts else usual for chunk in range(count)]
        return cls(chances, rng, together=bool(rng.uniform() < settings.together))

    @classmethod
    def oracle(cls, starts: Collection[int], count: int) -> TrainingAdmission:
        """Admit the first chunk of every shot, and no other."""
        chances = [float(chunk in starts) for chunk in range(count)]
        return cls(chances, np.random.default_rng(0), together=True)

    def __call__(self, _keys: Tensor, _reference: Tensor, decision: Tensor, **_: float) -> None:
        """Decide for one layer; what the table forbids is not admitted."""
        if self._shared is None:
            chosen = self._rng.uniform() < self._chances[self.chunk]
        else:
            chosen = bool(self._shared[self.chunk])
        decision[ADMITTED] = int(bool(decision[CAN_ADMIT]) and chosen)


def require_patches(policy: Policy, generator: Generator) -> None:
    """Refuse a policy of larger patches that the generator has no kernels for.

    Raises:
        CheckpointError: it lacks one.
    """
    missing = set(policy.patches) - set(generator.geometry.larger_patches)
    if missing:
        raise CheckpointError(
            f"the generator has no {embedding_name(min(missing))}, which memory {policy.policy} "
            "keeps the past with",
            "begin with a model that has it, or leave that memory out",
        )


def training_memory(
    policy: Policy,
    admission: TrainingAdmission | None,
    generator: Generator,
    latents: tuple[int, int, int],
) -> PagedMemory:
    """A memory whose pages are tensors in the graph.

    Args:
        policy: What is kept.
        admission: Decides on key frames; None: the policy's own rule.
        generator: Whose keys and values they are.
        latents: Latent frames of a film, their height and width.

    Raises:
        CheckpointError: the generator lacks kernels that the policy needs.
    """
    g, (frames, height, width) = generator.geometry, latents
    require_patches(policy, generator)
    return build_memory(
        policy,
        GraphCache(g.num_layers, generator.device),
        TORCH,
        latent_frames=frames,
        head_dim=g.head_dim,
        grid=g.grid(height, width),
        admit=admission,
    )
