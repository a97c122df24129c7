"""What a CUDA graph asks of a chunk: nothing is read or sent within it, and nothing moves.

Kernels are interpreted. The rest is a film of `tests/kernels/test_chunk_graph.py`, with cfgen's own
`capture_cuda` on a device that refuses what a GPU refuses while it captures.
"""

from __future__ import annotations

import pytest
import torch

from cfgen.errors import BackendUnavailable
from cfgen.memory.page_pool import Storage
from cfgen.memory.paged import PagedMemory
from cfgen.ops import select
from cfgen.rollout.cuda_graph import ChunkGraph
from tests.kernels.test_chunk_graph import CHUNKS, SMALL, TABLES, TAUS, TORCH, rolled
from tests.simulated.gpu import SimulatedGpu, told
from tests.strategies import random_generator

pytest.importorskip("triton", reason="Triton is available on Linux only")


@pytest.fixture
def kernels(gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch) -> select.Ops:
    gpu.interpret(monkeypatch)
    return select._triton()


def films(gpu: SimulatedGpu, ops: select.Ops, name: str, **film):
    """A film on the CPU and one on the device, one chunk of which is captured."""
    film["tau"] = TAUS.get(name, 0.9)
    film["admission_layers"] = (0, 1) if name == "together" else ()
    plain = rolled(random_generator(SMALL), TABLES[name], TORCH, **film)
    generator = random_generator(SMALL).to("cuda")
    gpu.counted()
    return plain, rolled(generator, TABLES[name], ops, graph=ChunkGraph, **film)


@pytest.mark.parametrize(
    ("name", "storage", "guided", "transition"),
    [
        ("release", "int8", False, "continue"),
        ("slow_fast", "auto", True, "continue"),
        ("window", "fp8", False, "cut"),
        ("relax", "auto", False, "recache"),
    ],
)
def test_a_chunk_is_captured_and_replayed_for_the_others(
    name: str,
    storage: Storage,
    guided: bool,
    transition: str,
    gpu: SimulatedGpu,
    kernels: select.Ops,
) -> None:
    film = {"storage": storage, "guided": guided, "transition": transition, "prompts": "two"}
    plain, graph = films(gpu, kernels, name, **film)
    assert graph[1:] == plain[1:]
    error = (graph[0].cpu() - plain[0]).norm() / plain[0].norm()
    assert float(error) < (1e-4 if storage == "auto" else 5e-2)
    waits = told(gpu.counted())
    assert "1 wait cfgen/rollout/cuda_graph.py capture_cuda" in waits, "captured once"
    between = waits.count("cfgen/memory/paged.py") + waits.count("cfgen/memory/choosing.py")
    assert between == (0 if name == "window" else 1), "at most once, after a chunk or before"
    assert "KVCache" not in waits
    assert "visible_slots" not in waits


def test_pages_in_main_memory_make_no_chunk_wait(gpu: SimulatedGpu, kernels: select.Ops) -> None:
    film = {"storage": "fp8", "tau": 0.9}
    plain = rolled(random_generator(SMALL), TABLES["release"], TORCH, **film)
    generator = random_generator(SMALL).to("cuda")
    gpu.counted()
    made = rolled(generator, TABLES["release"], kernels, place=torch.device("cpu"), **film)
    assert made[1:] == plain[1:]
    assert float((made[0].cpu() - plain[0]).norm() / plain[0].norm()) < 5e-2
    waits = told(gpu.counted())
    assert f"{CHUNKS} read cfgen/memory/paged.py PagedMemory.commit" in waits, "once a chunk"
    assert waits.count("cfgen/memory") == 1


def test_a_chunk_that_waits_is_refused_with_what_to_do(gpu: SimulatedGpu) -> None:
    with pytest.raises(BackendUnavailable, match="cannot be one CUDA graph: .*not permitted"):
        films(gpu, TORCH, "release")


def test_what_moves_from_chunk_to_chunk_is_seen(
    gpu: SimulatedGpu, kernels: select.Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deliberate fault: numbers of pages in a fresh tensor each time."""

    def moving(memory, name, numbers, place=None):
        return torch.tensor(numbers, dtype=torch.int32, device=place or memory.pool.device)

    monkeypatch.setattr(PagedMemory, "_on_device", moving)
    plain, graph = films(gpu, kernels, "window")
    assert float((graph[0].cpu() - plain[0]).norm() / plain[0].norm()) > 1e-3
