"""The simulated GPU is right where it answers, and refuses what a GPU would refuse."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.simulated import build
from tests.simulated.gpu import CONTEXT, DEFAULT, Event, SimulatedGpu, Stream, on_stream

CUDA = torch.device("cuda")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WORK: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(-1),
    "product": lambda x: x @ x.transpose(-1, -2),
    "in place": lambda x: x.clone().add_(1).mul_(x),
    "views": lambda x: x.transpose(1, 2)[:, 1:].unflatten(-1, (2, -1)).flatten(1),
    "written through a view": lambda x: x.clone().index_fill_(1, _two(x), 3.0),
    "complex": lambda x: torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (-1, 2))).conj() * 1j
    ),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "convolution": lambda x: F.conv1d(x, x[:, :, :3].contiguous()),
    "lists": lambda x: torch.cat([x, *x.split(1)]),
    "out": lambda x: torch.index_select(x, 1, _two(x), out=torch.empty(2, 2, 8, device=x.device)),
    "another type": lambda x: x.to(torch.bfloat16).float(),
}


def _pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _two(x: Tensor) -> Tensor:
    return torch.tensor([0, 2]).to(x.device)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", WORK)
def test_numbers_are_those_of_the_cpu(name: str, inference: bool, gpu: SimulatedGpu) -> None:
    x = noise(2, 4, 8)
    with torch.inference_mode(inference):
        right, out = WORK[name](x), WORK[name](x.to(CUDA))
    assert out.device == torch.device("cuda:0")
    assert out.is_inference() == right.is_inference()
    assert (out.stride(), out.dtype) == (right.stride(), right.dtype)
    torch.testing.assert_close(out.cpu(), right)


MIXED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": operator.add,
    "product": operator.matmul,
    "in place": lambda x, y: x.add_(y),
    "list": lambda x, y: torch.cat([x, y]),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_tensor_that_was_left_on_the_cpu_is_refused(name: str, gpu: SimulatedGpu) -> None:
    x, y = noise(3, 3).to(CUDA), noise(3, 3)
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
        MIXED[name](x, y)
    assert (x + torch.tensor(1.0)).is_cuda, "a number is taken along"


WAITS: dict[str, tuple[str, Callable[[Tensor], object]]] = {
    "item": ("read", lambda x: x.sum().item()),
    "bool": ("read", lambda x: bool(x[0, 0] > 0)),
    "tolist": ("read", lambda x: x.tolist()),
    "cpu": ("read", lambda x: x.cpu()),
    "nonzero": ("read", lambda x: x.nonzero()),
    "mask": ("read", lambda x: x[x > 0]),
    "put by a mask": ("read", lambda x: x.index_put_((x > 0,), torch.zeros(1, device=CUDA))),
    "equal": ("read", lambda x: torch.equal(x, x)),
    "unpinned": ("read", lambda x: torch.empty(3, 3).copy_(x, non_blocking=True)),
    "tensor": ("send", lambda x: torch.tensor([1, 2], device=x.device)),
    "index of numbers": ("send", lambda x: x[[0, 2]]),
    "to": ("send", lambda x: torch.zeros(3).to(x.device)),
    "much": ("send", lambda x: torch.zeros(2**15).to(x.device, non_blocking=True)),
    "synchronize": ("wait", lambda x: torch.cuda.synchronize()),
}
FREE: dict[str, Callable[[Tensor], object]] = {
    "sent": lambda x: torch.zeros(3).to(x.device, non_blocking=True),
    "made": lambda x: torch.zeros(3, device=x.device),
    "chosen": lambda x: torch.where(x > 0, x, 0),
    "put at indices": lambda x: x.index_put_((torch.arange(2, device=CUDA),), x[1:] * 2),
    "to pinned memory": lambda x: torch.empty(3, 3, pin_memory=True).copy_(x, non_blocking=True),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_makes_the_host_wait_is_noted_with_its_place(name: str, gpu: SimulatedGpu) -> None:
    kind, work = WAITS[name]
    x = noise(3, 3).to(CUDA)
    gpu.counted()
    work(x)
    found = gpu.counted()
    assert {wait.kind for wait in found} == {kind}
    assert all(wait.place.startswith("tests/simulated/test_device.py ") for wait in found)
    assert found.total() == 1


@pytest.mark.parametrize("name", FREE)
def test_what_lets_the_host_go_on_is_not(name: str, gpu: SimulatedGpu) -> None:
    x = noise(3, 3).to(CUDA)
    gpu.counted()
    FREE[name](x)
    assert not gpu.counted()


@pytest.mark.parametrize("name", [*WAITS, "sent"])
def test_a_graph_captures_nothing_that_waits(name: str, gpu: SimulatedGpu) -> None:
    work = FREE[name] if name in FREE else WAITS[name][1]
    x = noise(3, 3).to(CUDA)
    with (
        pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        work(x)


def test_a_graph_does_its_work_when_it_is_replayed_on_the_same_tensors(gpu: SimulatedGpu) -> None:
    graph, x = torch.cuda.CUDAGraph(), torch.ones(3, device=CUDA)
    with torch.cuda.graph(graph):
        out = x.add_(1) * 2
    assert x.tolist() == [1.0] * 3
    graph.replay()
    assert (x.tolist(), out.tolist()) == ([2.0] * 3, [4.0] * 3)
    graph.replay()
    assert (x.tolist(), out.tolist()) == ([3.0] * 3, [6.0] * 3)


def test_memory_is_counted_and_comes_to_an_end(gpu: SimulatedGpu) -> None:
    before = gpu.allocated
    x = torch.zeros(1000, device=CUDA)
    assert gpu.allocated - before == x.nbytes == 4000
    assert x[10:].view(-1, 2).untyped_storage().data_ptr() == x.data_ptr()
    assert gpu.allocated - before == 4000, "a view takes none"
    gpu.vram = CONTEXT + gpu.allocated + 3999
    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
        torch.zeros(1000, device=CUDA)
    del x
    assert torch.zeros(1000, device=CUDA).is_cuda


def test_what_goes_to_pinned_memory_is_there_when_its_event_is_waited_for(
    gpu: SimulatedGpu,
) -> None:
    x, host = torch.arange(3.0).to(CUDA), torch.zeros(3, pin_memory=True)
    host.copy_(x, non_blocking=True)
    event = Event()
    event.record()
    x.add_(1)
    assert host.isnan().all(), "it may arrive at any time"
    event.synchronize()
    assert host.tolist() == [0.0, 1.0, 2.0]


def test_a_stream_sees_in_pinned_memory_what_it_wrote_there(gpu: SimulatedGpu) -> None:
    x, host = torch.arange(3.0).to(CUDA), torch.zeros(3, pin_memory=True)
    host.copy_(x, non_blocking=True)
    assert host.to(CUDA, non_blocking=True).tolist() == [0.0, 1.0, 2.0]


def test_a_stream_that_does_not_wait_for_another_is_refused_what_that_writes(
    gpu: SimulatedGpu,
) -> None:
    stream = Stream()
    x = torch.zeros(3, device=CUDA)
    with on_stream(stream), pytest.raises(RuntimeError, match="race: .* reads what stream 0"):
        x + 1
    stream.wait_stream(DEFAULT)
    with on_stream(stream):
        y = x + 1
    with pytest.raises(RuntimeError, match="race: .* on stream 0 writes what"):
        x.add_(1)
    DEFAULT.wait_stream(stream)
    assert (x.add_(1) + y).tolist() == [2.0] * 3


def test_memory_that_another_stream_reads_must_not_be_given_back(gpu: SimulatedGpu) -> None:
    stream = Stream()
    for recorded in (False, True):
        x = torch.zeros(3, device=CUDA)
        stream.wait_stream(DEFAULT)
        with on_stream(stream):
            x + 1
        if recorded:
            x.record_stream(stream)
        del x
        assert len(gpu.hazards()) == (not recorded)


def test_without_a_compiler_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.NoCompilerError, match="no C\\+\\+ compiler was found"):
        build.built(tmp_path)
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(build.NoCompilerError, match="/bin/false does not take torch's headers"):
        build.built(tmp_path)
