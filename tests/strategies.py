"""Hypothesis strategies that several tests share: policies, sizes, generators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from cfgen.kernels.pages import ADMITTED, ADMITTED_NOW, CAN_ADMIT, UPDATE_REFERENCE
from cfgen.memory.autograd import GraphCache
from cfgen.memory.build import assemble
from cfgen.memory.compressed_table import CompressedTable, Level
from cfgen.memory.page_pool import KVCache
from cfgen.memory.paged import PagedMemory
from cfgen.memory.policy import AdmissionRule
from cfgen.memory.protocols import Table
from cfgen.memory.recency import RecencyTable
from cfgen.memory.relax import RelaxTable
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.memory.slow_fast_release import ReleaseTable
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator, WanConfig
from cfgen.ops.reference import Rope
from cfgen.ops.select import TORCH, Ops


@dataclass(frozen=True)
class Policy:
    """A policy with its sizes, and how one layer's table of it is made.

    `spare` is the number of pages that a chunk may take on top of the capacity.
    """

    name: str
    sink: int
    fast: int
    chunk: int
    commit_reads: str
    make: Callable[[], Table]
    slow: int = 0
    spare: int = 0
    positions: str = "relative"
    trained: int = 0

    def __repr__(self) -> str:
        sizes = f"sink={self.sink}, slow={self.slow}, fast={self.fast}, chunk={self.chunk}"
        return f"{self.name}({sizes}, {self.positions}, commit_reads={self.commit_reads})"

    @property
    def newest(self) -> int:
        """K where the commit pass reads the newest K frames, else 0."""
        return int(self.commit_reads.removeprefix("newest:") if ":" in self.commit_reads else 0)

    def check_positions(self, frames: list[int], positions: list[int], capacity: int) -> None:
        """Positions are those of the clip, or lie within what the model knows."""
        assert positions[-1] < (self.trained or capacity) or positions == frames
        if self.positions == "absolute":
            assert positions == frames


chunk_sizes = st.integers(1, 4)

LONGEST = 112
"""Most latent frames that a test plays: twice fourteen chunks of the largest size."""
commit_reads = st.one_of(
    st.just("all"), st.just("fast"), st.sampled_from([f"newest:{k}" for k in (4, 5, 7, 9, 12)])
)


@st.composite
def windows(draw: st.DrawFn) -> Policy:
    chunk, sink, reads = draw(chunk_sizes), draw(st.integers(0, 5)), draw(commit_reads)
    fast = chunk + draw(st.integers(0, 6))
    positions = draw(st.sampled_from(["absolute", "relative", "top"]))
    trained = sink + fast + draw(st.integers(0, 9))

    def make() -> Table:
        return WindowTable(
            sink + fast, sink=sink, positions=positions, trained=trained, commit_reads=reads
        )

    return Policy("window", sink, fast, chunk, reads, make, positions=positions, trained=trained)


@st.composite
def slow_fasts(draw: st.DrawFn) -> Policy:
    chunk, sink, reads = draw(chunk_sizes), draw(st.integers(0, 5)), draw(commit_reads)
    slow, fast = draw(st.integers(0, 5)), chunk + draw(st.integers(0, 6))
    interval, gap = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    against = draw(st.sampled_from(["admitted", "previous"]))
    admits = draw(st.sampled_from(["first", "chunk"]))

    def make() -> Table:
        return SlowFastTable(
            sink=sink,
            slow=slow,
            fast=fast,
            interval=interval,
            min_gap=gap,
            admits=admits,
            against=against,
            commit_reads=reads,
        )

    return Policy(f"slow_fast {against}, {admits}", sink, fast, chunk, reads, make, slow=slow)


@st.composite
def releases(draw: st.DrawFn) -> Policy:
    chunk, sink, reads = draw(chunk_sizes), draw(st.integers(0, 5)), draw(commit_reads)
    slow, fast = draw(st.integers(0, 5)), chunk + draw(st.integers(0, 6))

    def make() -> Table:
        return ReleaseTable(sink=sink, slow=slow, fast=fast, commit_reads=reads)

    return Policy("release", sink, fast, chunk, reads, make, slow=slow, spare=1)


@st.composite
def recencies(draw: st.DrawFn) -> Policy:
    chunk, sink, reads = draw(chunk_sizes), draw(st.integers(0, 5)), draw(commit_reads)
    read = chunk + draw(st.integers(0, 6))
    size = sink + read + draw(st.integers(0, 5))
    trained = draw(st.one_of(st.none(), st.integers(size, size + 5)))

    def make() -> Table:
        return RecencyTable(size, sink=sink, reads=read, trained=trained, commit_reads=reads)

    ends = trained or 10**6
    return Policy("recency", sink, read, chunk, reads, make, positions="shifted", trained=ends)


@st.composite
def relaxes(draw: st.DrawFn) -> Policy:
    chunk, sink, reads = draw(chunk_sizes), draw(st.integers(0, 4)), draw(commit_reads)
    history, tail = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    size = sink + history + tail + chunk + draw(st.integers(0, 9))
    candidates = history + draw(st.integers(0, 3))

    def make() -> Table:
        return RelaxTable(
            size,
            sink=sink,
            history=history,
            tail=tail,
            candidates=candidates,
            commit_reads=reads,
        )

    read = tail + chunk
    return Policy("relax", sink, read, chunk, reads, make, positions="shifted", trained=10**6)


@st.composite
def compresseds(draw: st.DrawFn) -> Policy:
    """Levels of pages of one latent frame each; the last one may have no end."""
    chunk, sink, reads = draw(chunk_sizes), draw(st.integers(0, 4)), draw(commit_reads)
    newest, patches = draw(st.integers(1, 6)), draw(st.sampled_from([(2,), (4,), (2, 4)]))
    levels = [Level(draw(st.integers(1, 5)), (1, patch, patch)) for patch in patches]
    reordered, renew = draw(st.booleans()), draw(st.booleans())
    if not reordered and draw(st.booleans()):
        levels[-1] = levels[-1]._replace(frames=None)

    def make() -> Table:
        table = CompressedTable(
            [Level(newest, (1, 1, 1)), *levels],
            sink=sink,
            reordered=reordered,
            renew=renew,
            commit_reads=reads,
        )
        table.capacity += chunk + (LONGEST if levels[-1].frames is None else 0)
        return table

    positions = "reordered" if reordered else "absolute"
    return Policy(
        "compressed", sink, newest + chunk, chunk, reads, make, slow=1, positions=positions
    )


@st.composite
def inverted(draw: st.DrawFn) -> Policy:
    """Levels behind chunks that are made from the end of a clip."""
    chunk, sink = draw(chunk_sizes), draw(st.integers(0, 4))
    newest, renew, reads = draw(st.integers(1, 6)), draw(st.booleans()), draw(commit_reads)
    length = draw(st.integers(1, 60))
    levels = [Level(4, (1, 2, 2)), Level(8, (1, 4, 4))]

    def make() -> Table:
        table = CompressedTable(
            [Level(newest, (1, 1, 1)), *levels],
            sink=sink,
            renew=renew,
            commit_reads=reads,
            inverted_frames=length,
        )
        table.capacity += chunk
        return table

    return Policy("compressed", sink, newest + chunk, chunk, reads, make, positions="inverted")


policies = st.one_of(windows(), slow_fasts(), releases(), recencies(), relaxes(), compresseds())
"""Every policy there is; `full` is a window that is never filled."""


@st.composite
def geometries(draw: st.DrawFn) -> WanConfig:
    heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([2, 6, 8, 16]))
    return WanConfig(
        dim=heads * head_dim,
        ffn_dim=draw(st.integers(1, 20)),
        num_heads=heads,
        num_layers=draw(st.integers(1, 3)),
        in_dim=draw(st.integers(1, 4)),
        out_dim=draw(st.integers(1, 4)),
        freq_dim=2 * draw(st.integers(1, 8)),
        text_len=draw(st.integers(1, 6)),
        text_dim=draw(st.integers(1, 9)),
        patch_size=(1, draw(st.integers(1, 2)), draw(st.integers(1, 2))),
    )


def told_by(decide: Callable[[Tensor, Tensor], bool]) -> Callable[..., None]:
    """The op `admit` with another rule than the cosine: reference and keys, both [B, C]."""

    def admit(parts: Tensor, reference: Tensor, decision: Tensor, *, tokens: int, tau: float):
        keys = parts.sum(1) / tokens
        asked = bool(decision[CAN_ADMIT]) and not decision[ADMITTED]
        fired = asked and decide(reference.clone(), keys)
        decision[ADMITTED_NOW] = int(fired)
        decision[ADMITTED] |= int(fired)
        if fired or decision[UPDATE_REFERENCE]:
            reference.copy_(keys)

    return admit


def memory_of(
    tables: list[Table],
    pool: KVCache | GraphCache,
    *,
    rope: Rope,
    grid: tuple[int, int],
    ops: Ops = TORCH,
    shared: bool = False,
    admit: Callable[..., None] | None = None,
    tau: float = 0.95,
    admission_layers: tuple[int, ...] = (),
    recaches: int = 0,
    slots: int | None = None,
    tokens: int | None = None,
    pooled: bool = False,
) -> PagedMemory:
    """A memory of these tables, as `memory.build` puts one together."""
    return assemble(
        tables,
        pool,
        ops,
        rope=rope,
        grid=grid,
        slots=slots or max(table.capacity for table in tables),
        tokens=tokens,
        pooled=pooled,
        admit=admit,
        rule=AdmissionRule(tau, admission_layers),
        shared=shared,
        recaches=recaches,
    )


def random_generator(geometry: WanConfig, seed: int = 0) -> Generator:
    """A generator with weights that make attention matter."""
    torch.manual_seed(seed)
    generator = Generator(geometry)
    with torch.no_grad():
        for parameter in generator.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.normal_(0, 1.5 / width**0.5)
    return generator.eval()
