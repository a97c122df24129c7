"""Hypothesis strategies that several tests share: policies, sizes, generators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from cfgen.memory.base import Table
from cfgen.memory.slow_fast import ReleaseTable, SlowFastTable
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator, Geometry

Decide = Callable[[object, object], bool]


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
    make: Callable[[Decide], Table]
    slow: int = 0
    spare: int = 0
    absolute: bool = False

    def __repr__(self) -> str:
        sizes = f"sink={self.sink}, slow={self.slow}, fast={self.fast}, chunk={self.chunk}"
        return f"{self.name}({sizes}, commit_reads={self.commit_reads})"


chunk_sizes = st.integers(1, 4)
commit_reads = st.sampled_from(["all", "fast"])


@st.composite
def windows(draw: st.DrawFn) -> Policy:
    chunk, sink, reads = draw(chunk_sizes), draw(st.integers(0, 5)), draw(commit_reads)
    fast, relative = chunk + draw(st.integers(0, 6)), draw(st.booleans())

    def make(_decide: Decide) -> Table:
        return WindowTable(sink + fast, sink=sink, relative=relative, commit_reads=reads)

    return Policy("window", sink, fast, chunk, reads, make, absolute=not relative)


@st.composite
def slow_fasts(draw: st.DrawFn) -> Policy:
    chunk, sink, reads = draw(chunk_sizes), draw(st.integers(0, 5)), draw(commit_reads)
    slow, fast = draw(st.integers(0, 5)), chunk + draw(st.integers(0, 6))
    interval, gap = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    against = draw(st.sampled_from(["admitted", "previous"]))

    def make(decide: Decide) -> Table:
        return SlowFastTable(
            sink=sink,
            slow=slow,
            fast=fast,
            decide=decide,
            interval=interval,
            min_gap=gap,
            against=against,
            commit_reads=reads,
        )

    return Policy(f"slow_fast {against}", sink, fast, chunk, reads, make, slow=slow)


@st.composite
def releases(draw: st.DrawFn) -> Policy:
    chunk, sink, reads = draw(chunk_sizes), draw(st.integers(0, 5)), draw(commit_reads)
    slow, fast = draw(st.integers(0, 5)), chunk + draw(st.integers(0, 6))

    def make(decide: Decide) -> Table:
        return ReleaseTable(sink=sink, slow=slow, fast=fast, decide=decide, commit_reads=reads)

    return Policy("release", sink, fast, chunk, reads, make, slow=slow, spare=1)


policies = st.one_of(windows(), slow_fasts(), releases())
"""Every policy there is; `full` is a window that is never filled."""


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([2, 6, 8, 16]))
    return Geometry(
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


def random_generator(geometry: Geometry, seed: int = 0) -> Generator:
    """A generator with weights that make attention matter."""
    torch.manual_seed(seed)
    generator = Generator(geometry)
    with torch.no_grad():
        for parameter in generator.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.normal_(0, 1.5 / width**0.5)
    return generator.eval()
