"""A chunk's passes as one CUDA graph: thousands of launches become one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cfgen.errors import BackendUnavailable
from cfgen.memory.protocols import View
from cfgen.rollout.loop import Run

Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""From work to its output, which does not change place, and what does the work again."""


class ChunkGraph:
    """Runs the first chunk as it is, which compiles and allocates; captures the second; repeats it.

    Memory must write what a chunk may read to the same addresses every time, as `in_place` does.

    Args:
        passes: The passes of a chunk.
        capture: How they are captured.
    """

    def __init__(self, passes: Run, capture: Capture | None = None) -> None:
        self._passes, self._capture = passes, capture or capture_cuda
        self._warm = False
        self._noise: Tensor | None = None

    def __call__(self, noise: Tensor, view: View) -> Tensor:
        """See `rollout.ChunkDenoiser`; every chunk has the same shape."""
        if not self._warm:
            self._warm = True
            return self._passes(noise, view)
        if self._noise is None:
            place = self._noise = noise.clone()
            self._out, self._replay = self._capture(lambda: self._passes(place, view))
        self._noise.copy_(noise)
        self._replay()
        return self._out.clone()


def capture_cuda(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Record work on a GPU without doing it.

    Raises:
        BackendUnavailable: It waits for the device somewhere, or copies from main memory.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph):
            out = work()
    except RuntimeError as error:
        first = next(iter(str(error).splitlines()), "CUDA does not say why")
        raise BackendUnavailable(
            f"the passes of a chunk cannot be one CUDA graph: {first}",
            "use --set cuda_graph=false",
        ) from error
    return out, graph.replay
