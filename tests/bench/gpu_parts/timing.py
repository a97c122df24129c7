"""Times one contestant: replays of a CUDA graph between events, or a clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]

GRAPH_MS = 1.0
"""A replay takes this long at least, so that events and launches do not count."""
LONGEST_GRAPH = 50
"""Rounds over the input sets in one graph, at most."""
REPLAYS = (3, 200)
"""Fewest and most timed replays in a round."""


class Timer:
    """One contestant, warmed up, with a call for each input set.

    Args:
        calls: One call an input set; a timed run makes them all, in order.
        device: Where they work.
        graph: Whether to capture them in a CUDA graph; what cannot be captured is timed as it is.

    Attributes:
        graphed: Whether they were captured.
        note: Why they were not, if that was wanted.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device, *, graph: bool) -> None:
        self.calls, self.device = list(calls), device
        self.graphed, self.note, self._rounds = False, "", 1
        self._run: Call = self._every
        if device.type == "cuda":
            self._warm_up()
            if graph:
                self._capture()

    def round(self, seconds: float) -> float:
        """Median milliseconds of one call, timed for about `seconds`."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            self._every()
            return (time.perf_counter() - began) * 1000 / len(self.calls)
        self._run()
        one = self._timed(1)[0]
        least, most = REPLAYS
        times = self._timed(min(most, max(least, int(seconds * 1000 / max(one, 1e-3)))))
        return statistics.median(times) / (len(self.calls) * self._rounds)

    def _every(self) -> None:
        for call in self.calls:
            call()

    def _warm_up(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._every()
            self._every()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def _capture(self) -> None:
        try:
            self._run = self._graph(1)
            self.graphed = True
            one = min(self._timed(3))
            if one < GRAPH_MS:
                self._rounds = min(LONGEST_GRAPH, int(GRAPH_MS / max(one, 1e-3)) + 1)
                self._run = self._graph(self._rounds)
        except RuntimeError as failed:
            torch.cuda.synchronize()  # raises again if the device is lost
            self._run, self._rounds, self.graphed = self._every, 1, False
            self.note = first_line(failed)

    def _graph(self, rounds: int) -> Call:
        def several() -> None:
            for _ in range(rounds):
                self._every()

        return captured(several)

    def _timed(self, times: int) -> list[float]:
        """Milliseconds of each of so many runs."""
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
        marks[0].record()
        for mark in marks[1:]:
            self._run()
            mark.record()
        torch.cuda.synchronize()
        return [early.elapsed_time(late) for early, late in zip(marks, marks[1:], strict=False)]


def captured(call: Call) -> Call:
    """A replay of a call that has run before; it gives the same tensors each time, filled anew."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = call()
    graph.replay()
    torch.cuda.synchronize()

    def replay() -> object:
        graph.replay()
        return output

    return replay


def first_line(error: BaseException) -> str:
    """What an error says, in one line that fits a table's note."""
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}"


def spread(times: Sequence[float]) -> float:
    """Distance between the slowest and the fastest, as a share of the median."""
    return (max(times) - min(times)) / statistics.median(times)
