"""A simulated CUDA device: what `torch.cuda` is on a machine without one, and what it saw.

`device.cpp` makes tensors of the device and does its work. Here are streams, events and graphs, and
the list of all that made the host wait, each with its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cfgen.ops import select
from tests.kernels.tape import Tape, on_tape

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
CONTEXT = 600_000_000
"""Bytes that a process takes on a GPU before anything is put there."""

GO_ON, REFUSE, IGNORE = range(3)
"""What `device.cpp` is answered."""


class Wait(NamedTuple):
    """Something that made the host wait for the device.

    Attributes:
        kind: `read` where numbers came to the host, `send` where they went to the device from
            memory that is not pinned, `wait` where nothing moved.
        operation: PyTorch's name of what did it.
        place: The line of cfgen's that asked for it: file and function.
    """

    kind: str
    operation: str
    place: str


class SimulatedGpu:
    """The device, there as long as `monkeypatch` has not been undone.

    Args:
        library: `device.cpp`, compiled.
        monkeypatch: Changes `torch.cuda`.
        vram: Bytes of its memory.

    Attributes:
        waits: What made the host wait, in order.
        capturing: Whether a graph is being captured, which refuses all of that.
    """

    def __init__(
        self, library: Path, monkeypatch: pytest.MonkeyPatch, *, vram: int = 80 * GIB
    ) -> None:
        torch.ops.load_library(str(library))
        self._device = torch.ops.simulated
        self.waits: list[Wait] = []
        self.capturing = False
        self._ignoring = 0
        self._vram = vram
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
        self._watch = prototype(self._told)
        self._device.watch(ctypes.cast(self._watch, ctypes.c_void_p).value)
        self.vram = vram
        self._patch(monkeypatch)
        self._device.switch(True)

    def close(self) -> None:
        """Take the device away.

        Raises:
            AssertionError: Memory was given back that another stream still reads.
        """
        self._device.switch(False)
        self._device.watch(0)
        assert not self.hazards()

    @property
    def vram(self) -> int:
        """Bytes of the device's memory."""
        return self._vram

    @vram.setter
    def vram(self, nbytes: int) -> None:
        self._vram = nbytes
        self._device.limit(nbytes - CONTEXT)

    @property
    def allocated(self) -> int:
        """Bytes of all tensors on the device."""
        return int(self._device.live())

    @property
    def peak(self) -> int:
        """Most bytes that were allocated at once, of what outlasts an operation."""
        return int(self._device.peak())

    def forget_peak(self) -> None:
        """Count the peak from here on."""
        self._device.forget_peak()

    def hazards(self) -> list[str]:
        """Memory that was given back while another stream read it, since this was asked last."""
        return list(self._device.hazards())

    def counted(self) -> Counter[Wait]:
        """What made the host wait since this was called last, or since the beginning."""
        found = Counter(self.waits)
        self.waits.clear()
        return found

    @contextlib.contextmanager
    def ignoring(self) -> Iterator[None]:
        """Count nothing: what happens is not the device's work, such as interpreting a kernel."""
        self._ignoring += 1
        try:
            yield
        finally:
            self._ignoring -= 1

    def interpret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have Triton's kernels interpreted where their tensors lie; launches stand on tapes."""
        from triton.runtime.interpreter import GridExecutor

        from tests.kernels import interpreter

        def on_host(value):
            if isinstance(value, Tensor) and value.is_cuda:
                return self._device.on_host(value)
            return value

        def arguments(_executor, args, named):
            return [*map(on_host, args)], {name: on_host(value) for name, value in named.items()}

        monkeypatch.setenv("TRITON_INTERPRET", "1")
        interpreter.install()
        monkeypatch.setattr(GridExecutor, "_init_args_hst", arguments)
        monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)
        made = select._triton
        monkeypatch.setattr(select, "_triton", lambda: on_tape(made()))

    def _told(self, kind: bytes, operation: bytes) -> int:
        if self._ignoring:
            return IGNORE
        if self.capturing:
            return REFUSE
        if kind == b"stage":
            return IGNORE
        self.waits.append(Wait(kind.decode(), operation.decode(), place(sys._getframe(1))))
        return GO_ON

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = self._device

        def pinning(make):
            def made(*sizes, pin_memory: bool = False, **options) -> Tensor:
                out = make(*sizes, **options)
                if pin_memory:
                    device.pin(out)
                return out

            return made

        def synchronize(_device=None) -> None:
            if self.capturing:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.waits.append(Wait("wait", "synchronize", place(sys._getframe(1))))
            for stream in range(Stream.made + 1):
                device.settle(stream, device.time(stream))

        name = "a simulated GPU"
        facts = SimpleNamespace(
            name=name, major=9, minor=0, total_memory=self._vram, multi_processor_count=132
        )
        replaced = {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "is_bf16_supported": lambda *_: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda _device: None,
            "get_device_capability": lambda _device=None: (9, 0),
            "get_device_properties": lambda _device=None: facts,
            "get_device_name": lambda _device=None: name,
            "mem_get_info": lambda _device=None: (
                self._vram - CONTEXT - device.live(),
                self._vram,
            ),
            "memory_allocated": lambda _device=None: device.live(),
            "memory_reserved": lambda _device=None: device.live(),
            "max_memory_allocated": lambda _device=None: device.peak(),
            "reset_peak_memory_stats": lambda _device=None: device.forget_peak(),
            "empty_cache": lambda: None,
            "synchronize": synchronize,
            "Stream": Stream,
            "Event": Event,
            "stream": on_stream,
            "default_stream": lambda _device=None: DEFAULT,
            "current_stream": lambda _device=None: Stream.current,
            "CUDAGraph": CUDAGraph,
            "graph": self._captured,
        }
        for key, value in replaced.items():
            monkeypatch.setattr(torch.cuda, key, value)
        for key in ("zeros", "empty"):
            monkeypatch.setattr(torch, key, pinning(getattr(torch, key)))
        monkeypatch.setattr(
            Tensor, "record_stream", lambda x, stream: device.record(x, stream.number)
        )
        monkeypatch.setattr(Tensor, "is_pinned", lambda x: device.is_pinned(x))

    @contextlib.contextmanager
    def _captured(self, graph: CUDAGraph) -> Iterator[None]:
        graph.tape = Tape(watches=False)
        self.capturing = True
        try:
            with graph.tape:
                yield
        finally:
            self.capturing = False
            graph.tape.undo()


class Stream:
    """Work that is done in its order, beside that of other streams."""

    made = 0
    current: Stream

    def __init__(self, _device: object = None, *, number: int | None = None) -> None:
        if number is None:
            Stream.made += 1
        self.number = Stream.made if number is None else number

    def wait_stream(self, other: Stream) -> None:
        device = torch.ops.simulated
        device.learn(self.number, other.number, device.time(other.number))

    def wait_event(self, event: Event) -> None:
        torch.ops.simulated.learn(self.number, event.stream, event.time)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        self.record_event().synchronize()


class Event:
    """A moment of a stream."""

    def __init__(self, **_options: object) -> None:
        self.stream, self.time = 0, 0

    def record(self, stream: Stream | None = None) -> None:
        self.stream = (stream or Stream.current).number
        self.time = torch.ops.simulated.time(self.stream)

    def synchronize(self) -> None:
        """Have the host wait for the moment, which is what events are for: it is not counted."""
        torch.ops.simulated.settle(self.stream, self.time)

    def query(self) -> bool:
        return True


DEFAULT = Stream.current = Stream(number=0)


@contextlib.contextmanager
def on_stream(stream: Stream | None) -> Iterator[None]:
    before = Stream.current
    Stream.current = stream or before
    torch.ops.simulated.stream(Stream.current.number)
    try:
        yield
    finally:
        Stream.current = before
        torch.ops.simulated.stream(before.number)


class CUDAGraph:
    """What was captured, to be done again on the very same tensors."""

    tape: Tape

    def replay(self) -> None:
        self.tape.play()


def place(frame: FrameType | None) -> str:
    """The innermost function of cfgen's under a frame, or of the tests'."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        ours = any(path.is_relative_to(ROOT / room) for room in ("cfgen", "kernels", "tests"))
        if ours and path.name not in ("gpu.py", "tape.py"):
            name = frame.f_code.co_qualname.replace(".<locals>", "").replace(".<genexpr>", "")
            return f"{path.relative_to(ROOT)} {name.removesuffix('.<lambda>')}"
        frame = frame.f_back
    return "elsewhere"


def told(found: Counter[Wait]) -> str:
    """How often the host waited, by kind and place, the most frequent first."""
    places: Counter[tuple[str, str]] = Counter()
    for wait, count in found.items():
        places[wait.kind, wait.place] += count
    ordered = sorted(places.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} {kind} {place}" for (kind, place), count in ordered) or "none"
