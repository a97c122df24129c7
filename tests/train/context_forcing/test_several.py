"""Two processes on the CPU: they hold the same weights, those that one process comes to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cfgen.train.state import read_state
from tests.train.context_forcing import several
from tests.train.two_processes import run_in_two

pytestmark = pytest.mark.usefixtures("own_accelerator")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of every case."""
    folder = tmp_path_factory.mktemp("two")
    run_in_two("tests.train.context_forcing.several", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", several.CASES)
def test_two_processes_train_as_one_does_on_all_their_films(
    case: str, two: Path, tmp_path: Path
) -> None:
    """Bit by bit: one process makes the two micro-batches that two make one each of."""
    first, second = (
        load_file(two / case / f"process {rank}" / "all.safetensors") for rank in (0, 1)
    )
    assert all(torch.equal(w, second[name]) for name, w in first.items())
    several.trained(tmp_path, case, micro_batches=2)
    alone = load_file(tmp_path / "process 0" / "all.safetensors")
    assert alone.keys() == first.keys()
    (state,), (whole,) = (
        [read_state(path.parent) for path in folder.glob("*/state.json")]
        for folder in (two / case, tmp_path)
    )
    assert state is not None
    assert whole is not None
    assert state[2].keys() == whole[2].keys()
    for found, expected in ((first, alone), (state[2], whole[2])):
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=0, atol=0, msg=name, equal_nan=True
            )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["student", "teacher"])
def test_one_process_goes_on_with_what_two_shared_out(case: str, two: Path, tmp_path: Path) -> None:
    """As with a state that each of the two kept whole."""
    made = []
    for name in (case, f"{case} shared"):
        shutil.copytree(two / name, tmp_path / name)
        several.trained(tmp_path / name, name, micro_batches=2, steps=5)
        made.append(load_file(tmp_path / name / "process 0" / "all.safetensors"))
    before = load_file(two / case / "process 0" / "all.safetensors")
    assert any(not torch.equal(w, before[name]) for name, w in made[0].items())
    for name, weight in made[0].items():
        torch.testing.assert_close(made[1][name], weight, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_processes_that_share_out_keep_about_half_each(two: Path) -> None:
    """And each what the other does not: a state of parts has no tensor twice."""
    folder = next((two / "teacher shared").glob("*/state.json")).parent
    parts = [
        {
            name: t.numel()
            for path in folder.glob(f"state-*-share-{rank}-*")
            for name, t in load_file(path).items()
        }
        for rank in (0, 1)
    ]
    assert not parts[0].keys() & parts[1].keys()
    sizes = [sum(part.values()) for part in parts]
    assert max(sizes) < 0.6 * sum(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["cut", "cut shared"])
def test_two_processes_go_on_exactly_each_with_its_own_error_bank(two: Path, case: str) -> None:
    banks = []
    for rank in (0, 1):
        folder = two / case / f"process {rank}"
        whole, parts = (load_file(folder / f"{name}.safetensors") for name in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, rtol=0, atol=0, msg=name)
        banks.append({name: t for name, t in whole.items() if name.startswith("bank.")})
    first, second = banks
    assert first
    assert first.keys() != second.keys() or any(
        first[name].shape != second[name].shape or not torch.equal(first[name], second[name])
        for name in first
    )
