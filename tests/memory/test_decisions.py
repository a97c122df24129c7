"""What is compared with what, and when it counts as surprising."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfgen.kernels.pages import ADMITTED, ADMITTED_NOW, CAN_ADMIT, UPDATE_REFERENCE
from cfgen.memory.page_pool import KVCache
from cfgen.memory.paged import PagedMemory
from cfgen.memory.pre_rotated import PreRotatedAttention
from cfgen.memory.protocols import Norms, Pass, Table
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.memory.slow_fast_release import ReleaseTable
from cfgen.ops.reference import Rope, admit
from cfgen.ops.select import REFERENCE, TORCH, Ops
from tests.strategies import memory_of

SIZES = {"sink": 2, "slow": 3, "fast": 4}


def compared(table: Table, chunks: int, passes: int, surprising: set[str]) -> list[tuple[str, str]]:
    """Pairs that are compared, as `chunk.pass` of each; keys in `surprising` are let in."""
    pairs: list[tuple[str, str]] = []
    reference = ""
    for chunk in range(chunks):
        table.evict(2)
        table.append_chunk(2 * chunk, [100 + 2 * chunk, 101 + 2 * chunk], [1000 + chunk])
        is_open, renew = table.admission
        admitted = False
        for index in range(passes):
            if not table.inspects_keys(Pass(index, commit=index == passes - 1)):
                continue
            keys, fired = f"{chunk}.{index}", False
            if is_open and not admitted:
                pairs.append((reference, keys))
                fired = keys in surprising
            admitted |= fired
            reference = keys if fired or renew else reference
        table.commit(admitted)
    return pairs


def test_release_compares_each_pass_with_the_pass_before() -> None:
    pairs = compared(ReleaseTable(**SIZES), 4, 3, {"2.1"})
    assert pairs == [
        ("1.2", "2.0"),
        ("2.0", "2.1"),
        ("2.2", "3.0"),
        ("3.0", "3.1"),
        ("3.1", "3.2"),
    ]


def test_paper_compares_each_commit_pass_with_the_chunk_before() -> None:
    table = SlowFastTable(**SIZES, against="previous", interval=2)
    assert compared(table, 7, 3, {"4.2"}) == [("1.2", "2.2"), ("3.2", "4.2"), ("5.2", "6.2")]


def test_cfgen_compares_each_commit_pass_with_the_last_admitted() -> None:
    pairs = compared(SlowFastTable(**SIZES), 7, 2, {"3.1", "5.1"})
    assert pairs == [
        ("0.1", "2.1"),
        ("0.1", "3.1"),
        ("3.1", "4.1"),
        ("3.1", "5.1"),
        ("5.1", "6.1"),
    ]


def test_gap_between_admissions_is_kept() -> None:
    table = SlowFastTable(**SIZES, min_gap=3)
    everything = {f"{chunk}.1" for chunk in range(9)}
    assert [keys for _, keys in compared(table, 9, 2, everything)] == ["3.1", "6.1"]


@pytest.mark.parametrize(("admits", "kept"), [("first", [4, 8]), ("chunk", [5, 8, 9])])
def test_what_an_admitted_chunk_leaves(admits: str, kept: list[int]) -> None:
    table = SlowFastTable(**SIZES, admits=admits)
    compared(table, 8, 2, {"2.1", "4.1"})
    assert [slot.frame for slot in table.slots()] == [0, 1, *kept, *range(12, 16)]


def decided(reference: Tensor, keys: Tensor, tau: float, **asked: int) -> tuple[list[int], Tensor]:
    """The decision on keys [B, C] and the reference after it."""
    decision = torch.zeros(4, dtype=torch.int32)
    decision[CAN_ADMIT], decision[UPDATE_REFERENCE] = (
        asked.get("allowed", 1),
        asked.get("update_reference", 0),
    )
    decision[ADMITTED] = asked.get("admitted", 0)
    after = reference.clone()
    admit(torch.stack([keys, 5 * keys], 1), after, decision, tokens=6, tau=tau)
    return decision.tolist(), after


def cosine_pair(cosine: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, 0.0]]), torch.tensor([[cosine, (1 - cosine**2) ** 0.5]]) * 7


@pytest.mark.parametrize(("cosine", "surprising"), [(0.94, 1), (0.96, 0), (-1.0, 1)])
def test_surprise_is_a_cosine_below_tau(cosine: float, surprising: int) -> None:
    reference, keys = cosine_pair(cosine)
    decision, after = decided(reference, keys, 0.95)
    assert decision[ADMITTED] == decision[ADMITTED_NOW] == surprising
    torch.testing.assert_close(after, keys if surprising else reference)


def test_surprise_is_the_mean_over_the_batch() -> None:
    pairs = [cosine_pair(cosine) for cosine in (1.0, 0.5)]
    reference, keys = (torch.cat(both) for both in zip(*pairs, strict=True))
    assert decided(reference, keys, 0.76)[0][ADMITTED] == 1
    assert decided(reference, keys, 0.74)[0][ADMITTED] == 0


def test_nothing_is_admitted_that_is_not_asked_for_or_already_was() -> None:
    reference, keys = cosine_pair(0.0)
    assert decided(reference, keys, 0.95, allowed=0)[0][ADMITTED:] == [0, 0]
    decision, after = decided(reference, keys, 0.95, admitted=1, update_reference=1)
    assert decision[ADMITTED:] == [1, 0]
    torch.testing.assert_close(after, keys)


@pytest.mark.parametrize("ops", [REFERENCE, TORCH], ids=lambda ops: ops.name)
def test_descriptor_is_the_mean_of_normed_keys_over_all_tokens(ops: Ops) -> None:
    seen: list[Tensor] = []

    def note(parts: Tensor, _reference: Tensor, _decision: Tensor, *, tokens: int, tau: float):
        seen.append(parts.sum(1) / tokens)

    pool = KVCache(1, 6, (3, 6, 2, 6), dtype=torch.float32, device=torch.device("cpu"))
    table = ReleaseTable(sink=0, slow=1, fast=4)
    memory = memory_of([table], pool, ops=ops, rope=Rope(6), grid=(2, 3), admit=note)
    chunks = torch.randn(4, 3, 12, 12).unbind(0)
    norms = Norms(torch.ones(12), torch.rand(12), 1e-6)
    for keys in chunks:
        view = memory.begin(2)
        view.at(Pass(0, commit=True)).attend(0, keys, keys, keys, norms)
        memory.commit(view)
    for keys, descriptor in zip(chunks, seen, strict=True):
        normed = torch.nn.functional.rms_norm(keys, (12,), norms.k, 1e-6)
        torch.testing.assert_close(descriptor, normed.mean(1))


@pytest.mark.parametrize(("layers", "admits"), [((0,), True), ((1,), False), ((0, 1), True)])
def test_some_layers_decide_together_for_all(layers: tuple[int, ...], admits: bool) -> None:
    """Layer 0 sees its keys turn by a right angle (cosine 0), layer 1 sees them stay (cosine 1)."""
    norms = Norms(torch.ones(4), torch.ones(4), 1e-6)
    pool = KVCache(3, 12, (1, 1, 1, 4), dtype=torch.float32, device=torch.device("cpu"))
    tables: list[Table] = [SlowFastTable(sink=1, slow=2, fast=3) for _ in range(3)]
    reader = PreRotatedAttention(pool, TORCH, rope=Rope(4), grid=(1, 1), slots=12, shared=False)
    memory = PagedMemory(tables, pool, reader, admit=TORCH.admit, tau=0.6, admission_layers=layers)
    before, after = torch.tensor([[[1.0, 0, 0, 0]]]), torch.tensor([[[0, 1.0, 0, 0]]])
    for chunk in range(4):
        view = memory.begin(1)
        commit = view.at(Pass(0, commit=True))
        for layer in range(3):
            keys = after if layer == 0 and chunk == 3 else before
            commit.attend(layer, keys, keys, keys, norms)
        memory.commit(view)
    admitted = [3 in memory.frames(layer)[1:-3] for layer in range(3)]
    assert admitted == [admits] * 3


def test_a_table_that_reads_its_decision_at_once_decides_alone() -> None:
    pool = KVCache(2, 12, (1, 1, 1, 4), dtype=torch.float32, device=torch.device("cpu"))
    tables: list[Table] = [ReleaseTable(sink=1, slow=2, fast=3) for _ in range(2)]
    reader = PreRotatedAttention(pool, TORCH, rope=Rope(4), grid=(1, 1), slots=12, shared=False)
    with pytest.raises(ValueError, match="at once"):
        PagedMemory(tables, pool, reader, admit=TORCH.admit, admission_layers=(0,))
