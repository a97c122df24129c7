"""One deliberate fault of each kind in cfgen's own code, and what of the simulated GPU sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfgen.memory import pre_rotated
from cfgen.memory.page_pool import KVCache
from cfgen.model.generator import Generator, Level
from cfgen.pipeline.offload_plan import MemoryEstimate
from cfgen.renderer import source
from cfgen.renderer.source import PendingFrames
from tests.render.film import MEMORIES
from tests.simulated.films import film, source_of
from tests.simulated.gpu import CONTEXT, SimulatedGpu, Stream, told

RELEASE_OFFLOADED = [*MEMORIES["release"], "placement.offload=all"]


@dataclass(frozen=True)
class Fault:
    """A fault, and what is then seen of a film.

    Attributes:
        make: Puts it into cfgen.
        seen: The error of a film with it, or part of what its last chunk waits for.
        settings: Of the film.
    """

    make: Callable[[pytest.MonkeyPatch], None]
    seen: str
    settings: tuple[str, ...] = tuple(MEMORIES["window-relative"])


def left_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    right = Generator.level

    def level(generator: Generator, sigma: float) -> Level:
        made = right(generator, sigma)
        return Level(made.time.cpu(), made.modulation.cpu())

    patch.setattr(Generator, "level", level)


def biases_sent_in_every_chunk(patch: pytest.MonkeyPatch) -> None:
    def bias_of(shown, tokens: Sequence[int], like: Tensor) -> Tensor:
        biases = like.new_tensor([[each.bias for each in shown]])
        return biases.repeat_interleave(torch.tensor(tokens, device=like.device), 1)

    patch.setattr(pre_rotated, "bias_of", bias_of)


def the_host_asks_whether_a_page_is_stored(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.write

    def write(pool, layer, into, k, v, *, only_if=None, **which) -> None:
        if only_if is None or int(only_if):
            right(pool, layer, into, k, v, **which)

    patch.setattr(KVCache, "write", write)


def numbers_of_pages_on_the_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KVCache, "numbers_device", KVCache.device)


def the_decoder_does_not_wait_for_the_chunk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "wait_stream", lambda stream, other: None)
    patch.setattr(source, "_finite", lambda chunk: chunk)  # where the host waits for both


def too_small_an_estimate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryEstimate, "vram", lambda sizes, level: CONTEXT + 1000)


FAULTS = {
    "a tensor is left on the CPU": Fault(left_on_the_cpu, "at least two devices, cuda:0 and cpu"),
    "numbers are sent in a chunk": Fault(biases_sent_in_every_chunk, "send tests/simulated"),
    "a read-back a layer and pass": Fault(
        the_host_asks_whether_a_page_is_stored,
        "6 read tests/simulated/test_faults.py",
        tuple(RELEASE_OFFLOADED),
    ),
    "page numbers are read back": Fault(
        numbers_of_pages_on_the_device,
        "read cfgen/memory/page_pool.py KVCache.write",
        tuple(RELEASE_OFFLOADED),
    ),
    "a stream does not wait": Fault(the_decoder_does_not_wait_for_the_chunk, "race: "),
    "memory is estimated too small": Fault(too_small_an_estimate, "CUDA out of memory"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(
    name: str, tiny_model: Path, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    settings = [*fault.settings, "backend=torch"]
    assert fault.seen not in told(film(source_of(tiny_model, settings), gpu).waits[-1])
    fault.make(monkeypatch)
    if name == "memory is estimated too small":
        gpu.vram = CONTEXT + gpu.allocated + 1000
    if "read" in fault.seen or "send" in fault.seen:
        made = film(source_of(tiny_model, settings), gpu)
        assert fault.seen in told(made.waits[-1])
    else:
        with pytest.raises(RuntimeError, match=fault.seen):
            film(source_of(tiny_model, settings), gpu)


def test_frames_that_are_not_waited_for_are_not_there(
    tiny_model: Path, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*MEMORIES["window-relative"], "backend=torch"]
    right = film(source_of(tiny_model, settings), gpu)
    monkeypatch.setattr(PendingFrames, "wait", lambda pending: pending.frames.numpy().copy())
    wrong = film(source_of(tiny_model, settings), gpu)
    assert any((a != b).any() for a, b in zip(right.frames, wrong.frames, strict=True))
    torch.cuda.synchronize()


def test_a_chunk_that_is_given_back_while_it_is_decoded_is_seen(
    tiny_model: Path, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = source_of(tiny_model, [*MEMORIES["window-relative"], "backend=torch"])
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: None)
    making, state = made.making(), made.vae.start()
    making.start(0)
    pending = made.decoding(making.finish(), state)
    made.memory.clear()
    del making
    assert gpu.hazards()
    pending.wait()


def test_pages_that_are_on_their_way_are_waited_for_before_they_are_kept(
    tiny_model: Path, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = KVCache(
        1,
        2,
        (1, 2, 1, 4),
        dtype=torch.float32,
        device=torch.device("cuda"),
        place=torch.device("cpu"),
    )
    page, k = pool.allocate(0), torch.ones(1, 2, 1, 4, device="cuda")
    pool.write(0, torch.tensor([page]), k, k)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "synchronize", lambda device: None)
        assert pool.state()[1]["0.0.k"].isnan().all()
    assert (pool.state()[1]["0.0.k"] == 1).all()
