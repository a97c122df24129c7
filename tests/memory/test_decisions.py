"""What is compared with what, and when it counts as surprising."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfgen.memory.base import Pass, Table
from cfgen.memory.kv_cache import GraphCache
from cfgen.memory.paged import PagedMemory, Surprise
from cfgen.memory.slow_fast import ReleaseTable, SlowFastTable
from cfgen.ops.reference import Rope
from cfgen.ops.select import build_ops

SIZES = {"sink": 2, "slow": 3, "fast": 4}


def compared(make, chunks: int, passes: int, surprising: set[str]) -> list[tuple[str, str]]:
    """Pairs that the table compared, as `chunk.pass` of each; keys in `surprising` are let in."""
    pairs: list[tuple[str, str]] = []

    def decide(reference: str, keys: str) -> bool:
        pairs.append((reference, keys))
        return keys in surprising

    table: Table[str] = make(decide)
    for chunk in range(chunks):
        table.evict(2)
        table.enter(2 * chunk, [100 + 2 * chunk, 101 + 2 * chunk])
        for index in range(passes):
            pass_ = Pass(index, commit=index == passes - 1)
            if table.watches(pass_):
                table.observe(pass_, f"{chunk}.{index}", lambda page: page + 1000)
        table.commit()
    return pairs


def test_release_compares_each_pass_with_the_pass_before() -> None:
    pairs = compared(lambda decide: ReleaseTable(**SIZES, decide=decide), 4, 3, {"2.1"})
    assert pairs == [
        ("1.2", "2.0"),
        ("2.0", "2.1"),
        ("2.2", "3.0"),
        ("3.0", "3.1"),
        ("3.1", "3.2"),
    ]


def test_paper_compares_each_commit_pass_with_the_chunk_before() -> None:
    def make(decide):
        return SlowFastTable(**SIZES, decide=decide, against="previous", interval=2)

    assert compared(make, 7, 3, {"4.2"}) == [("1.2", "2.2"), ("3.2", "4.2"), ("5.2", "6.2")]


def test_cfgen_compares_each_commit_pass_with_the_last_admitted() -> None:
    pairs = compared(lambda decide: SlowFastTable(**SIZES, decide=decide), 7, 2, {"3.1", "5.1"})
    assert pairs == [
        ("0.1", "2.1"),
        ("0.1", "3.1"),
        ("3.1", "4.1"),
        ("3.1", "5.1"),
        ("5.1", "6.1"),
    ]


def test_gap_between_admissions_is_kept() -> None:
    def make(decide):
        return SlowFastTable(**SIZES, decide=decide, min_gap=3)

    everything = {f"{chunk}.1" for chunk in range(9)}
    assert [keys for _, keys in compared(make, 9, 2, everything)] == ["3.1", "6.1"]


def cosine_pair(cosine: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, 0.0]]), torch.tensor([[cosine, (1 - cosine**2) ** 0.5]]) * 7


@pytest.mark.parametrize(("cosine", "surprising"), [(0.94, True), (0.96, False), (-1.0, True)])
def test_surprise_is_a_cosine_below_tau(cosine: float, surprising: bool) -> None:
    assert Surprise(0.95)(*cosine_pair(cosine)) is surprising


def test_surprise_takes_the_mean_over_the_batch_in_float32() -> None:
    pairs = [cosine_pair(cosine) for cosine in (1.0, 0.5)]
    reference, keys = (torch.cat(both).bfloat16() for both in zip(*pairs, strict=True))
    assert Surprise(0.76)(reference, keys)
    assert not Surprise(0.74)(reference, keys)


def test_descriptor_is_the_mean_of_keys_over_all_tokens() -> None:
    seen: list[Tensor] = []

    def decide(_reference: Tensor, keys: Tensor) -> bool:
        seen.append(keys)
        return False

    table = ReleaseTable(sink=0, slow=1, fast=4, decide=decide)
    ops, rope = build_ops("reference"), Rope(6)
    memory = PagedMemory([table], GraphCache(1), ops, rope=rope, grid=(2, 3))
    chunks = torch.randn(4, 3, 12, 2, 6).unbind(0)
    for keys in chunks:
        view = memory.begin(2)
        view.at(Pass(0, commit=True)).attend(0, keys, keys, keys)
        memory.commit(view)
    assert len(seen) == 3
    for keys, descriptor in zip(chunks[1:], seen, strict=True):
        torch.testing.assert_close(descriptor, keys.mean(1).reshape(3, 12))
