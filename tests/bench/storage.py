"""What a small KV cache does to a film: `mini` with every `memory.storage`, beside `auto`.

    python tests/bench/storage.py                   four films of 10 s, float32 and bfloat16
    python tests/bench/storage.py --seeds 7 --dtypes float32

A film is compared with the one of the same seed and number type that keeps its cache as computed.
What is small grows over a rollout, in which each chunk is made from the ones before: so besides the
whole film, its worst second and every second, the chunks that read the cache for the first time
are compared; the first chunk reads nothing but itself. As a measure of that growth, films in
bfloat16 are compared with those in float32, both with `auto`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cfgen.build import Models, build_source
from cfgen.cli.plan import plan_of
from cfgen.config.loader import load
from cfgen.config.schema import RenderConfig

RESULTS = Path(__file__).parent / "results"
PROMPT = "a red balloon drifts over snowy hills at sunset, the camera pans right"
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
        starts: The first frame of each chunk.
        fps: Frames a second.
        cache_nbytes: Bytes of the KV cache.
        seconds: What making it took, without loading.
    """

    frames: Frames
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


def render(config: RenderConfig, models: Models) -> Clip:
    """Make a film, without the video file."""
    source = build_source(config, plan_of(config), models)
    began = time.perf_counter()
    parts = [(plan.frame_start, frames) for plan, _, frames in source.chunks()]
    return Clip(
        frames=np.concatenate([frames for _, frames in parts]),
        starts=[start for start, _ in parts],
        fps=source.plan.geometry.fps,
        cache_nbytes=source.memory.nbytes,
        seconds=time.perf_counter() - began,
    )


def psnr(found: Frames, truth: Frames) -> float:
    """Peak signal to noise in decibels, over all frames together; infinite if they are equal."""
    error = float(np.square(found.astype(np.float32) - truth.astype(np.float32)).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def compared(found: Clip, truth: Clip) -> Figures:
    """PSNR of a film beside another."""
    step = round(truth.fps)
    each = [
        psnr(found.frames[at : at + step], truth.frames[at : at + step])
        for at in range(0, len(truth.frames), step)
    ]
    ends = [*truth.starts[1:], len(truth.frames)]
    chunks = [
        psnr(found.frames[start:end], truth.frames[start:end])
        for start, end in zip(truth.starts[:3], ends[:3], strict=True)
    ]
    return {
        "psnr_db": _told(psnr(found.frames, truth.frames)),
        "worst_second_db": _told(min(each)),
        "by_second_db": [_told(x) for x in each],
        "first_chunks_db": [_told(x) for x in chunks],
    }


def _told(decibels: float) -> float | None:
    """As JSON holds it; None for films that are equal."""
    return round(decibels, 2) if math.isfinite(decibels) else None


def measure(
    dtype: str, seeds: list[int], threads: int, models: Models
) -> tuple[Figures, list[Clip]]:
    """Every storage with every seed in one number type; the films with `auto` besides."""
    rows: Figures = {}
    truths: list[Clip] = []
    for storage in STORAGES:
        films, against = [], []
        for index, seed in enumerate(seeds):
            config = configured(seed, dtype=dtype, threads=threads, memory__storage=storage)
            film = render(config, models)
            if storage == "auto":
                truths.append(film)
            films.append(film)
            against.append({"seed": seed, **compared(film, truths[index])})
        rows[storage] = {
            "cache_bytes": films[0].cache_nbytes,
            "of_auto": round(films[0].cache_nbytes / truths[0].cache_nbytes, 3),
            "render_s": round(statistics.median(film.seconds for film in films), 2),
            **({} if storage == "auto" else summary(against)),
        }
        sys.stderr.write(f"{dtype} {storage}: {_line(rows[storage])}\n")
    return rows, truths


def summary(against: list[Figures]) -> Figures:
    """Medians over the films, the films themselves beside them."""
    return {
        "psnr_db": _median([film["psnr_db"] for film in against]),
        "worst_second_db": _median([film["worst_second_db"] for film in against]),
        "films": against,
    }


def _median(decibels: list[float | None]) -> float | None:
    return _told(statistics.median(math.inf if x is None else x for x in decibels))


def _line(row: Figures) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items() if key != "films")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9, 10])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    told = parser.parse_args()
    models, rows, truths = Models(), {}, {}
    for dtype in told.dtypes:
        rows[dtype], truths[dtype] = measure(dtype, told.seeds, told.threads, models)
    figures: Figures = {
        "command": "python tests/bench/storage.py",
        "film": {"prompt": PROMPT, "seconds": SECONDS, "seeds": told.seeds},
        "storage": rows,
    }
    if set(truths) == set(DTYPES):
        pairs = zip(told.seeds, truths["bfloat16"], truths["float32"], strict=True)
        figures["bfloat16_beside_float32"] = summary(
            [{"seed": seed, **compared(film, truth)} for seed, film, truth in pairs]
        )
    figures["machine"] = machine() | {"threads": told.threads}
    text = json.dumps(figures, indent=1)
    told.results.mkdir(parents=True, exist_ok=True)
    (told.results / "storage.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


def machine() -> Figures:
    """What it ran on."""
    cpu = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "bf16_instructions": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("cfgen", "torch", "numpy")},
        },
    }


if __name__ == "__main__":
    main()
