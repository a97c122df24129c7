"""What a compressed past costs: time per chunk and bytes beside slow-fast memory and a window.

    python tests/bench/compressed.py                     mini-base, 40 chunks of each memory
    python tests/bench/compressed.py --chunks 60 --size 320x192 --threads 1

The memories take turns chunk by chunk, so that what else runs on the machine slows all of them.
Times are medians over the later half of the chunks, with everything but the decoder; `again` is the
share of it that encoding again takes. What the memories do to pictures is told by
`effective_context.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field

import torch
from kept import PROMPT, RESULTS, keep

from cfgen.config.loader import load
from cfgen.ops.select import build_ops
from cfgen.pipeline.chunk_source import build_memory, build_schedule, read_prompts
from cfgen.pipeline.job import RenderJob
from cfgen.rollout.loop import ChunkDenoiser, Rollout
from cfgen.rollout.schedule import KeyedNoise

COMPRESSED = "memory.policy=compressed"
FRAMEPACK = ["memory.sink=1", "memory.page=cube", "memory.rotary=pooled", "memory.layout=reordered"]
MEMORIES = {
    "slow_fast 3 + 6 + 6": [],
    "window 3 + 12": ["memory.policy=window", "memory.size=15"],
    "far 15:1 all:4": [COMPRESSED],
    "far 15:1 all:4, never renewed": [COMPRESSED, "memory.renew=never"],
    "far 6:1 all:4": [COMPRESSED, "memory.levels=6:1,all:4"],
    "framepack 1:1 2:2 16:4": [COMPRESSED, *FRAMEPACK, "memory.levels=1:1,2:2,16:4"],
}


@dataclass
class Times:
    """Seconds of each chunk."""

    chunk: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)


def measure(chunks: int, size: str, threads: int) -> list[dict[str, object]]:
    """A row for each memory."""
    torch.set_num_threads(threads)
    flags = {"preset": "mini-base", "prompt": PROMPT, "duration": f"{chunks * 0.75}s", "seed": "7"}
    alone = [f"model.sizes=[{size}]", "device=cpu"]
    jobs = [
        RenderJob(load(flags, assignments=[*alone, *each]).config) for each in MEMORIES.values()
    ]
    first = jobs[0]
    dtype = first.runtime.dtype
    loaded = first.model.load(dtype=dtype, device=first.runtime.device)
    generator, ops = loaded.generator, build_ops("torch")
    text = first.model.embed([PROMPT, ""])
    (conditioning, *_), guidance = read_prompts(first, generator, text)
    shape = first.plan.geometry
    latents = (
        1,
        shape.chunk_latent_frames,
        shape.channels,
        shape.latent_height,
        shape.latent_width,
    )
    memories = [build_memory(j.config.memory, generator, j.plan, ops, dtype=dtype) for j in jobs]
    denoise = ChunkDenoiser(generator, build_schedule(first.config.schedule), guidance)
    rolling = [Rollout(denoise, each, KeyedNoise(7), shape=latents) for each in memories]
    times = [Times() for _ in memories]
    with torch.inference_mode():
        for index in range(first.plan.chunks):
            for rollout, told in zip(rolling, times, strict=True):
                began = time.perf_counter()
                rollout.start(index, conditioning)
                made = time.perf_counter()
                rollout.finish()
                told.chunk.append(time.perf_counter() - began)
                told.again.append(time.perf_counter() - made)
    return [
        {
            "memory": name,
            "ms_a_chunk": round(1000 * _late(told.chunk), 1),
            "again": round(_late(told.again) / _late(told.chunk), 3),
            "tokens": sum(memory.pool.size(slot.page)[1] for slot in memory.tables[0].slots()),
            "latent_frames": first.plan.latent_frames,
            "pool_nbytes": memory.nbytes,
        }
        for name, told, memory in zip(MEMORIES, times, memories, strict=True)
    ]


def _late(seconds: list[float]) -> float:
    return statistics.median(seconds[len(seconds) // 2 :])


def main() -> None:
    """Measure; the figures are kept in `results/compressed.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--size", default="320x192")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    rows = measure(asked.chunks, asked.size, asked.threads)
    first = float(str(rows[0]["ms_a_chunk"]))
    for row in rows:
        row["times_slow_fast"] = round(float(str(row["ms_a_chunk"])) / first, 2)
    keep(RESULTS / "compressed.json", {"size": asked.size, "chunks": asked.chunks, "rows": rows})


if __name__ == "__main__":
    main()
