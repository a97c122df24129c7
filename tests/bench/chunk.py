"""A chunk on a CPU: cfgen's torch backend beside the published way, in pairs, on the same weights.

    python tests/bench/chunk.py                              every setting with one thread and two
    python tests/bench/chunk.py --settings mini --threads 1 --pairs 7 --no-clip

A chunk is its denoising passes and the commit pass. The memory is a window of 21 latent frames at
relative positions, of which 3 are sink, and it is full: so every frame behind the sink moves with
every chunk, which is the worst case for a cache of rotated keys. The published way, in
`chunk_ways.py`, rotates all of them in every layer and pass. Both ways must give the same flows, or
there are no figures.

`mini` is the model in the box with its prompt. In `wan` one layer with random weights in the sizes
of Wan2.1-1.3B stands for one among thirty, so there the commit pass is whole in both ways; and one
denoising pass beside it, of which there would be four, makes moving the context count more.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import storage
import torch
from chunk_ways import FRAMES, WINDOW, BenchSetup, Variant, mini, wan

from cfgen.memory import pre_rotated as rotated
from cfgen.model.vae import SPATIAL_STRIDE
from cfgen.pipeline.build import Models

RESULTS = Path(__file__).parent / "results"
FILLING = 8
"""Chunks before the first that is looked at: then the window is full and has moved once."""
ALLOWED = {"float32": 2e-5, "bfloat16": 3e-2}
"""Relative distance from the flows of the published way in float32."""
SETTINGS = {"mini": (mini, 4, 7), "wan": (wan, 1, 2)}
"""How one is made, its denoising passes, and how many chunks are timed and looked into."""
BOTH = ("published", "cfgen")
VERSUS = (
    ("published float32", "cfgen float32"),
    ("published float32", "cfgen bfloat16"),
    ("published bfloat16", "cfgen bfloat16"),
)

Figures = dict[str, Any]


def check(setting: BenchSetup, ways: dict[str, Variant]) -> Figures:
    """Fill all memories alike, then compare the flows of a chunk; exit if they are not equal."""
    for way in ways.values():
        for index in range(FILLING):
            way.remember(setting.keys_values(index))
    made = {name: way.chunk(setting.noise(100)) for name, way in ways.items()}
    truth = made["published float32"]
    found: Figures = {}
    for name, flows in made.items():
        pairs = zip(flows, truth, strict=True)
        found[name] = max(float((x - y).norm() / y.norm()) for x, y in pairs)
        allowed = ALLOWED["bfloat16" if "bfloat16" in name else "float32"]
        if not found[name] <= allowed:
            sys.exit(f"{name}: flows are {found[name]:.1e} from the baseline's, not {allowed:.0e}")
    return {name: float(f"{x:.2g}") for name, x in found.items()}


def paired(setting: BenchSetup, ways: dict[str, Variant], pairs: int) -> Figures:
    """Seconds of chunks, the ways taking turns, and how many times faster ours is."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    faults: dict[str, list[float]] = {name: [] for name in ways}
    for pair in range(pairs):
        noise = setting.noise(1000 + pair)
        for name, way in ways.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            began = time.perf_counter()
            way.chunk(noise)
            seconds[name].append(time.perf_counter() - began)
            faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    ratios = {
        f"{ours} than {other}": [b / a for a, b in zip(seconds[ours], seconds[other], strict=True)]
        for other, ours in VERSUS
    }
    return {
        "chunk_s": {name: spread(each) for name, each in seconds.items()},
        "times_faster": {name: spread(each) for name, each in ratios.items()},
        "page_faults": {name: statistics.median(each) for name, each in faults.items()},
    }


def spread(numbers: list[float]) -> Figures:
    """Median and extremes."""
    named = {"median": statistics.median(numbers), "least": min(numbers), "most": max(numbers)}
    return {name: float(f"{x:.4g}") for name, x in named.items()}


def shares(setting: BenchSetup, way: Variant, chunks: int) -> Figures:
    """Shares of a chunk's time that go into rotation and gathering, measured inside of chunks.

    What the clocks take, and what Python takes between two of them, counts as rotation or copying.
    """
    found: dict[str, list[float]] = {}
    for index in range(chunks):
        with clocks(way) as spent:
            began = time.perf_counter()
            way.chunk(setting.noise(2000 + index))
            total = time.perf_counter() - began
        parts = {
            "rotating_what_is_stored": spent["prepare"] - spent["norm"],
            "bringing_context": spent["hold"],
            "rotating_into_place": spent["attend"] - spent["hold"] - spent["attention"],
        }
        parts["rotation_and_gathering"] = sum(parts.values())
        for name, seconds in (parts | {"writing_pages": spent["write"]}).items():
            found.setdefault(name, []).append(seconds / total)
    return {name: spread(each) for name, each in found.items()}


@contextmanager
def clocks(way: Variant) -> Iterator[dict[str, float]]:
    """Time what a rotated reader does, by the names of its parts; parts lie within others."""
    spent: dict[str, float] = {}

    def clocked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        spent[name] = 0.0

        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = call(*given, **named)
            spent[name] += time.perf_counter() - began
            return found

        return timed

    reader, pool = way.memory.reader, way.memory.pool
    attention = dataclasses.replace(reader._ops, attend=clocked("attention", reader._ops.attend))
    with ExitStack() as stack:
        for owner, name, call in (
            (rotated, "norm", clocked("norm", rotated.norm)),
            (reader, "_ops", attention),
            (reader, "prepare", clocked("prepare", reader.prepare)),
            (reader, "attend", clocked("attend", reader.attend)),
            (reader, "_hold", clocked("hold", reader._hold)),
            (pool, "write", clocked("write", pool.write)),
        ):
            stack.enter_context(patch.object(owner, name, call))
        yield spent


def keep_memory() -> None:
    """Have glibc keep what is freed, whatever its size.

    By default it is luck, which changes from run to run, whether the large intermediates of the
    published way come from the operating system anew each time; that would cost it a third more.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4
        library.mallopt(m_mmap_max, 0)
        library.mallopt(m_trim_threshold, -1)


def clip(threads: int) -> Figures:
    """A film by `mini` in bfloat16 beside float32."""
    models = Models()
    films = [
        storage.render(storage.configured(7, dtype=dtype, threads=threads), models)
        for dtype in ("float32", "bfloat16")
    ]
    seconds = [round(film.seconds, 2) for film in films]
    return {"render_s": seconds, **storage.compared(films[1], films[0])}


def measure(name: str, threads: int, told: argparse.Namespace) -> Figures:
    """One setting with a number of threads."""
    torch.set_num_threads(threads)
    make, passes, times = SETTINGS[name]
    pairs = told.pairs or times
    setting = make(told.passes or passes)
    ways = setting.ways()
    sizes = setting.generator.geometry
    grid = sizes.grid(setting.height // SPATIAL_STRIDE, setting.width // SPATIAL_STRIDE)
    return {
        "setting": name,
        "threads": threads,
        "shapes": {
            "layers": sizes.num_layers,
            "heads": [sizes.num_heads, sizes.head_dim],
            "tokens": [FRAMES * grid[0] * grid[1], WINDOW * grid[0] * grid[1]],
            "passes": [setting.passes, 1],
            "prompt_tokens": [ways[f"{w} float32"].text.keys_values[0][0].shape[1] for w in BOTH],
        },
        "flows_relative_to_published_float32": check(setting, ways),
        "pairs": pairs,
        **paired(setting, ways, pairs),
        "shares": {
            name: shares(setting, ways[name], times) for name in ways if name.startswith("cfgen")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, help="7 of mini, 2 of wan")
    parser.add_argument("--passes", type=int, choices=range(1, 5), help="denoising passes")
    parser.add_argument("--no-clip", action="store_true", help="leave out the film in bfloat16")
    parser.add_argument("--results", type=Path, default=RESULTS)
    told = parser.parse_args()
    keep_memory()
    figures: Figures = {"command": "python tests/bench/chunk.py", "runs": []}
    with torch.inference_mode():
        for name in told.settings:
            for threads in told.threads:
                figures["runs"].append(measure(name, threads, told))
                sys.stderr.write(json.dumps(figures["runs"][-1], indent=1) + "\n")
    if not told.no_clip:
        figures["film_in_bfloat16_beside_float32"] = clip(told.threads[-1])
    figures["machine"] = storage.machine()
    text = json.dumps(figures, indent=1)
    told.results.mkdir(parents=True, exist_ok=True)
    (told.results / "chunk-cpu.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
