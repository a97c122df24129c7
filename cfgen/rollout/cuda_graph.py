"""A chunk's passes as one CUDA graph: thousands of launches become one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cfgen.errors import BackendUnavailable
from cfgen.memory.protocols import View
from cfgen.model.generator import Conditioning
from cfgen.rollout.loop import ChunkFn

Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""From work to its output, which does not change place, and what does the work again."""


class ChunkGraph:
    """Runs the first chunk as it is, which compiles and allocates; captures the second; repeats it.

    Memory must write what a chunk may read to the same addresses every time, as that for
    `paged_attention` does.

    Args:
        passes: The passes of a chunk.
        capture: How they are captured.
    """

    def __init__(self, passes: ChunkFn, capture: Capture | None = None) -> None:
        self._passes, self._capture = passes, capture or capture_cuda
        self._shapes: list[torch.Size] = []
        self._noise: Tensor | None = None

    def __call__(self, noise: Tensor, view: View, conditioning: Conditioning) -> Tensor:
        """See `rollout.loop.ChunkDenoiser`; a prompt of another length is captured anew."""
        shapes = [tensor.shape for tensor in conditioning.tensors]
        if shapes != self._shapes:
            self._shapes, self._noise = shapes, None
            return self._passes(noise, view, conditioning)
        if self._noise is None:
            place = self._noise = noise.clone()
            prompt = self._prompt = _copied(conditioning)
            self._out, self._replay = self._capture(lambda: self._passes(place, view, prompt))
            self._read = conditioning
        self._noise.copy_(noise)
        if conditioning is not self._read:  # the graph reads a prompt where the first one lay
            for fixed, new in zip(self._prompt.tensors, conditioning.tensors, strict=True):
                fixed.copy_(new)
            self._read = conditioning
        self._replay()
        return self._out.clone()


def _copied(conditioning: Conditioning) -> Conditioning:
    pairs = tuple((k.clone(), v.clone()) for k, v in conditioning.keys_values)
    bias, commit = conditioning.bias, conditioning.commit
    return Conditioning(
        pairs,
        None if bias is None else bias.clone(),
        None if commit is None else _copied(commit),
    )


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
