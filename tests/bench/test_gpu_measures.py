"""What the GPU benchmark measures, how it times and what it tells of it. No GPU needed."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cfgen.ops import reference

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # as if gpu.py were the script that runs

from gpu_parts import attention, attention_data, chunks, dit, film, fused, report, timing  # noqa: E402
from gpu_parts.attention_data import Size  # noqa: E402
from gpu_parts.dit_plain import PlainChunk, exact  # noqa: E402
from gpu_parts.dit_strong import StrongChunk  # noqa: E402
from gpu_parts.meter import Meter, parse  # noqa: E402
from gpu_parts.sizes import REAL, TINY  # noqa: E402


def test_the_real_sizes_are_those_of_the_protocol() -> None:
    sizes = [size for _, size in attention.estimate_memory(REAL)]
    assert {size.queries for size in sizes} >= {4680, 9360}
    assert {size.tokens for size in sizes} == {1560, 3600}
    usual = [s for s in sizes if s.queries == 4680]
    assert [size.context + size.frames for size in usual] == [6, 10, 12, 15, 21, 24]
    at_21 = next(size for size in usual if size.context + size.frames == 21)
    assert at_21.flops == pytest.approx(942.0e9, rel=1e-3)
    assert dit.flops(REAL, 21) == pytest.approx(202e12, rel=1e-3)


@pytest.mark.parametrize("storage", ["float", "int8", "int8+fp8"])
def test_peers_and_truth_agree_with_the_reference(storage: Any) -> None:
    size = Size(heads=2, head_dim=32, frames=2, tokens=7, context=3, batch=2)
    inputs = attention_data.make(size, torch.Generator().manual_seed(1), torch.float32, first=-3)
    wide = inputs.slots._replace(turns=inputs.slots.turns.double())
    q, k, v = (x.double() for x in (inputs.q, inputs.k, inputs.v))
    pages = inputs.stored(storage)
    true = reference.attend_pages(q, k, v, pages, wide)
    if storage == "float":
        own = attention_data.truth(inputs)
        torch.testing.assert_close(own, true[:, inputs.sample], rtol=1e-5, atol=1e-6)
        keys, values = inputs.ready
    else:
        keys, values = attention_data.gathered_8bit(
            pages, inputs.order, inputs.k, inputs.v, inputs.turns
        )
    attend = attention.fused(torch.nn.attention.SDPBackend.FLASH_ATTENTION, torch.device("cpu"))
    found = attend(inputs.q.transpose(1, 2), keys, values).transpose(1, 2)
    torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-5)


def test_plain_ops_agree_with_the_reference() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = fused.make(TINY, TINY.frame, 2, generator, torch.float32)
    for name, work in fused.works(TINY).items():
        true = fused.truth(work, fused.doubled(inputs))
        work.reset(inputs)
        output = work.call(work.plain, inputs)
        assert fused.worst(work.look(inputs, output), true) <= work.tolerance, name


def test_strong_and_plain_chunks_agree_chunk_after_chunk() -> None:
    deep = replace(TINY, layers=2)
    scene = dit.make(deep, 9, torch.Generator().manual_seed(1), torch.float32)
    plain = PlainChunk(scene, torch.float32, exact, reads=True)
    strong = StrongChunk(scene, exact)
    first = None
    for _ in range(4):
        wanted = plain()
        torch.testing.assert_close(strong(), wanted, rtol=1e-4, atol=1e-4)
        assert first is None or not torch.allclose(first, wanted, rtol=1e-3, atol=1e-3)
        first = wanted


def test_the_memory_matters_to_a_chunk() -> None:
    scene = dit.make(TINY, 6, torch.Generator().manual_seed(1), torch.float32)
    other = replace(scene, context_v=scene.context_v.flip(2))
    found = [PlainChunk(s, torch.float32, exact, reads=False).denoised() for s in (scene, other)]
    assert not torch.allclose(*found, rtol=1e-2, atol=1e-2)


def test_kernels_are_told_apart_by_their_names() -> None:
    times = [("_attend", 1000.0), ("cudnn_generated_sdpa", 500.0), ("nvjet_tst_128", 2000.0)]
    found = chunks.by_kind([*times, ("triton_poi_fused_add", 10.0)])
    assert found == {"attention": 1.5, "products": 2.0, "other": 0.01}


def test_a_film_that_slows_down_and_grows_is_noticed() -> None:
    at, marks = 0.0, []
    for index in range(101):
        at += 10.0 if index < 80 else 20.0
        marks.append(film.Mark(at, 10**6 * index, 0))
    told = film.pace(marks, frames=12)
    assert told["slower"] == 2.0
    assert told["grown_mb"] == 90.0


# How it is timed


@dataclass
class FakeCuda:
    """Stands for torch.cuda: a clock that calls advance, and launches that cost besides."""

    now: float = 0.0
    replays: int = 0
    refuses: bool = False

    def __getattr__(self, name: str) -> Any:
        if name in ("synchronize", "empty_cache"):
            return lambda: None
        raise AttributeError(name)

    def Stream(self) -> Any:  # noqa: N802
        return SimpleNamespace(wait_stream=lambda _: None)

    current_stream = Stream

    def stream(self, _: object) -> Any:
        return Quiet()

    def Event(self, *, enable_timing: bool) -> Any:  # noqa: N802
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda other: other.at - event.at
        return event

    def CUDAGraph(self) -> Any:  # noqa: N802
        graph = SimpleNamespace(ms=0.0)

        def replay() -> None:
            self.now += graph.ms
            self.replays += 1

        graph.replay = replay
        return graph

    def graph(self, graph: Any, *, capture_error_mode: str) -> Any:
        if self.refuses:
            raise RuntimeError("not permitted when stream is capturing")
        return Captures(self, graph)


class Quiet:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass
class Captures:
    cuda: FakeCuda
    graph: Any
    began: float = 0.0

    def __enter__(self) -> None:
        self.began = self.cuda.now

    def __exit__(self, *_: object) -> None:
        self.graph.ms = self.cuda.now - self.began


@pytest.mark.parametrize(("call_ms", "refuses"), [(0.01, False), (2.0, False), (2.0, True)])
def test_a_timer_tells_milliseconds_of_one_call(
    call_ms: float, refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(refuses=refuses)
    monkeypatch.setattr(timing.torch, "cuda", cuda)

    def call() -> None:
        cuda.now += call_ms

    timer = timing.Timer([call] * 3, torch.device("cuda"), graph=True)
    assert timer.round(0.05) == pytest.approx(call_ms)
    assert timer.graphed is not refuses
    assert bool(timer.note) is refuses
    if not refuses:
        one = 3 * call_ms * timer._rounds
        assert one >= timing.GRAPH_MS
        assert cuda.replays >= timing.REPLAYS[0]


# What is told


def content(kernels: str = "k", **check: Any) -> dict[str, Any]:
    entries = [
        {"name": "cudnn+g", "ms": 3.0, "tera_per_s": 300.0, "percent": 38.0},
        {"name": "ours", "ms": 2.0, "tera_per_s": 450.0, "percent": 57.0},
        *({"name": f"a longer name {i}", "refused": "reason " * 30} for i in range(20)),
    ]
    case = {"slice": "k1", "name": "a case of a long name " * 3, "code": "k", "run": 1}
    case |= {"rehearsal": False, "baselines": ["cudnn+g"], "contestants": entries}
    red = {"slice": "correctness", "name": "attend", "code": kernels, "run": 1, "tolerance": 1e-3}
    red |= {"rehearsal": False, "contestants": [{"name": "ours", "error": 1e-4, **check}]}
    runs = [{"number": 1, "kernels": "k", "device": "card"}]
    cases = {"k1/a": case, "correctness/attend": red}
    return {"runs": runs, "cases": cases, "checks": ["attend"], "broken": {}}


def test_speed_ups_are_told_if_everything_was_right() -> None:
    told = report.report(content(right=True), ["correctness", "k1"])
    assert "times as fast as cudnn+g" in told
    assert "1.50x" in told
    assert max(map(len, told.splitlines())) < 100


@pytest.mark.parametrize(
    ("results", "why"),
    [
        (content(right=False, wrong="error 1 > 0.1"), "a check is red: attend"),
        (content(right=True, kernels="older"), "is not checked in full: attend"),
        (content(right=True) | {"checks": []}, "correctness was not checked"),
        (content(right=True) | {"checks": ["attend", "write"]}, "not checked in full: write"),
    ],
)
def test_no_speed_up_is_told_otherwise(results: dict[str, Any], why: str) -> None:
    told = report.report(results, ["correctness", "k1"])
    assert "1.50x" not in told
    assert why in told
    assert "450 57%" in told


DMON = (
    "# gpu    pwr  gtemp  mtemp   mclk   pclk\n"
    "# Idx      W      C      C    MHz    MHz\n"
    "    0    {power}     40      -   3201   {clock}\n"
)


def test_clocks_and_power_are_read_by_the_names_of_their_columns() -> None:
    lines = DMON.format(power=650, clock=1755).splitlines()
    assert list(parse([*lines, "    0      -     40      -   3201   1755"])) == [(650.0, 1755.0)]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs terminals as Unix has them")
def test_readings_come_while_the_command_runs(tmp_path: Path) -> None:
    text = DMON.format(power=650, clock=1755)
    code = f"import sys, time; sys.stdout.write({text!r}); time.sleep(60)"
    began = time.monotonic()
    with Meter(log=tmp_path / "log", command=(sys.executable, "-c", code)) as meter:
        while not meter.readings and time.monotonic() < began + 20:
            time.sleep(0.01)
    told = meter.between(began, time.monotonic())
    assert told == {"power_w": 650.0, "clock_mhz": 1755.0, "lowest_clock_mhz": 1755.0}
    assert meter.between(0, began) == {}
    assert "1755" in (tmp_path / "log").read_text()
