"""Presets of released systems: what their passes read, and what they make of random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cfgen.config.loader import load
from cfgen.config.schema import RenderConfig
from cfgen.memory.build import build_memory
from cfgen.memory.page_pool import KVCache
from cfgen.memory.policy import pages_of
from cfgen.memory.protocols import Pass
from cfgen.model.generator import Generator, WanConfig
from cfgen.ops.select import build_ops
from cfgen.pipeline.chunk_source import build_schedule
from cfgen.rollout.loop import ChunkDenoiser, Rollout
from cfgen.rollout.schedule import FewStepSchedule
from tests.model.released import RELEASED, Clip, Discounted, Relaxed, Released, own, top
from tests.strategies import random_generator

FLOAT32, FLOAT64 = 2e-5, 1e-9
SIZES = WanConfig(
    dim=24,
    ffn_dim=20,
    num_heads=2,
    num_layers=2,
    in_dim=4,
    out_dim=4,
    freq_dim=8,
    text_len=5,
    text_dim=6,
)
GRID = (2, 2)
CHUNKS = {1: 26, 3: 9}
"""Chunks until positions stand still, by the latent frames of one."""


def config_of(name: str, **settings: str) -> RenderConfig:
    return load({"preset": name, **settings}, environ={}).config


def schedule_of(schedule: FewStepSchedule, number: int) -> FewStepSchedule:
    return schedule.opening if number == 0 else schedule


def described(name: str) -> str:
    """A preset's passes over its first chunks: noise levels, readable frames@positions."""
    config = config_of(name)
    memory, chunk = config.memory, config.model.chunk_latent_frames
    schedule, table = build_schedule(config.schedule), memory.table(10_000)
    width, height = config.frame_size
    clip = f"{width}x{height} at {config.playback_fps:g} fps, chunks of {chunk}"
    lines = [f"{name}: {config.model.path}, {clip}, {memory.policy} of {table.capacity}"]
    for number in range(CHUNKS[chunk]):
        start = number * chunk
        table.evict(chunk)
        table.append_chunk(start, list(range(start, start + chunk)), [])
        sigmas = list(schedule_of(schedule, number).sigmas)
        passes = [*(Pass(step) for step in range(len(sigmas))), Pass(len(sigmas), commit=True)]
        reads = [
            [(each.slot.frame, each.position) for each in table.visible_slots(pass_, False)]
            for pass_ in passes
        ]
        lines.append(line(number, sigmas, reads))
        table.commit(admitted=False)
    return "\n".join(shortened(lines, chunk))


def line(number: int, sigmas: list[float], reads: list[list[tuple[int, int]]]) -> str:
    """What the passes of a chunk read, each once: `15-23@12-20` are frames and their positions."""
    passes = [*(f"{1000 * sigma:.4g}" for sigma in sigmas), "commit"]
    same = [[p for p, read in zip(passes, reads, strict=True) if read == one] for one in reads]
    listed = dict.fromkeys(
        f"{' '.join(p)} read {runs(r)}" for p, r in zip(same, reads, strict=True)
    )
    return f"  chunk {number + 1}: {'; '.join(listed)}"


def runs(read: list[tuple[int, int]]) -> str:
    """Frames and positions, neighbours in both taken together."""
    found: list[list[tuple[int, int]]] = []
    for frame, position in read:
        if found and found[-1][-1] == (frame - 1, position - 1):
            found[-1].append((frame, position))
        else:
            found.append([(frame, position)])
    return " ".join(f"{span(run, 0)}@{span(run, 1)}" for run in found)


def span(run: list[tuple[int, int]], which: int) -> str:
    first, last = run[0][which], run[-1][which]
    return str(first) if first == last else f"{first}-{last}"


def shortened(lines: list[str], chunk: int) -> list[str]:
    """The first eight chunks, and of single frames those around the last position too."""
    return lines[:9] if chunk > 1 else [*lines[:9], "  ...", *lines[-6:]]


def expected(name: str, system: Released) -> str:
    """The same by the description of the system."""
    clip = f"832x480 at 16 fps, chunks of {system.chunk}, window of {system.most}"
    lines = [f"{name}: {WEIGHTS[name]}, {clip}"]
    for number in range(CHUNKS[system.chunk]):
        sigmas = system.sigmas(number)
        reads = [system.read(number, commit=False)] * len(sigmas)
        lines.append(line(number, sigmas, [*reads, system.read(number, commit=True)]))
    return "\n".join(shortened(lines, system.chunk))


WEIGHTS = {
    "sgf": "JunhaoZhuang/Self_Gradient_Forcing/chunkwise/ar/model.pt",
    "sgf-frame": "JunhaoZhuang/Self_Gradient_Forcing/framewise/ar/model.pt",
    "sgf-plus": "ZihanSu/Self_Gradient_Forcing_Plus/chunkwise/model.pt",
    "sgf-plus-frame": "ZihanSu/Self_Gradient_Forcing_Plus/framewise/model.pt",
    "causal-forcing-plus-1step": "zhuhz22/Causal-Forcing/causal-forcing++/framewise-1step.pt",
    "causal-forcing-plus-2step": "zhuhz22/Causal-Forcing/causal-forcing++/framewise-2step.pt",
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_preset_reads_what_its_description_says(name: str) -> None:
    assert described(name) == expected(name, RELEASED[name])


def test_first_chunks_of_every_preset(golden_text: Callable[[str, str], None]) -> None:
    golden_text("presets.txt", "\n\n".join(map(described, RELEASED)) + "\n")


class Drawn:
    """Noise that both sides take."""

    def __init__(self, chunk: int, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.shape = (1, chunk, SIZES.in_dim, 2 * GRID[0], 2 * GRID[1])

    def draw(self, chunk: int, step: int, shape: tuple[int, ...] = ()) -> Tensor:
        seed = torch.Generator().manual_seed(100 * chunk + step)
        return torch.randn(self.shape, generator=seed).to(self.dtype)


def generators(name: str, dtype: torch.dtype) -> Generator:
    """Random weights; those of SGF+ have a second set."""
    generator = random_generator(SIZES).to(dtype)
    if "plus" in name and "sgf" in name:
        generator.writer = random_generator(SIZES, seed=1).to(dtype)
    return generator


def rolled(
    config: RenderConfig, generator: Generator, text: Tensor, *, backend: str, chunks: int
) -> Tensor:
    """A clip by cfgen: [F, C, H, W]."""
    policy, chunk = config.memory, config.model.chunk_latent_frames
    pool = KVCache(
        SIZES.num_layers,
        pages_of(policy, chunks * chunk),
        (1, GRID[0] * GRID[1], SIZES.num_heads, SIZES.head_dim),
        dtype=text.dtype,
        device=torch.device("cpu"),
    )
    frames = {
        "latent_frames": chunks * chunk,
        "head_dim": SIZES.head_dim,
        "grid": GRID,
        "chunk": chunk,
    }
    memory = build_memory(policy, pool, build_ops(backend), **frames)
    schedule, noise = build_schedule(config.schedule), Drawn(chunk, text.dtype)
    opening = ChunkDenoiser(generator, schedule.opening)
    usual = ChunkDenoiser(generator, schedule)
    run = Rollout(usual, memory, noise, shape=noise.shape, opening=opening)
    prompt = generator.condition(text[None])
    return torch.cat([each.latents[0] for each in run.chunks(range(chunks), prompt)])


def by_description(system: Released, generator: Generator, text: Tensor, *, chunks: int) -> Tensor:
    """The same clip without cfgen."""
    weights = {n: t.detach().double() for n, t in generator.state_dict().items()}
    second = {n.removeprefix("writer."): t for n, t in weights.items() if n.startswith("writer.")}
    first = {n: t for n, t in weights.items() if not n.startswith("writer.")}
    noise = Drawn(system.chunk)
    clip = Clip(
        system,
        first,
        second or first,
        SIZES.num_heads,
        text.double(),
        lambda chunk, step: noise.draw(chunk, step)[0],
    )
    return torch.cat([clip.chunk(number) for number in range(chunks)])


def error_of(
    name: str, system: Released, dtype: torch.dtype, backend: str = "torch", **settings: str
) -> float:
    """The largest difference of latents, whose standard deviation is told by `spread`."""
    config = config_of(name, **{key.replace("__", "."): text for key, text in settings.items()})
    generator = generators(name, dtype)
    text = torch.randn(SIZES.text_len, SIZES.text_dim, generator=torch.Generator().manual_seed(7))
    chunks = CHUNKS[system.chunk]
    with torch.inference_mode():
        ours = rolled(config, generator, text.to(dtype), backend=backend, chunks=chunks)
        theirs = by_description(system, generator, text, chunks=chunks)
    assert 0.3 < float(theirs.std()) < 10
    return float((ours.double() - theirs).abs().max())


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", RELEASED)
def test_a_preset_makes_what_its_description_says(name: str, backend: str) -> None:
    assert error_of(name, RELEASED[name], torch.float32, backend) < FLOAT32


@pytest.mark.parametrize("name", ["sgf-plus", "causal-forcing-plus-2step"])
def test_a_preset_is_exact_in_float64(name: str) -> None:
    assert error_of(name, RELEASED[name], torch.float64) < FLOAT64


@pytest.mark.parametrize(("name", "newest"), [("sgf", 9), ("sgf", 4), ("sgf-plus-frame", 7)])
def test_a_commit_pass_that_reads_the_newest(name: str, newest: int) -> None:
    system = dataclasses.replace(RELEASED[name], newest=newest)
    reads = {"memory__commit_reads": f"newest:{newest}"}
    assert error_of(name, system, torch.float32, **reads) < FLOAT32
    assert error_of(name, RELEASED[name], torch.float32, **reads) > 100 * FLOAT32


RECENCY = {
    "self-forcing": (Discounted(3, 3, 24, own), {}),
    "self-forcing, newest": (
        Discounted(3, 3, 24, own, newest=21),
        {"memory__commit_reads": "newest:21"},
    ),
    "sgf": (
        Discounted(3, 3, 21, top, newest=18),
        {
            "memory__size": "21",
            "memory__positions": "top",
            "memory__commit_reads": "newest:18",
        },
    ),
}


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("case", RECENCY)
def test_history_is_discounted_as_described(case: str, backend: str) -> None:
    system, more = RECENCY[case]
    settings = {"memory__policy": "recency", **more}
    name = case.partition(",")[0]
    assert error_of(name, system, torch.float32, backend, **settings) < FLOAT32
    settings["memory__strength"] = "0"
    assert error_of(name, system, torch.float32, backend, **settings) > 100 * FLOAT32


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("size", [120, 15])
def test_history_is_chosen_as_described(size: int, backend: str) -> None:
    system = Relaxed(3, 2, size, own)
    settings = {"memory__policy": "relax", "memory__size": str(size)}
    assert error_of("self-forcing", system, torch.float32, backend, **settings) < FLOAT32
    for other in ({"memory__redundancy": "0"}, {"memory__candidates": "1"}):
        wrong = error_of("self-forcing", system, torch.float32, backend, **settings, **other)
        assert wrong > 100 * FLOAT32


MISTAKES = {
    "positions of slots": ("sgf", {"memory__positions": "relative"}),
    "positions of the clip": ("sgf", {"memory__positions": "absolute"}),
    "one position short": ("sgf", {"memory__trained": "20"}),
    "no sink": ("sgf-frame", {"memory__sink": "0"}),
    "window one short": ("sgf-frame", {"memory__size": "20"}),
    "first chunk as the others": ("causal-forcing-plus-2step", {"schedule__first_timesteps": "[]"}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(mistake: str) -> None:
    name, settings = MISTAKES[mistake]
    assert error_of(name, RELEASED[name], torch.float32, **settings) > 1000 * FLOAT32


def test_weights_of_the_other_role_are_seen() -> None:
    """SGF+ with its denoising weights in commit passes is another model."""
    system, generator = RELEASED["sgf-plus"], generators("sgf-plus", torch.float32)
    text = torch.zeros(SIZES.text_len, SIZES.text_dim)
    with torch.inference_mode():
        right = by_description(system, generator, text, chunks=3)
        generator.writer = None
        wrong = rolled(config_of("sgf-plus"), generator, text, backend="torch", chunks=3)
    assert float((right - wrong).abs().max()) > 1000 * FLOAT32
