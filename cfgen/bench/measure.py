"""How fast a preset renders on this machine: the same chunks by every backend and KV cache.

A chunk is timed as it is late in a long clip, with its memory full; of random keys, since those
take as long. The ways take turns, so that whatever else the machine does slows all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfgen.bench.clock import allocated_nbytes, distance, now
from cfgen.bench.variants import BenchSetup, Variant, fill, least_s
from cfgen.errors import BackendUnavailable, BudgetError, NotFinite
from cfgen.model.vae import State
from cfgen.out_of_memory import is_out_of_memory
from cfgen.pipeline.limits import free_memory
from cfgen.rollout.loop import Chunk

COMPUTED = {torch.float32: 1e-3, torch.bfloat16: 1e-2}
"""How far a chunk may be from the torch backend's, as a share of its norm, by what computes it; so
many times as far as guidance pushes.

In bfloat16 the reference backend's is 1.2e-2 away for mini (guidance 3) and 2e-3 for random weights
(none), in float32 1.5e-6 and 3e-7. With every page one place too far in time it is 4.8e-2 and
1.6e-2, with one page lost 3.6e-2 and 3.1e-2.
"""

KEPT = {torch.bfloat16: 2.5e-2, torch.int8: 5e-2, torch.float8_e4m3fn: 5e-2}
"""And how far at least by what pages are kept in, where that is not what computes."""

SLOW_S = 10.0
"""Chunks that take longer are told of one by one."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A way that cannot go here, and why."""

    way: Variant
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What was found of one way.

    Attributes:
        way: The way.
        keys: What pages keep keys in.
        values: What they keep values in.
        seconds: Of each chunk, denoised and committed.
        beside_s: Of each while another was decoded; none where one waits for the other.
        cache_nbytes: The KV cache, and what the backend holds of it besides.
        gpu_nbytes: Most memory of a GPU that this way alone takes, with the weights; None on a CPU.
        error: Distance of a chunk from that of the way it is compared with, as a share of the norm;
            None for that way itself, or without one.
        tolerance: The most that may be.
    """

    way: Variant
    keys: str
    values: str
    seconds: tuple[float, ...]
    beside_s: tuple[float, ...]
    cache_nbytes: int
    gpu_nbytes: int | None
    error: float | None
    tolerance: float

    @property
    def chunk_s(self) -> float:
        """Median."""
        return statistics.median(self.seconds)

    @property
    def agrees(self) -> bool:
        """Whether its chunk is that of the way it is compared with."""
        return self.error is not None and self.error <= self.tolerance


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was measured.

    Attributes:
        frames: Frames of a chunk.
        slots: Latent frames in memory, the chunk's own included.
        decode_s: Seconds to decode a chunk, median.
        base: What the others are compared with: the first way by the torch backend, if there is.
        ways: In the order asked for.
        refused: What cannot go here.
        auto: The backend that `auto` takes.
    """

    frames: int
    slots: int
    decode_s: float
    base: Figures | None
    ways: tuple[Figures, ...]
    refused: tuple[Refused, ...]
    auto: str

    def ratio(self, figures: Figures) -> float | None:
        """How many times as fast as the base a way is; None if they were not seen to agree."""
        if self.base is None or not (figures is self.base or figures.agrees):
            return None
        return self.base.chunk_s / figures.chunk_s

    def frames_per_s(self, figures: Figures, *, decoded: bool = False) -> float:
        """Frames a second, their decoding left out unless it is asked for."""
        if not decoded:
            return self.frames / figures.chunk_s
        if figures.beside_s:
            return self.frames / statistics.median(figures.beside_s)
        return self.frames / (figures.chunk_s + self.decode_s)


class VariantRunner:
    """One way, its memory full, to make chunk after chunk.

    Args:
        setting: What all ways have in common.
        way: The way.

    Attributes:
        seconds: Of each chunk so far.
        beside_s: Of each that was made while another was decoded.
        cache_nbytes: The KV cache, and what the backend holds of it besides.
        gpu_nbytes: Most memory of a GPU so far, with the weights; None on a CPU.
        slots: Latent frames in memory.

    Raises:
        BackendUnavailable: It cannot run here.
        BudgetError: It does not fit beside the others.
    """

    def __init__(self, setting: BenchSetup, way: Variant) -> None:
        self.way, self._ops = way, setting.ops(way)
        self._device = setting.generator.device
        self.seconds: list[float] = []
        self.beside_s: list[float] = []
        self.gpu_nbytes: int | None = None
        pool, rotated = setting.pool_nbytes(way), setting.rotated_nbytes(way, self._ops)
        self.cache_nbytes = pool + rotated
        needed = rotated if setting.offload == "all" else self.cache_nbytes
        if needed > (free := _free(self._device)):
            need, have = (f"{nbytes / 1e9:.1f} GB" for nbytes in (needed, free))
            raise BudgetError(f"its KV cache takes {need}, and beside the others {have} are free")
        before = allocated_nbytes(self._device)
        self.source = setting.source(way, self._ops)
        self._next = fill(self.source)
        self.slots = round(self.source.memory.figures()["slots"])
        self._making = self.source.making()
        self._alone = setting.weights_nbytes + allocated_nbytes(self._device) - before

    def make(self) -> tuple[Chunk, float]:
        """The next chunk, and how long it took in seconds."""
        return self._timed(self._made)

    def make_beside(self, chunk: Chunk, state: State) -> float:
        """How long the next chunk takes, in seconds, if another is decoded at the same time."""

        def both() -> Chunk:
            decoding = self.source.decoding(chunk, state)
            made = self._made()
            decoding.wait()
            return made

        return self._timed(both)[1]

    def _made(self) -> Chunk:
        self._making.start(self._next)
        self._next += 1
        return self._making.finish()

    def _timed(self, work: Callable[[], Chunk]) -> tuple[Chunk, float]:
        """What work gives, and its seconds; its memory too, where it is a GPU's."""
        self.source.generator.compute_with(self._ops)
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
            before = allocated_nbytes(self._device)
        began = now(self._device)
        chunk = work()
        took = now(self._device) - began
        if on_gpu:
            more = torch.cuda.max_memory_allocated(self._device) - before
            self.gpu_nbytes = max(self._alone + more, self.gpu_nbytes or 0)
        return chunk, took


class Bench:
    """Measures ways to make a chunk.

    Args:
        setting: What they have in common.
        ways: The ways. The backend may be `auto`; two that come to the same are one.
    """

    def __init__(self, setting: BenchSetup, ways: Sequence[Variant]) -> None:
        self._setting = setting
        resolved = [way if way.backend != "auto" else self._auto(way) for way in ways]
        unlike: dict[object, Variant] = {}
        for way in resolved:
            unlike.setdefault((way.backend, setting.page_dtypes(way)), way)
        self._ways = list(unlike.values())
        self._ready: list[VariantRunner] = []
        self._refused: list[Refused] = []
        self._latents: dict[Variant, Tensor] = {}
        self._decode_s: list[float] = []
        self._state = setting.models.decoder.start()

    def prepare(self) -> Iterator[str]:
        """Fill memories, warm up, and make the chunk that is compared; what was done, in words.

        Raises:
            BackendUnavailable: No way can go here.
        """
        if (least := least_s(self._setting)) > SLOW_S:
            made = len(self._ways) * (self._warm_up + 1)
            yield (
                f"a chunk takes {_words(least)} or more here, and {made} are made at least; fewer "
                "--kv-cache or a smaller --size make it shorter"
            )
        for way in self._ways:
            try:
                contestant, chunk, took = self._warm(way)
            except (BackendUnavailable, BudgetError, NotFinite) as error:
                self._refused.append(Refused(way, error.message))
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                self._refused.append(Refused(way, "memory ran out"))
            else:
                self._ready.append(contestant)
                self._latents[way] = chunk.latents
                yield f"{way}: warm, a chunk took {_words(took)}"
        if not self._ready:
            reasons = dict.fromkeys(refused.reason for refused in self._refused)
            raise BackendUnavailable(
                f"nothing can be measured here: {'; '.join(reasons)}",
                "leave --backend and --kv-cache out, or choose others",
            )
        for _ in range(2):
            self._decode(chunk)

    def run(self, seconds: float) -> Iterator[str]:
        """Make chunks by turns for so long, one each at least; what took long, in words."""
        end = time.monotonic() + seconds
        self._decode_s.clear()
        while True:
            for contestant in self._ready:
                chunk, took = contestant.make()
                contestant.seconds.append(took)
                if contestant.source.beside:
                    contestant.beside_s.append(contestant.make_beside(chunk, self._state))
                if took > SLOW_S:
                    yield f"{contestant.way}: a chunk took {_words(took)}"
            self._decode(chunk)
            self._ready.reverse()  # whoever follows a decoder should not always be the same
            if time.monotonic() > end:
                return

    def report(self) -> Report:
        """What `run` found."""
        ready = sorted(self._ready, key=lambda contestant: self._ways.index(contestant.way))
        base = next((each.way for each in ready if each.way.backend == "torch"), None)
        ways = tuple(self._figures(contestant, base) for contestant in ready)
        return Report(
            frames=self._setting.frames,
            slots=ready[0].slots,
            decode_s=statistics.median(self._decode_s),
            base=next((figures for figures in ways if figures.way == base), None),
            ways=ways,
            refused=tuple(self._refused),
            auto=self._auto(Variant("auto", self._setting.config.memory.kv_cache)).backend,
        )

    @property
    def _warm_up(self) -> int:
        """Chunks before those that are timed; on a GPU one compiles and the next is captured."""
        return 2 if self._setting.generator.device.type == "cuda" else 1

    def _auto(self, way: Variant) -> Variant:
        """The same KV cache with the backend that `auto` takes for it."""
        return Variant(self._setting.ops(Variant("auto", way.storage)).name, way.storage)

    def _warm(self, way: Variant) -> tuple[VariantRunner, Chunk, float]:
        """A contestant, with the last chunk of its warm-up."""
        contestant = VariantRunner(self._setting, way)
        for _ in range(self._warm_up):
            chunk, took = contestant.make()
        return contestant, chunk, took

    def _decode(self, chunk: Chunk) -> None:
        """Decode a chunk, wherever it belongs in the clip, and note how long that took."""
        source, device = self._ready[0].source, self._setting.generator.device
        began = now(device)
        source.decode(chunk, self._state)
        self._decode_s.append(now(device) - began)

    def _figures(self, contestant: VariantRunner, base: Variant | None) -> Figures:
        way, setting = contestant.way, self._setting
        keys, values = (str(kind).removeprefix("torch.") for kind in setting.page_dtypes(way))
        compared = base is not None and way != base
        return Figures(
            way=way,
            keys=keys,
            values=values,
            seconds=tuple(contestant.seconds),
            beside_s=tuple(contestant.beside_s),
            cache_nbytes=contestant.cache_nbytes,
            gpu_nbytes=contestant.gpu_nbytes,
            error=distance(self._latents[way], self._latents[base]) if base and compared else None,
            tolerance=max(tolerance(setting, each) for each in (way, base or way)),
        )


def tolerance(setting: BenchSetup, way: Variant) -> float:
    """How far a chunk made one way may be from one that is exact."""
    computed = COMPUTED[setting.dtype] * setting.config.schedule.guidance
    other = {kind for kind in setting.page_dtypes(way) if kind != setting.dtype}
    return max([computed, *(KEPT[kind] for kind in other)])


def _words(seconds: float) -> str:
    """Return ``0.42 s``, ``31 s`` or ``5 minutes``."""
    if seconds < SLOW_S:
        return f"{seconds:.2f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _free(device: torch.device) -> int:
    """Bytes of memory that a device has left."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory()
