"""cfgen's own chunk, for the slices that measure whole chunks: the one place that builds it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cfgen.errors import BackendUnavailable
from cfgen.memory.page_pool import KVCache
from cfgen.memory.paged import PagedMemory
from cfgen.memory.paged_attention import PagedAttention
from cfgen.memory.protocols import Norms, Pass
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator, Linear, WanConfig
from cfgen.ops.reference import Rope
from cfgen.ops.select import Ops, build_ops
from cfgen.ops.triton_backend import Request
from cfgen.rollout.cuda_graph import ChunkGraph
from cfgen.rollout.loop import ChunkDenoiser, ChunkFn
from cfgen.rollout.schedule import FewStepSchedule
from gpu_parts.case import Refused
from gpu_parts.dit import CHANNELS, EPS, PATCH, Scene

Chunk = Callable[[], Tensor]
"""Denoises a chunk with a full memory, commits it, and gives it: [B, F, C, H, W]. Every call goes
on from the one before, with the same noise."""


def ours(scene: Scene, *, dtype: torch.dtype, storage: str, backend: str, graph: bool) -> Chunk:
    """The chunk of a scene as cfgen computes it.

    Args:
        scene: Its weights, prompt, noise and memory: a window of `scene.memory` latent frames whose
            positions in time are 0 and on, the chunk's own last.
        dtype: What it is computed in.
        storage: How pages are stored, as the memory's configuration names it.
        backend: Of the ops.
        graph: Whether the chunk is one CUDA graph.

    Raises:
        Refused: cfgen cannot do that here.
    """
    s, device = scene.sizes, scene.noise.device
    keys = torch.int8 if storage in ("int8", "fp8") else dtype
    values = torch.float8_e4m3fn if storage == "fp8" else dtype
    try:
        ops = build_ops(backend, Request(device, dtype, s.head_dim, keys, values))
    except BackendUnavailable as error:
        raise Refused(str(error)) from error
    generator = _generator(scene, ops, dtype)
    memory = _memory(scene, ops, dtype, storage)
    with torch.inference_mode():
        _fill(memory, scene)
        conditioning = generator.condition(scene.text.to(dtype))
        passes = ChunkDenoiser(generator, FewStepSchedule(scene.sigmas))
    run: ChunkFn = ChunkGraph(passes) if graph else passes

    def chunk() -> Tensor:
        with torch.inference_mode():
            view = memory.begin(scene.frames)
            latents = run(scene.noise, view, conditioning)
            memory.commit(view)
            return latents

    return chunk


def _generator(scene: Scene, ops: Ops, dtype: torch.dtype) -> Generator:
    """The blocks' matrices in `dtype`, all else in float32, as cfgen loads a model."""
    s = scene.sizes
    geometry = WanConfig(
        dim=s.width,
        ffn_dim=s.ffn,
        num_heads=s.heads,
        num_layers=s.layers,
        in_dim=CHANNELS,
        out_dim=CHANNELS,
        freq_dim=s.freq_dim,
        text_len=s.text_len,
        text_dim=s.text_dim,
        patch_size=(1, PATCH, PATCH),
        eps=EPS,
    )
    with torch.device("meta"):
        generator = Generator(geometry, ops)
    generator.load_state_dict(scene.weights, assign=True)
    generator = generator.float().eval().requires_grad_(False)
    for module in generator.blocks.modules():
        if isinstance(module, Linear):
            module.to(dtype)
    return generator


def _memory(scene: Scene, ops: Ops, dtype: torch.dtype, storage: str) -> PagedMemory:
    s = scene.sizes
    rope, grid = Rope(s.head_dim), (s.frame.rows, s.frame.columns)
    pool = KVCache(
        s.layers,
        scene.memory + 1,
        (1, s.frame.tokens, s.heads, s.head_dim),
        dtype=dtype,
        device=scene.noise.device,
        storage="auto" if storage == "bf16" else storage,  # type: ignore[arg-type]
        write=ops.write_pages,
    )
    assert ops.pages is not None
    reader = PagedAttention(pool, ops.pages, rope=rope, grid=grid, slots=scene.memory)
    tables = [WindowTable(scene.memory, positions="relative") for _ in range(s.layers)]
    return PagedMemory(tables, pool, reader, admit=ops.admit)


def _fill(memory: PagedMemory, scene: Scene) -> None:
    """Commit the frames that were before the chunk."""
    gain = torch.ones(scene.sizes.width, device=scene.noise.device)
    norms, tokens = Norms(gain, gain, EPS), scene.frames * scene.sizes.frame.tokens
    keys, values = (x.split(tokens, 2) for x in (scene.context_k, scene.context_v))
    for k, v in zip(keys, values, strict=True):
        view = memory.begin(scene.frames).at(Pass(0, commit=True))
        for layer in range(scene.sizes.layers):
            view.write(layer, k[layer], v[layer], norms)
        memory.commit(view)
