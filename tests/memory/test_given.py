"""Laws of every policy where a clip begins with a smaller chunk that has its commit pass alone."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory.spied import COMMIT, PASSES, Spied
from tests.strategies import Policy, policies

outcomes = st.lists(
    st.lists(st.booleans(), min_size=PASSES, max_size=PASSES), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=120)
@given(policies, st.integers(1, 4), st.integers(1, 3), st.booleans(), outcomes)
def test_views_obey_the_laws_behind_a_smaller_chunk(
    policy: Policy, first: int, past: int, surprising: bool, chunks: list[list[bool]]
) -> None:
    """Chunks of `first`, then of the policy's size: `past` of them given, the others made."""
    first = min(first, policy.chunk)
    spied = Spied(policy.make)
    spied = Spied(policy.make, pages=spied.table.capacity + policy.spare)
    passes = [[surprising]] * past + chunks
    seen = 0
    for number, below in enumerate(passes):
        size = policy.chunk if number else first
        reads = spied.chunk(size, below)
        seen += size
        for index, read in enumerate(reads):
            frames, positions = [r.frame for r in read], [r.position for r in read]
            assert frames[-size:] == list(range(seen - size, seen))
            assert len(read) <= spied.table.capacity
            assert all(a < b for a, b in pairwise(positions))
            commits = number < past or index == COMMIT
            if policy.commit_reads == "all" or not commits:
                sink = min(policy.sink, seen)
                assert frames[:sink] == list(range(sink))
            policy.check_positions(frames, positions, spied.table.capacity)
        assert len(spied.table.slots()) <= spied.table.capacity
        assert len(spied.pages) <= spied.table.capacity
