"""What a small KV cache does to a film: `mini` with every `memory.kv_cache`, beside `auto`.

    python tests/bench/storage.py                   four films of 10 s, float32 and bfloat16
    python tests/bench/storage.py --seeds 7 --dtypes float32

A film is compared with the one of the same seed and number type that keeps its cache as computed:
the whole of it, its worst second and every second. What is small at first grows, as each chunk is
made from the ones before; so besides the film as it is rendered (`free`), there is one whose every
chunk is made from a cache of the other film's chunks (`forced`): what storage does to a chunk, and
nothing else. As a measure of the growth, films in bfloat16 are compared with those in float32, both
with `auto`. The first chunk of a film reads nothing but itself.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kept import PROMPT, RESULTS, keep
from torch import Tensor

from cfgen.config.loader import load
from cfgen.config.schema import RenderConfig
from cfgen.pipeline.build import ModelCache, build_source
from cfgen.pipeline.job import RenderJob
from cfgen.renderer.source import FrameSource
from cfgen.rollout.loop import Chunk
from cfgen.timeline import ChunkPlan

STORAGES = ("auto", "bf16", "int8", "fp8")
DTYPES = ("float32", "bfloat16")
SECONDS = 10

Frames = npt.NDArray[np.uint8]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """A film and what it took.

    Attributes:
        frames: [T, H, W, 3].
        latents: Of each chunk.
        starts: The first frame of each chunk.
        fps: Frames a second.
        cache_nbytes: Bytes of the KV cache.
        seconds: What making it took, without loading.
    """

    frames: Frames
    latents: list[Tensor]
    starts: list[int]
    fps: float
    cache_nbytes: int
    seconds: float


def configured(seed: int, **values: object) -> RenderConfig:
    """A render by the preset `mini` alone; `values` by name, `__` for a dot."""
    flags = {"preset": "mini", "prompt": PROMPT, "duration": f"{SECONDS}s", "seed": str(seed)}
    assignments = [f"{name.replace('__', '.')}={value}" for name, value in values.items()]
    alone = {"XDG_CONFIG_HOME": os.devnull}
    return load(flags, assignments=assignments, environ=alone).config


def render(config: RenderConfig, models: ModelCache, before: list[Tensor] | None = None) -> Clip:
    """Make a film, without the video file; each chunk after the chunks `before`, if given."""
    source = build_source(RenderJob(config), models)
    began = time.perf_counter()
    chunks = source.chunks() if before is None else forced(source, before)
    parts = [(plan.frame_start, chunk.latents, frames) for plan, chunk, frames in chunks]
    starts, latents, frames = map(list, zip(*parts, strict=True))
    return Clip(
        frames=np.concatenate(frames),
        latents=latents,
        starts=starts,
        fps=source.plan.geometry.fps,
        cache_nbytes=source.memory.nbytes,
        seconds=time.perf_counter() - began,
    )


def forced(source: FrameSource, latents: list[Tensor]) -> Iterator[tuple[ChunkPlan, Chunk, Frames]]:
    """Chunks as a source makes each of them when the ones before were `latents`."""
    state = source.vae.start()
    for index, given in enumerate(latents):
        aside = dataclasses.replace(source, memory=copy.deepcopy(source.memory))
        (chunk,) = aside.make(range(index, index + 1))
        yield source.plan.chunk(index), chunk, source.decode(chunk, state)
        source.recommit(Chunk(index, given))


def psnr(found: Frames, truth: Frames) -> float:
    """Peak signal to noise in decibels, over all frames together; infinite if they are equal."""
    error = float(np.square(found.astype(np.float32) - truth.astype(np.float32)).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def compared(found: Clip, truth: Clip) -> Figures:
    """PSNR of a film beside another."""
    step = round(truth.fps)
    seconds = [slice(at, at + step) for at in range(0, len(truth.frames), step)]
    each = [psnr(found.frames[one], truth.frames[one]) for one in seconds]
    second = slice(truth.starts[1], truth.starts[2])
    return {
        "psnr_db": _told(psnr(found.frames, truth.frames)),
        "worst_second_db": _told(min(each)),
        "second_chunk_db": _told(psnr(found.frames[second], truth.frames[second])),
        "by_second_db": [_told(x) for x in each],
    }


def _told(decibels: float) -> float | None:
    """As JSON holds it; None for films that are equal."""
    return round(decibels, 2) if math.isfinite(decibels) else None


def measure(
    dtype: str, seeds: list[int], threads: int, models: ModelCache
) -> tuple[Figures, list[Clip]]:
    """Every storage with every seed in one number type; the films with `auto` besides."""

    def made(storage: str, seed: int, before: list[Tensor] | None = None) -> Clip:
        config = configured(seed, dtype=dtype, threads=threads, memory__kv_cache=storage)
        return render(config, models, before)

    truths = [made("auto", seed) for seed in seeds]
    again = made("auto", seeds[0], truths[0].latents)
    if not np.array_equal(again.frames, truths[0].frames):
        sys.exit("a film forced onto its own chunks is not the film: the figures mean nothing")
    rows: Figures = {"auto": costs(truths, truths[0])}
    for storage in STORAGES[1:]:
        films = [made(storage, seed) for seed in seeds]
        steered = [
            made(storage, seed, truth.latents) for seed, truth in zip(seeds, truths, strict=True)
        ]
        rows[storage] = {
            **costs(films, truths[0]),
            "free": summary(seeds, films, truths),
            "forced": summary(seeds, steered, truths),
        }
        sys.stderr.write(f"{dtype} {storage}: {_line(rows[storage])}\n")
    return rows, truths


def costs(films: list[Clip], plain: Clip) -> Figures:
    """Bytes of the cache, and seconds of a render."""
    return {
        "cache_bytes": films[0].cache_nbytes,
        "of_auto": round(films[0].cache_nbytes / plain.cache_nbytes, 3),
        "render_s": round(statistics.median(film.seconds for film in films), 2),
    }


def summary(seeds: list[int], films: list[Clip], truths: list[Clip]) -> Figures:
    """Medians over films, and the films one by one."""
    pairs = zip(seeds, films, truths, strict=True)
    each = [{"seed": seed, **compared(film, truth)} for seed, film, truth in pairs]
    names = ("psnr_db", "worst_second_db", "second_chunk_db")
    return {name: _median([one[name] for one in each]) for name in names} | {"films": each}


def _median(decibels: list[float | None]) -> float | None:
    return _told(statistics.median(math.inf if x is None else x for x in decibels))


def _line(row: Figures) -> str:
    ways = [f"{way} {row[way]['psnr_db']} dB" for way in ("free", "forced")]
    return ", ".join([*ways, f"{row['cache_bytes']} bytes, {row['render_s']} s"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9, 10])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    told = parser.parse_args()
    models, rows, truths = ModelCache(), {}, {}
    for dtype in told.dtypes:
        rows[dtype], truths[dtype] = measure(dtype, told.seeds, told.threads, models)
    figures: Figures = {
        "film": {"prompt": PROMPT, "seconds": SECONDS, "seeds": told.seeds},
        "storage": rows,
    }
    if set(truths) == set(DTYPES):
        figures["bfloat16_beside_float32"] = summary(
            told.seeds, truths["bfloat16"], truths["float32"]
        )
    figures["threads"] = told.threads
    keep(told.results / "storage.json", figures)


if __name__ == "__main__":
    main()
