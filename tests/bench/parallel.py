"""One film in 1, 2, 4 processes: what a chunk takes, what each keeps, and whether frames differ.

    python tests/bench/parallel.py                                       mini, on a CPU or on GPUs
    python tests/bench/parallel.py --processes 1 2 4 8 --set backend=triton

Frames are compared with those of the first number of processes. The first chunks, which allocate
and compile, are not timed; what decodes is not either. On a CPU each process has one thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from contextlib import closing
from typing import Any

import torch
from kept import PROMPT, RESULTS, keep
from torch import Tensor

from cfgen.config.loader import load
from cfgen.pipeline.build import ModelCache, build_source
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.parallel_plan import shares_of

WARM_UP = 2
"""Chunks that are not timed."""


def measure(processes: int, assignments: list[str]) -> tuple[dict[str, Any], Tensor]:
    """Figures of a film in so many processes, and its latents."""
    values = {"prompt": PROMPT, "duration": "10s", "seed": "3"}
    given = ["threads=1", *assignments, f"placement.parallel={processes}"]
    job, models = RenderJob(load(values, assignments=given).config), ModelCache()
    source = build_source(job, models)
    made, seconds = [], []
    with closing(models.peers), closing(source):
        making = source.making()
        for index in source.plan.order:
            began = time.perf_counter()
            making.start(index)
            made.append(making.finish().latents.cpu())
            seconds.append(time.perf_counter() - began)
    shares = shares_of(job)
    figures = {
        "processes": processes,
        "chunk_s": round(statistics.median(seconds[WARM_UP:]), 4),
        "kv_cache_nbytes_a_process": source.memory.pool.nbytes,
        "sent_nbytes_a_chunk_and_process": 0 if shares is None else shares.exchanged_nbytes,
    }
    return figures, torch.cat(made, 1)


def compared(latents: Tensor, truth: Tensor) -> dict[str, Any]:
    """How far latents are from others, in figures."""
    error = (latents - truth).double()
    span, squares = float(truth.max() - truth.min()), float(error.square().mean())
    return {
        "equal": torch.equal(latents, truth),
        "largest_difference": float(error.abs().max()),
        "psnr_db": None if squares == 0 else round(10 * math.log10(span**2 / squares), 1),
    }


def main() -> None:
    """Measure one number of processes after the other, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    options = parser.parse_args()
    rows, truth = [], None
    for processes in options.processes:
        figures, latents = measure(processes, options.assignments)
        truth = latents if truth is None else truth
        rows.append(figures | compared(latents, truth))
    keep(RESULTS / "parallel.json", {"set": options.assignments, "rows": rows})


if __name__ == "__main__":
    main()
