"""Laws of what a shot does to memory where it begins, whatever the policy and what was before."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfgen.errors import SnapshotError
from cfgen.memory.protocols import MemoryState, Pass, Table
from cfgen.memory.recent import RecentLatents
from cfgen.memory.slow_fast import SlowFastMemory, SlowFastTable
from cfgen.memory.slow_fast_release import ReleaseTable
from cfgen.memory.window import FullMemory, Positions, WindowMemory, WindowTable
from tests.memory.spied import COMMIT, PASSES, Spied
from tests.strategies import Policy, policies

chunks = st.lists(st.booleans(), min_size=PASSES, max_size=PASSES)
steps = st.lists(
    st.one_of(
        chunks, chunks, st.sampled_from(["recache", "clear"]), st.integers(1, 4), st.just("saved")
    ),
    min_size=1,
    max_size=14,
)


def saved(spied: Spied, policy: Policy) -> Spied:
    """Another memory that holds what this one does, as it is stored."""
    other = Spied(policy.make, pages=spied.table.capacity + policy.spare)
    other.stand_where(spied)
    state = spied.memory.state()
    scalars = json.loads(json.dumps(state.scalars))
    tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
    pages = {name: page.clone() for name, page in state.pages.items()}
    other.memory.restore(MemoryState(scalars, tensors, pages))
    return other


@settings(deadline=None, max_examples=200)
@given(policies, steps)
def test_memory_obeys_the_laws_after_any_beginning(policy: Policy, steps: list) -> None:
    spied = Spied(policy.make)
    spied = Spied(policy.make, pages=spied.table.capacity + policy.spare)
    for step in steps:
        total = spied.start + spied._frames
        if step == "saved":
            spied = saved(spied, policy) if total else spied
        elif step == "clear":
            spied.clear()
            assert spied.table.slots() == []
        elif step == "recache":
            read = spied.recache()
            if read is not None:
                assert spied.start + spied._frames == total
                own, past = read[-spied._frames :], read[: -spied._frames]
                assert [r.frame for r in own] == list(range(spied.start, total))
                assert all(r.written == COMMIT or policy.name == "release" for r in past)
                assert {r.written for r in own} == {COMMIT}
        elif isinstance(step, int):
            before = [slot.frame for slot in spied.table.slots()]
            spied.memory.forget(step)
            after = [slot.frame for slot in spied.table.slots()]
            sink = min(policy.sink, len(before))
            assert after[:sink] == before[:sink]
            assert len(after[sink:]) <= step
            assert after[-1:] == before[-1:]
            assert all(b == a + 1 for a, b in pairwise(after[sink:]))
        else:
            reads = spied.chunk(policy.chunk, step)
            total = spied.start + spied._frames
            for read in reads:
                frames = [r.frame for r in read]
                assert frames[-policy.chunk :] == list(range(spied.start, total))
                positions = [r.position for r in read]
                assert all(a < b for a, b in pairwise(positions))
                policy.check_positions(frames, positions, spied.table.capacity)
        assert len(spied.table.slots()) <= spied.table.capacity
        assert len(spied.pages) <= spied.table.capacity


def frames_after(table: Table, count: int, *, chunk: int = 3, below: bool = True) -> Spied:
    spied = Spied(lambda: table, pages=table.capacity + 1)
    for _ in range(count):
        spied.chunk(chunk, [False] * COMMIT + [below])
    return spied


def held(spied: Spied) -> list[int]:
    return [slot.frame for slot in spied.table.slots()]


SIZES = {"sink": 3, "slow": 4, "fast": 6}
RECACHED = {
    "window": (WindowTable(12, sink=3), 6, 9, [0, 1, 2, *range(9, 18)]),
    "window, sink renewed": (WindowTable(12, sink=3, global_sink=False), 6, 12, range(6, 18)),
    "window, all of the clip": (WindowTable(12, sink=3), 4, 12, range(12)),
    "slow kept": (SlowFastTable(**SIZES), 8, 6, [0, 1, 2, 12, 15, 18, 21, *range(18, 24)]),
    "slow cleared": (SlowFastTable(**SIZES, keep_slow=False), 8, 10, [0, 1, 2, *range(18, 24)]),
    "slow_fast, all of the clip": (SlowFastTable(**SIZES), 3, 9, range(9)),
    "release cleared": (ReleaseTable(**SIZES, keep_slow=False), 8, 10, [0, 1, 2, *range(14, 24)]),
}
"""Table, chunks, how many frames are committed again, what is held then."""


@pytest.mark.parametrize("name", RECACHED)
def test_what_is_committed_again_and_what_is_held_then(name: str) -> None:
    table, count, again, expected = RECACHED[name]
    spied = frames_after(table, count)
    read = spied.recache()
    assert spied._frames == again
    assert read is not None
    assert len(read) <= table.capacity
    assert held(spied) == list(expected)


def test_key_frames_of_the_release_stay_where_they_stood() -> None:
    spied = frames_after(ReleaseTable(**SIZES), 8)
    before = held(spied)
    spied.recache()
    assert spied._frames == 6
    assert held(spied) == before


def test_frames_before_a_flush_are_not_committed_again() -> None:
    spied = frames_after(WindowTable(12, sink=3), 6)
    spied.memory.forget(2)
    assert held(spied) == [0, 1, 2, 16, 17]
    spied.chunk(3, [False] * PASSES)
    read = spied.recache()
    assert read is not None
    assert [r.frame for r in read] == [0, 1, 2, *range(16, 21)]


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_a_jump_is_of_one_chunk_and_of_its_own_frames(positions: Positions) -> None:
    spied = frames_after(WindowTable(6, sink=1, positions=positions), 5)
    spied.memory.jump(42)
    read = []
    for _ in range(2):
        spied.begin(3)
        for pass_ in (Pass(0), Pass(1), Pass(2, commit=True)):
            shown = spied._view.chunk.shown(0, pass_, False)
            read.append([each.position for each in shown])
        spied.commit()
    first = [0, 1, 2, 45, 46, 47] if positions == "relative" else [0, 13, 14, 57, 58, 59]
    second = [0, 1, 2, 3, 4, 5] if positions == "relative" else [0, 16, 17, 18, 19, 20]
    assert read == [first] * 3 + [second] * 3


def test_recent_latents_are_exactly_as_many_as_may_be_asked_for() -> None:
    recent = RecentLatents(7)
    for start in range(0, 12, 3):
        recent.add(torch.arange(start, start + 3.0)[None, :, None, None, None])
    assert recent.frames == 7
    other = RecentLatents(7)
    other.restore(recent.state(), torch.device("cpu"))
    for each in (recent, other):
        taken = each.take(4)
        assert taken is not None
        assert taken.flatten().tolist() == [8, 9, 10, 11]
        assert each.frames == 3
        each.cut(1)
        assert each.state()["recent_latents"].flatten().tolist() == [7]
        each.clear()
        assert (each.frames, each.take(0), each.state()) == (0, None, {})


def test_a_snapshot_without_latents_cannot_be_committed_again() -> None:
    recent = RecentLatents(4)
    recent.restore({}, torch.device("cpu"))
    recent.add(torch.zeros(1, 3, 1, 1, 1))
    with pytest.raises(SnapshotError, match="an earlier cfgen wrote it"):
        _ = recent.frames
    recent.add(torch.zeros(1, 3, 1, 1, 1))
    assert recent.frames == 4


def test_policies_say_what_they_cannot_begin_a_shot_with() -> None:
    policies = (FullMemory(), WindowMemory(), SlowFastMemory())
    refused = {p.policy: p.refuses("recache") for p in policies}
    assert [name for name, why in refused.items() if why] == ["full"]
    others = ("continue", "flush", "cut", "fresh")
    assert not any(p.refuses(how) for p in policies for how in others)
    assert [p.recaches for p in policies] == [0, 21, 9]
    assert SlowFastMemory(recache_slow="clear").recaches == 21
