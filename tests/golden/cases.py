"""The recorded cases, and what is needed to play them through our own classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from cfgen.memory.page_pool import KVCache
from cfgen.memory.paged import PagedMemory
from cfgen.memory.protocols import Pass, Table
from cfgen.memory.transitions import Transition
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator, WanConfig
from cfgen.ops.reference import Rope
from cfgen.ops.select import build_ops
from cfgen.rollout.loop import ChunkDenoiser, Rollout
from cfgen.rollout.schedule import FewStepSchedule
from cfgen.rollout.transitions import enter
from tests.strategies import memory_of

FOLDER = Path(__file__).parent
TINY = WanConfig(dim=96, ffn_dim=192, num_heads=3, num_layers=3, text_len=16, text_dim=32)
GRID = (4, 5)
CHUNK = (1, 3, 16, 8, 10)
CPU = torch.device("cpu")
STEPS = FewStepSchedule.from_timesteps((1000, 750, 500, 250))

Switch = tuple[Callable[[], Table], int, Transition]

TABLES: dict[str, Callable[[], Table]] = {
    "sf_full": lambda: WindowTable(21),
    "ll_plain": lambda: WindowTable(12, sink=3),
    "ll_infinity": lambda: WindowTable(12, sink=3, positions="relative"),
}
"""The memory of each causal case."""

SWITCHES: dict[str, Switch] = {
    "ll_switch_global_sink": (TABLES["ll_plain"], 5, "recache"),
    "ir_flush": (lambda: WindowTable(6, sink=1, positions="relative"), 4, "flush"),
}
"""The cases in which prompt A gives way to B: memory, first chunk of B, how it begins."""


@dataclass(frozen=True)
class Case:
    tensors: dict[str, Tensor]
    facts: dict

    @property
    def chunks(self) -> int:
        return self.facts["chunks"]


@dataclass
class Played:
    latents: Tensor
    x0: list[Tensor]
    memory: PagedMemory = field(repr=False)

    def error(self, case: Case) -> float:
        return float((self.latents - case.tensors["latents"]).abs().max())


class Recorded:
    """The noise in a golden file."""

    def __init__(self, case: Case) -> None:
        self._tensors = case.tensors

    def draw(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        if step == 0:
            return self._tensors["noise"][:, 3 * chunk : 3 * chunk + 3]
        return self._tensors["renoise"][chunk, step - 1][None]


class Traced:
    """A schedule that keeps every predicted clean chunk."""

    def __init__(self, schedule: FewStepSchedule) -> None:
        self._schedule = schedule
        self.sigmas, self.draws, self.next = schedule.sigmas, schedule.draws, schedule.next
        self.renoise = schedule.renoise
        self.x0: list[Tensor] = []

    def clean(self, x: Tensor, flow: Tensor, step: int) -> Tensor:
        self.x0.append(self._schedule.clean(x, flow, step))
        return self.x0[-1]


def load_case(name: str) -> Case:
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["golden"])
    return Case(load_file(path), facts)


def tiny_generator() -> Generator:
    generator = Generator(TINY)
    generator.load_state_dict(load_file(FOLDER / "tiny_wan.safetensors"))
    return generator.eval()


def paged(
    table: Callable[[], Table],
    *,
    backend: str = "torch",
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    rope: Rope | None = None,
) -> PagedMemory:
    tables = [table() for _ in range(TINY.num_layers)]
    shape = (batch, GRID[0] * GRID[1], TINY.num_heads, TINY.head_dim)
    pool = KVCache(TINY.num_layers, tables[0].capacity + 1, shape, dtype=dtype, device=CPU)
    return memory_of(
        tables,
        pool,
        ops=build_ops(backend),
        rope=rope or Rope(32),
        grid=GRID,
        recaches=tables[0].capacity,
    )


def rolling(generator, memory, schedule, noise, *, shape, guidance=None) -> Rollout:
    """A rollout; `generator` and `memory` may be anything that is called like them."""
    return Rollout(ChunkDenoiser(generator, schedule, guidance), memory, noise, shape=shape)


def play(
    case: Case, generator, memory: PagedMemory, *, noise=None, text=None, steps=STEPS
) -> Played:
    """Roll a case out; `generator` may be anything that is called like one."""
    text = case.tensors["text/A"] if text is None else text
    schedule = Traced(steps)
    with torch.inference_mode():
        run = rolling(generator, memory, schedule, noise or Recorded(case), shape=CHUNK)
        chunks = run.chunks(range(case.chunks), generator.condition(text))
        latents = torch.cat([chunk.latents for chunk in chunks], 1)
    return Played(latents, schedule.x0, memory)


def switch(case: Case, generator, memory: PagedMemory, at: int, transition: Transition) -> Played:
    """Roll a case out whose prompt changes before chunk `at`."""
    schedule = Traced(STEPS)
    with torch.inference_mode():
        run = rolling(generator, memory, schedule, Recorded(case), shape=CHUNK)
        old, new = (generator.condition(case.tensors[f"text/{name}"]) for name in "AB")
        chunks = [*run.chunks(range(at), old)]
        enter(generator, memory, transition, new)
        chunks += run.chunks(range(at, case.chunks), new)
    return Played(torch.cat([chunk.latents for chunk in chunks], 1), schedule.x0, memory)


def recorded_config(layout: str) -> dict:
    """The config.json of the recorded weights, in the keys of `original` or `diffusers`."""
    with safe_open(FOLDER / f"wan_bidir_{layout}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


def forward(generator, inputs: Mapping[str, Tensor], *, backend: str = "torch") -> Tensor:
    """The flow of the bidirectional case, [B, C, F, H, W], computed in the inputs' dtype."""
    x, timestep, text = (inputs[f"in/{key}"] for key in ("x", "timestep", "text"))
    memory = paged(lambda: WindowTable(5), backend=backend, batch=2, dtype=x.dtype)
    with torch.inference_mode():
        view = memory.begin(5).at(Pass(0))
        sigma = timestep.double()[:, None] / 1000
        flow = generator(x.transpose(1, 2), sigma, generator.condition(text), view)
    return flow.transpose(1, 2)
