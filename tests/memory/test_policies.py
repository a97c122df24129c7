"""Values of policies that do not go together, and rules with numbers of their own."""

from __future__ import annotations

import pytest

from cfgen.errors import PresetError
from cfgen.memory.compressed import CompressedMemory
from cfgen.memory.policy import Policy
from cfgen.memory.protocols import CompressingTable, Pass
from cfgen.memory.recency import RecencyMemory
from cfgen.memory.relax import RelaxMemory, RelaxTable, cosine
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.memory.window import FullMemory, WindowMemory

REFUSED = {
    "a chunk beside the sink": (WindowMemory(sink=3, size=5), "memory.size"),
    "positions for all": (WindowMemory(size=22, positions="top"), "memory.size"),
    "full reads its chunk": (FullMemory(commit_reads="newest:2"), "memory.commit_reads"),
    "a window reads its chunk": (WindowMemory(commit_reads="newest:1"), "memory.commit_reads"),
    "slow_fast reads its chunk": (SlowFastMemory(commit_reads="newest:2"), "memory.commit_reads"),
    "whole chunks have room": (SlowFastMemory(admits="chunk", slow=2), "memory.slow"),
    "release copies a frame": (
        SlowFastMemory(variant="release", admits="chunk"),
        "memory.admits",
    ),
    "reads a chunk": (RecencyMemory(reads=2), "memory.reads"),
    "reads what is kept": (RecencyMemory(reads=22), "memory.reads"),
    "reads what has positions": (RecencyMemory(positions="top", reads=19), "memory.reads"),
    "commits what has positions": (
        RecencyMemory(positions="top", commit_reads="newest:22"),
        "memory.commit_reads",
    ),
    "keeps what is read": (RelaxMemory(size=6), "memory.size"),
    "candidates for all of history": (RelaxMemory(history=3, candidates=2), "memory.candidates"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_do_not_go_together_are_refused(case: str) -> None:
    policy, key = REFUSED[case]
    found = list(policy.problems(chunk=3, guidance=1, snapshot="full"))
    assert [problem.key for problem in found] == [key]


TAKEN: list[Policy] = [
    WindowMemory(size=21, positions="top"),
    WindowMemory(size=22, positions="top", trained=22),
    SlowFastMemory(commit_reads="newest:3"),
    SlowFastMemory(admits="chunk", slow=3),
    SlowFastMemory(slow=0),
    RecencyMemory(),
    RecencyMemory(positions="top", commit_reads="newest:21"),
    RelaxMemory(),
    RelaxMemory(size=7, commit_reads="newest:7"),
    CompressedMemory(),
    CompressedMemory(sink=1, levels=("1:1", "2:2", "16:4"), page="cube", layout="reordered"),
    CompressedMemory(sink=2, levels=("4:1", "3:2", "5:2", "all:4")),
]


@pytest.mark.parametrize("policy", TAKEN, ids=str)
def test_values_that_go_together_are_taken(policy: Policy) -> None:
    assert not list(policy.problems(chunk=3, guidance=1, snapshot="full"))


@pytest.mark.parametrize("policy", TAKEN, ids=str)
@pytest.mark.parametrize("clip", [3, 9, 60, 400])
def test_no_pass_reads_more_than_is_said(policy: Policy, clip: int) -> None:
    table, most = policy.table(clip), policy.readable(clip, 3)
    assert most <= policy.capacity(clip) + 3 * bool(policy.patches)  # which is without the chunk
    passes = [*(Pass(step) for step in range(4)), Pass(4, commit=True)]
    read = 0
    for start in range(0, clip, 3):
        table.evict(3)
        table.append_chunk(start, list(range(start, start + 3)), [0])
        if isinstance(table, RelaxTable):
            table.choose([[1.0, float(place)] for place, _ in enumerate(table.asked())])
        read = max(read, *(len(table.visible_slots(each, False)) for each in passes))
        assert len(table.slots()) <= policy.capacity(clip) + 3 * bool(policy.patches)
        table.commit(False)
        for encoding in table.settle() if isinstance(table, CompressingTable) else ():
            table.begin_encoding(encoding, [0] * len(encoding.frames))
            read = max(read, len(table.visible_slots(passes[-1], False)))
            table.end_encoding()
    assert read <= most
    if clip > 200 and policy.admission is None and not policy.grows:  # nothing is admitted here
        assert read == most


LEVELS = {
    "nothing": ({"levels": ()}, "must begin with a level of patch 1"),
    "no whole frames": ({"levels": ("4:2",)}, "must begin with a level of patch 1"),
    "no patch": ({"levels": ("4:3",)}, "must be FRAMES:PATCH"),
    "no frames": ({"levels": ("0:1",)}, "must be FRAMES:PATCH"),
    "falling": ({"levels": ("1:1", "2:4", "2:2")}, "must have patches that do not fall"),
    "all first": ({"levels": ("all:1", "2:2")}, "must have `all` in the last level only"),
    "cubes without an end": ({"levels": ("1:1", "all:4"), "page": "cube"}, "where pages are cubes"),
    "part of a cube": ({"levels": ("1:1", "6:4"), "page": "cube"}, "must hold whole cubes of 4"),
    "no place for all": ({"layout": "reordered"}, "where the layout is reordered"),
}


@pytest.mark.parametrize("case", LEVELS)
def test_levels_that_do_not_go_together_are_refused(case: str) -> None:
    values, reason = LEVELS[case]
    with pytest.raises(PresetError) as caught:
        CompressedMemory(**values)  # type: ignore[arg-type]
    assert [problem.key for problem in caught.value.problems] == ["levels"]
    assert reason in str(caught.value)


def test_the_bias_grows_with_age_and_fades_with_the_steps() -> None:
    """-4 dt^gamma: dt is 0, 1/4, 1/2, 3/4, 1 from the previous chunk on, gamma 0.2 to 1.6."""
    table = RecencyMemory().table(99)
    for chunk in range(10):
        table.evict(3)
        table.append_chunk(3 * chunk, [0, 0, 0], [])
    for step, gamma in enumerate((0.2, 0.4, 0.8, 1.6)):
        shown = table.visible_slots(Pass(step), False)
        assert [each.bias for each in shown[:3]] == [0, 0, 0], "the sink"
        shares = [1, 3 / 4, 1 / 2, 1 / 4, 0, 0]
        expected = [-4 * share**gamma if share else 0 for share in shares for _ in range(3)]
        assert [each.bias for each in shown[3:]] == pytest.approx(expected)
        assert [each.position for each in shown] == list(range(9, 30))
    assert {each.bias for each in table.visible_slots(Pass(4, commit=True), False)} == {0}


def filled(table: RelaxTable, past: int) -> RelaxTable:
    for start in range(0, past, 3):
        table.append_chunk(start, [0, 0, 0], [])
    table.append_chunk(past, [0, 0, 0], [])
    return table


@pytest.mark.parametrize(
    ("past", "frames"),
    [(3, []), (6, [3]), (9, [5, 6]), (12, [6, 7, 8, 9]), (117, [59, 73, 87, 101])],
)
def test_candidates_are_spread_over_the_later_half_of_the_middle(
    past: int, frames: list[int]
) -> None:
    sink, tail, *alone = filled(RelaxTable(200), past).asked() or [[], []]
    assert [slot.frame for group in alone for slot in group] == frames
    if frames:
        assert [slot.frame for slot in sink] == [0, 1]
        assert [slot.frame for slot in tail] == [past - 1]


def test_history_is_like_the_sink_and_unlike_the_tail() -> None:
    table = filled(RelaxTable(200), 12)
    sink, tail = [1.0, 0.0], [0.0, 1.0]
    keys = {"both": [1.0, 1.0], "sink": [3.0, 0.1], "tail": [0.0, 2.0], "neither": [-1.0, 0.0]}
    table.choose([sink, tail, *keys.values()])
    shown = table.visible_slots(Pass(0), False)
    assert [each.slot.frame for each in shown] == [0, 1, 7, 11, 12, 13, 14]
    assert [each.position for each in shown] == list(range(8, 15))
    table.choose([])
    assert len(table.visible_slots(Pass(0), False)) == 15


def test_a_cosine_of_nothing_is_nothing() -> None:
    assert cosine([0.0, 0.0], [1.0, 2.0]) == 0
    assert cosine([3.0, 4.0], [4.0, 3.0]) == pytest.approx(24 / 25)
