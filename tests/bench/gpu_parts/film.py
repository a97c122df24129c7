"""Slice s2: chunk after chunk, decoded to frames on the host; pace and memory at both ends.

Decoding runs beside the next chunk, on a stream of its own, but for `plain`, which waits.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from gpu_parts import chunks, decoders, dit
from gpu_parts.case import Bench
from gpu_parts.chunks import Maker
from gpu_parts.store import Record
from gpu_parts.timing import captured, spread

SLICE = "s2"
AHEAD = 2
"""Chunks that may be under way at once."""
DEFAULT_S = 0.8
"""Seconds of a chunk with its decoding, where slice s1 has not told better."""
BEFORE_S = 60
"""Seconds to prepare."""
GRAPHED = ("strong",)
"""Ways that are made a CUDA graph here; ours makes its own."""


@dataclass(frozen=True)
class Film:
    """One way of denoising with one decoder.

    Attributes:
        memory: Latent frames attended to.
        chunks: How many are made.
        chunk_s: Seconds that one is expected to take.
    """

    way: str
    decoder: str
    make: Maker
    memory: int
    chunks: int
    chunk_s: float
    slice: str = SLICE

    @property
    def name(self) -> str:
        """Variant and decoder."""
        return f"{self.way} + {self.decoder}"

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.slice}/{self.name}"

    @property
    def seconds(self) -> float:
        """How long it is expected to take."""
        return BEFORE_S + self.chunks * self.chunk_s

    def run(self, bench: Bench, code: str) -> Record:
        """Make the film and store how it went."""
        entry: Record = {"name": "film"}
        began = time.monotonic()

        def measure(seed: int) -> Record:
            work = functools.partial(self._made, bench, seed)
            bench.guarded(self, self.way, code, entry, work)
            return {"memory": self.memory, "chunks": self.chunks, "contestants": [entry]}

        record = bench.record(self, code, measure)
        if "ms" in entry and (found := bench.meter.between(began, time.monotonic())):
            frames = 4 * bench.sizes.chunk
            entry["joules_per_frame"] = found["power_w"] * entry["ms"] / 1000 / frames
            bench.store.save()
        return record

    def _made(self, bench: Bench, seed: int) -> Record:
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        scene = dit.make(bench.sizes, self.memory, bench.generator(seed), bench.dtype)
        decoder = decoders.build(self.decoder, bench.sizes, bench.device, bench.dtype)
        chunk = self.make(scene)
        for _ in range(2):
            chunk()
        if self.way in GRAPHED and bench.device.type == "cuda":
            chunk = captured(chunk)
        marks = roll(bench, chunk, decoder, self.chunks, beside=self.way != "plain")
        return pace(marks, frames=4 * bench.sizes.chunk)


def cases(bench: Bench) -> list[Film]:
    """Every way with every decoder, at the longest memory."""
    s, known = bench.sizes, bench.store.cases
    memory = s.memories[-1]
    entries = known.get(f"{chunks.SLICE}/{memory} latent frames", {}).get("contestants", [])
    told = {each["name"]: each["ms"] / 1000 + 0.25 for each in entries if "ms" in each}
    return [
        Film(way, decoder, make, memory, s.chunks, told.get(way, DEFAULT_S))
        for decoder in decoders.DECODERS
        for way, make in chunks.ways(bench).items()
    ]


@dataclass(frozen=True)
class Mark:
    """When a chunk's frames were on the host, and the memory held then, in bytes."""

    ms: float
    device: int
    host: int


def roll(
    bench: Bench, chunk: Callable[[], Tensor], decoder: Any, count: int, *, beside: bool
) -> list[Mark]:
    """Make and decode so many chunks; what was seen as each of them was done."""
    cuda = bench.device.type == "cuda"
    stream = torch.cuda.Stream() if cuda and beside else None
    state, dtype = decoder.start(), next(decoder.parameters()).dtype
    done: list[Any] = []
    marks: list[Mark] = []
    host: Tensor | None = None
    first = time.perf_counter()
    for index in range(count):
        latents = chunk().clone()
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
            latents.record_stream(stream)
        with torch.cuda.stream(stream) if stream is not None else nullcontext(), torch.no_grad():
            frames = decoder.decode(latents.to(dtype), state)
            pixels = frames.clamp(0, 1).mul(255).round().to(torch.uint8)
            if host is None or host.shape != pixels.shape:
                host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=cuda)
            host.copy_(pixels, non_blocking=True)
            done.append(_event(cuda))
        if cuda and index >= AHEAD:
            done[index - AHEAD].synchronize()
        marks.append(Mark(time.perf_counter() - first, *_memory(cuda)))
    if not cuda:
        return [Mark(mark.ms * 1000, mark.device, mark.host) for mark in marks]
    torch.cuda.synchronize()
    return [
        Mark(done[0].elapsed_time(event), mark.device, mark.host)
        for event, mark in zip(done, marks, strict=True)
    ]


def _event(cuda: bool) -> Any:
    if not cuda:
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _memory(cuda: bool) -> tuple[int, int]:
    return torch.cuda.memory_allocated() if cuda else 0, psutil.Process().memory_info().rss


def pace(marks: list[Mark], *, frames: int) -> Record:
    """Milliseconds a chunk, frames a second, and how pace and memory changed from early to late.

    Early is the second tenth of the chunks, late the last.
    """
    ends = [mark.ms for mark in marks]
    each = [late - early for early, late in zip(ends, ends[1:], strict=False)]
    tenth = max(1, len(each) // 10)
    early, late = each[tenth : 2 * tenth], each[-tenth:]
    ms = (ends[-1] - ends[tenth]) / (len(ends) - 1 - tenth)
    return {
        "ms": ms,
        "spread": spread([statistics.median(part) for part in (early, each, late)]),
        "fps": 1000 * frames / ms,
        "slower": statistics.median(late) / statistics.median(early),
        "grown_mb": (marks[-1].device - marks[tenth].device) / 1e6,
        "host_grown_mb": (marks[-1].host - marks[tenth].host) / 1e6,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0,
    }
