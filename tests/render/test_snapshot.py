"""Snapshots hold what a memory held, write little, and never believe a damaged file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfgen.memory.protocols import MemoryState
from cfgen.runs.records import with_checksum
from cfgen.runs.snapshot import SnapshotStore, tensor_blocks
from tests.render.crash import Crash, dying

BUDGET = 10**9


def page(number: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.full((1, 4, 2, 8), float(number), dtype=dtype)


def state(*pages: int, dtype: torch.dtype = torch.bfloat16) -> MemoryState:
    named = {f"0.{number}.k": page(number, dtype) for number in pages}
    tensors = {"reference.0": torch.arange(3.0) + max(pages, default=0)}
    return MemoryState({"pages": list(pages), "deep": {"a": [1, 2]}}, tensors, named)


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.dtype == expected.dtype and bool(
        found.view(torch.uint8).equal(expected.view(torch.uint8))
    )


def same(found: MemoryState, expected: MemoryState) -> bool:
    return (
        found.scalars == expected.scalars
        and found.tensors.keys() == expected.tensors.keys()
        and found.pages.keys() == expected.pages.keys()
        and all(alike(found.pages[name], tensor) for name, tensor in expected.pages.items())
        and all(found.tensors[name].equal(tensor) for name, tensor in expected.tensors.items())
    )


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.int8,
        torch.float8_e4m3fn,
    ],
)
def test_a_snapshot_gives_back_what_it_was_given(tmp_path: Path, dtype: torch.dtype) -> None:
    store = SnapshotStore(tmp_path / "s", "run", budget_nbytes=BUDGET)
    store.save(4, state(1, 2, 3, dtype=dtype))
    store.save(6, state(1, 3, 4, dtype=dtype))
    again = SnapshotStore(tmp_path / "s", "run", budget_nbytes=BUDGET)
    assert again.chunks == [4, 6]
    assert [again.newest(before=chunk) for chunk in (9, 6, 5, 4, 3)] == [6, 6, 4, 4, 0]
    assert same(again.load(6), state(1, 3, 4, dtype=dtype))
    assert same(again.load(4), state(1, 2, 3, dtype=dtype))


def test_pages_that_are_on_disk_are_not_written_again(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, "run", budget_nbytes=BUDGET)
    first = store.save(2, state(*range(20)))
    second = store.save(3, state(*range(1, 21)))
    one = page(0).nbytes
    assert first > 20 * one
    with (tmp_path / "000003-0.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert sorted(header) == ["page.0.20.k", "tensor.reference.0"]
    assert second < first


def test_the_disk_holds_little_more_than_what_is_needed(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, "run", budget_nbytes=0)
    for chunk in range(1, 60):
        sink, newest = [0, 1, 2], range(3 * chunk, 3 * chunk + 9)
        held = state(*sink, *newest)
        store.save(chunk, held)
        assert store.chunks == list(range(max(1, chunk - 1), chunk + 1))
        needed = sum(tensor.nbytes for tensor in held.pages.values())
        assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) < 6 * needed
        assert len(list(tmp_path.iterdir())) <= 2 * 6


def test_a_budget_thins_evenly_and_keeps_the_last_two_and_the_base(tmp_path: Path) -> None:
    one = SnapshotStore(tmp_path / "one", "run", budget_nbytes=BUDGET).save(1, state(1))
    store = SnapshotStore(tmp_path / "s", "run", budget_nbytes=8 * one, base=5)
    for chunk in range(5, 80):
        store.save(chunk, state(chunk))
        assert store.chunks[0] == 5
        assert store.chunks[-2:] == list(range(max(5, chunk - 1), chunk + 1))[-2:]
    gaps = [b - a for a, b in zip(store.chunks, store.chunks[1:], strict=False)]
    assert len(store.chunks) >= 5
    assert max(gaps[:-1]) <= 4 * min(gaps[:-2])
    assert store.nbytes <= 8 * one


@pytest.mark.parametrize("base", [0, 5])
def test_of_a_finished_film_the_newest_stay_and_what_they_need(tmp_path: Path, base: int) -> None:
    store = SnapshotStore(tmp_path / "s", "run", budget_nbytes=BUDGET, base=base)
    for chunk in range(5, 15):
        store.save(chunk, state(*range(chunk - 4, chunk)))
    store.keep_newest()
    assert store.chunks == ([5] if base else []) + [13, 14]
    again = SnapshotStore(tmp_path / "s", "run", budget_nbytes=BUDGET, base=base)
    for chunk in store.chunks:
        assert again.newest(before=chunk) == chunk
        assert same(again.load(chunk), state(*range(chunk - 4, chunk)))
    assert not again.problems
    assert len(list((tmp_path / "s").glob("*.json"))) == len(store.chunks)


@settings(deadline=None, max_examples=10)
@given(
    kept=st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=5),
    budget=st.sampled_from([0, 4000, BUDGET]),
)
def test_a_process_that_dies_at_any_write_leaves_the_snapshot_before_or_the_new_one(
    tmp_path_factory, kept: list[set[int]], budget: int
) -> None:
    """Every write of the last save in turn is the last of a process."""
    held = [state(*pages) for pages in kept]
    new = len(held)

    def before_the_last(folder: Path) -> SnapshotStore:
        store = SnapshotStore(folder, "run", budget_nbytes=budget)
        for number, memory in enumerate(held[:-1], start=1):
            store.save(number, memory)
        return store

    counted = tmp_path_factory.mktemp("counted") / "s"
    store = before_the_last(counted)
    with dying(counted, None) as disk:
        store.save(new, held[-1])
    assert len(disk.changes) >= 8
    for at in range(len(disk.changes)):
        folder = tmp_path_factory.mktemp("dying") / "s"
        store = before_the_last(folder)
        with dying(folder, at), pytest.raises(Crash):
            store.save(new, held[-1])
        again = SnapshotStore(folder, "run", budget_nbytes=budget)
        newest = again.newest(before=99)
        assert not again.problems
        assert newest in (new - 1, new)
        if newest:
            assert same(again.load(newest), held[newest - 1])
        again.save(new + 1, held[0])
        assert same(again.load(again.newest(before=99)), held[0])


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_snapshot_is_passed_over(
    tmp_path_factory, suffix: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("snapshots")
    store = SnapshotStore(folder, "run", budget_nbytes=BUDGET)
    store.save(2, state(1, 2))
    store.save(5, state(3, 4))
    file = folder / ("000005.json" if suffix == "json" else "000005-0.safetensors")
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip", "zero", "delete"]))
    if kind == "cut":
        content = content[:at]
    elif kind == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "zero":
        content = bytearray(len(content))
    file.write_bytes(content)
    if kind == "delete":
        file.unlink()
    again = SnapshotStore(folder, "run", budget_nbytes=BUDGET)
    chunk = again.newest(before=9)
    if chunk == 5:  # a byte between two JSON values may become another blank
        assert suffix == "json"
        assert same(again.load(5), state(3, 4))
    else:
        assert chunk == 2
        assert same(again.load(2), state(1, 2))
        assert kind == "delete" or again.problems


def test_snapshots_of_another_render_are_not_taken(tmp_path: Path) -> None:
    SnapshotStore(tmp_path, "run", budget_nbytes=BUDGET).save(2, state(1))
    other = SnapshotStore(tmp_path, "other", budget_nbytes=BUDGET)
    assert other.chunks == []
    assert "belongs to another render" in other.problems[0]


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda s: st.lists(s) | st.dictionaries(st.text(max_size=5), s),
    )
)
def test_anything_may_stand_in_a_manifest(tmp_path_factory, facts: object) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "000003.json").write_text(json.dumps(facts))
    assert SnapshotStore(folder, "run", budget_nbytes=BUDGET).chunks == []


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "000001-0.safetensors/..", "x"]
)
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    facts = {
        "version": 1,
        "run": "run",
        "chunk": 3,
        "scalars": {},
        "where": {"page.a": name},
        "files": {name: {"sha256": "0" * 64, "nbytes": 1}},
    }
    (tmp_path / "000003.json").write_text(json.dumps(with_checksum(facts)))
    store = SnapshotStore(tmp_path, "run", budget_nbytes=BUDGET)
    assert store.chunks == []
    assert "names a file that is not one of the folder" in store.problems[0]


def test_tensors_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {
        "a": torch.arange(6).reshape(2, 3),
        "b": torch.randn(5, 1, 2).to(torch.bfloat16),
        "c": torch.randn(4, 4).T,
        "empty": torch.zeros(0, 3),
    }
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"".join(bytes(block) for block in tensor_blocks(tensors)))
    loaded = load_file(file)
    assert loaded.keys() == tensors.keys()
    assert all(loaded[name].equal(tensor) for name, tensor in tensors.items())
