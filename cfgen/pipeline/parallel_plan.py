"""What it means for a render to be shared out among processes, in figures."""

from __future__ import annotations

from dataclasses import dataclass

from cfgen.memory.policy import page_classes
from cfgen.parallel.launch import require_divisible, require_one_page_size
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.memory_estimate import pool_nbytes
from cfgen.pipeline.plan import passes_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """What each of several processes has of a render.

    Attributes:
        processes: How many there are.
        heads: Attention heads of the model.
        tokens: Tokens of a chunk.
        kv_nbytes: The KV cache of all heads, as it is kept.
        exchanged_nbytes: What a process sends to the others while a chunk is made: queries, keys
            and values of its tokens, and the output of its heads, in each layer and pass.
    """

    processes: int
    heads: int
    tokens: int
    kv_nbytes: int
    exchanged_nbytes: int


def shares_of(job: RenderJob) -> Shares | None:
    """How a render is shared out; None where one process has it all.

    Raises:
        CheckpointError: The model's sizes cannot be read.
        UsageError: Heads or pages cannot be shared out among so many processes.
    """
    config, plan = job.config, job.plan
    processes = config.placement.parallel
    if processes == 1:
        return None
    sizes, shape, dtype = job.model.geometry, plan.geometry, job.runtime.dtype
    require_divisible(sizes.num_heads, processes)
    grid = sizes.grid(shape.latent_height, shape.latent_width)
    classes = page_classes(config.memory, plan.latent_frames, shape.chunk_latent_frames)
    require_one_page_size(len(classes), processes)
    tokens = grid[0] * grid[1] * shape.chunk_latent_frames
    rows = sizes.num_layers * passes_of(config.schedule) * tokens // processes
    return Shares(
        processes=processes,
        heads=sizes.num_heads,
        tokens=tokens,
        kv_nbytes=pool_nbytes(config.memory.kv_cache, sizes, grid, classes, dtype),
        exchanged_nbytes=rows * 4 * sizes.dim * dtype.itemsize * (processes - 1) // processes,
    )
