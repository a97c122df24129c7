"""Laws that hold for every policy, whatever its sizes and whatever surprises it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cfgen.memory.protocols import MemoryState
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.memory.window import WindowTable
from tests.memory.spied import COMMIT, PASSES, Read, Spied
from tests.strategies import Policy, inverted, policies, slow_fasts, windows

outcomes = st.lists(
    st.lists(st.booleans(), min_size=PASSES, max_size=PASSES), min_size=1, max_size=14
)


def played(policy: Policy, chunks: list[list[bool]]):
    """A clip, chunk by chunk: the memory, how many chunks there are, what each pass read."""
    spied = Spied(policy.make)
    spied = Spied(policy.make, pages=spied.table.capacity + policy.spare)
    for number, below in enumerate(chunks):
        yield spied, number, spied.chunk(policy.chunk, below)


@settings(deadline=None, max_examples=150)
@given(policies, outcomes)
def test_views_obey_the_laws(policy: Policy, chunks: list[list[bool]]) -> None:
    for spied, number, reads in played(policy, chunks):
        seen = (number + 1) * policy.chunk
        current = list(range(seen - policy.chunk, seen))
        for index, read in enumerate(reads):
            frames = [r.frame for r in read]
            positions = [r.position for r in read]
            assert frames[-policy.chunk :] == current
            assert len(read) <= spied.table.capacity
            assert all(a < b for a, b in pairwise(positions))
            if policy.commit_reads == "all" or index < COMMIT:
                sink = min(policy.sink, seen)
                assert frames[:sink] == list(range(sink))
            policy.check_positions(frames, positions, spied.table.capacity)
            if policy.positions == "top" and seen <= policy.trained:
                newest = positions[min(policy.sink, seen) :] if index < COMMIT else positions[-1:]
                assert newest == frames[len(frames) - len(newest) :]
        check_pages(spied, policy)


def check_pages(spied: Spied, policy: Policy) -> None:
    assert len(spied.table.slots()) <= spied.table.capacity
    assert len(spied.pages) <= spied.table.capacity
    if policy.name != "compressed":  # whose pages are of several sizes
        assert spied.memory.nbytes == (spied.table.capacity + policy.spare) * 2 * 2 * 8


@settings(deadline=None, max_examples=150)
@given(policies, outcomes)
def test_a_visible_page_keeps_what_its_commit_pass_wrote(policy: Policy, chunks) -> None:
    for _, number, reads in played(policy, chunks):
        start = number * policy.chunk
        for index, read in enumerate(reads):
            for r in read[: -policy.chunk]:
                copied = policy.name == "release" and r.frame % policy.chunk == 0
                assert r.written == COMMIT or copied
                assert r.frame < start or copied
            assert {r.written for r in read[-policy.chunk :]} == {index}


@settings(deadline=None, max_examples=150)
@given(policies, outcomes)
def test_commit_pass_that_reads_fast_reads_neither_sink_nor_key_frames(
    policy: Policy, chunks: list[list[bool]]
) -> None:
    assume(policy.commit_reads == "fast")
    for spied, number, (*_, before, commit) in played(policy, chunks):
        seen = (number + 1) * policy.chunk
        held = seen - policy.sink
        if policy.name == "release":
            held = len(spied.table.slots()) - policy.sink - spied.table.key_frames
        newest = max(policy.chunk, min(policy.fast, held))
        where = [(r.frame, r.position) for r in commit]
        assert where == [(r.frame, r.position) for r in before][-newest:]
        if policy.name != "release":
            assert [r.frame for r in commit] == list(range(seen - newest, seen))


@settings(deadline=None, max_examples=150)
@given(policies, outcomes)
def test_commit_pass_that_reads_the_newest_reads_no_others_and_no_copies(
    policy: Policy, chunks: list[list[bool]]
) -> None:
    assume(policy.newest)
    for spied, number, (*_, before, commit) in played(policy, chunks):
        seen = (number + 1) * policy.chunk
        frames = [r.frame for r in commit]
        assert frames == sorted(set(frames)), "a key frame is a copy"
        assert frames[0] >= seen - policy.newest
        if policy.name not in ("recency", "relax"):  # whose other passes may read less
            assert set(commit[: -policy.chunk]) <= set(before), "where they stand for those"
        held = [slot.frame for slot in spied.table.slots()]
        if policy.slow == 0:
            assert frames == [f for f in held if f >= seen - policy.newest]


@settings(deadline=None, max_examples=150)
@given(inverted(), outcomes)
def test_what_is_made_from_the_end_stands_before_all_that_it_reads(
    policy: Policy, chunks: list[list[bool]]
) -> None:
    for spied, number, reads in played(policy, chunks):
        current = list(range(number * policy.chunk, (number + 1) * policy.chunk))
        for index, read in enumerate(reads):
            assert len({r.position for r in read}) == len(read) <= spied.table.capacity
            own, past = read[-policy.chunk :], read[: -policy.chunk]
            assert [r.frame for r in own] == current
            first = own[0].position
            assert [r.position for r in own] == list(range(first, first + policy.chunk))
            anchors = [r for r in past if r.position < first]
            if index < COMMIT or policy.commit_reads == "all":
                sink = min(policy.sink, number * policy.chunk)
                assert [r.position for r in anchors] == list(range(sink))
            assert (first - policy.sink) % policy.chunk == 0
            assert 0 <= (first - policy.sink) // policy.chunk <= 3
        check_pages(spied, policy)


@settings(deadline=None, max_examples=150)
@given(st.one_of(policies, inverted()), outcomes, outcomes)
def test_a_restored_memory_goes_on_as_the_saved_one(
    policy: Policy, before: list[list[bool]], after: list[list[bool]]
) -> None:
    *_, (saved, _, _) = played(policy, before)
    restored = Spied(policy.make, pages=saved.table.capacity + policy.spare)
    restored.stand_where(saved)
    state = saved.memory.state()
    pages = {name: page.clone() for name, page in state.pages.items()}
    scalars = json.loads(json.dumps(state.scalars))
    restored.memory.restore(MemoryState(scalars, state.tensors, pages))
    for below in after:
        assert restored.chunk(policy.chunk, below) == saved.chunk(policy.chunk, below)
        assert restored.asked == saved.asked
    ends = saved.memory.state(), restored.memory.state()
    assert ends[0].scalars == ends[1].scalars
    assert ends[0].pages.keys() == ends[1].pages.keys()
    for name, page in ends[0].pages.items():
        assert ends[1].pages[name].equal(page)
        if name in pages:
            assert pages[name].equal(page), "a name stands for one content"


@settings(deadline=None, max_examples=60)
@given(windows(), st.integers(1, 10))
def test_a_window_as_long_as_the_clip_is_full(policy: Policy, chunks: int) -> None:
    length = chunks * policy.chunk
    large = Spied(lambda: WindowTable(length + 5, sink=policy.sink))
    full = Spied(lambda: WindowTable(length))
    for _ in range(chunks):
        assert large.chunk(policy.chunk, [False] * PASSES) == full.chunk(
            policy.chunk, [False] * PASSES
        )
    assert full.memory.frames(0) == list(range(length))


def test_positions_go_past_the_table_of_the_peers() -> None:
    spied = Spied(lambda: WindowTable(9, sink=3))
    for _ in range(400):
        reads = spied.chunk(3, [False] * PASSES)
    assert [r.position for r in reads[-1]] == [0, 1, 2, *range(1194, 1200)]


def test_a_full_memory_refuses_one_frame_too_many() -> None:
    spied = Spied(lambda: WindowTable(6), pages=5)
    spied.chunk(3, [False] * PASSES)
    with pytest.raises(IndexError, match="all 5 pages"):
        spied.chunk(3, [False] * PASSES)


class Oracle(RuleBasedStateMachine):
    """Chunks of any length against a list that is worked out anew from the whole history."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[tuple[int, bool]] = []
        self.reads: list[list[Read]] = []

    def begin(self, policy: Policy) -> None:
        self.policy = policy
        self.spied = Spied(policy.make)

    @rule(data=st.data(), below=st.booleans())
    def chunk(self, data: st.DataObject, below: bool) -> None:
        frames = data.draw(st.integers(1, self.policy.chunk))
        self.reads = self.spied.chunk(frames, [not below] * COMMIT + [below])
        self.history.append((frames, below))

    @precondition(lambda self: self.history)
    @invariant()
    def reads_what_the_list_says(self) -> None:
        total, (current, _) = sum(frames for frames, _ in self.history), self.history[-1]
        shown = self.kept(total)
        for index, read in enumerate(self.reads):
            places = [self.place(shown, i) for i in range(len(shown))]
            expected = list(zip(shown, places, strict=True))
            if index == COMMIT and self.policy.commit_reads == "fast":
                expected = expected[-self.narrowed(total, current) :]
            elif index == COMMIT and self.policy.newest:
                copies = self.copies(total)
                expected = [
                    (frame, place)
                    for i, (frame, place) in enumerate(expected)
                    if frame >= total - self.policy.newest and i not in copies
                ]
            assert [(r.frame, r.position) for r in read] == expected

    def place(self, shown: list[int], slot: int) -> int:
        if self.policy.positions == "absolute":
            return shown[slot]
        if self.policy.positions == "top" and slot >= self.policy.sink:
            return min(shown[-1], self.policy.trained - 1) - (len(shown) - 1 - slot)
        return slot

    def copies(self, total: int) -> range:
        """Where key frames stand among what is shown."""
        sink = min(self.policy.sink, total)
        return range(sink, len(self.kept(total)) - len(self.fast(total)))

    def fast(self, total: int) -> list[int]:
        rest = list(range(self.policy.sink, total))
        return rest[-self.policy.fast :]

    def narrowed(self, total: int, current: int) -> int:
        return max(current, len(self.fast(total)))

    def kept(self, total: int) -> list[int]:
        raise NotImplementedError


class WindowOracle(Oracle):
    @initialize(policy=windows())
    def start(self, policy: Policy) -> None:
        self.begin(policy)

    def kept(self, total: int) -> list[int]:
        return [*range(min(self.policy.sink, total)), *self.fast(total)]


class SlowFastOracle(Oracle):
    @initialize(policy=slow_fasts())
    def start(self, policy: Policy) -> None:
        self.begin(policy)
        table = self.spied.table
        assert isinstance(table, SlowFastTable)
        self.interval, self.gap = table._interval, table._min_gap
        self.whole_chunks = table._admits_whole_chunks

    def kept(self, total: int) -> list[int]:
        slow = self.admitted()[-self.policy.slow :] if self.policy.slow else []
        return [*range(min(self.policy.sink, total)), *slow, *self.fast(total)]

    def admitted(self) -> list[int]:
        """First or all frames of the chunks before this one that were let in."""
        found, first, last = [], 0, 0
        for number, (frames, below) in enumerate(self.history[:-1]):
            late = number > 0 and first >= self.policy.sink + frames
            if late and below and number % self.interval == 0 and number - last >= self.gap:
                found += range(first, first + (frames if self.whole_chunks else 1))
                last = number
            first += frames
        return found


TestWindowOracle = WindowOracle.TestCase
TestSlowFastOracle = SlowFastOracle.TestCase
TestWindowOracle.settings = TestSlowFastOracle.settings = settings(
    deadline=None, max_examples=40, stateful_step_count=20
)
