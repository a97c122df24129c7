"""A tiny student and its rollouts under every policy that can be replayed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cfgen.memory.autograd import GraphCache
from cfgen.memory.build import build_memory
from cfgen.memory.paged import PagedMemory
from cfgen.memory.policy import Policy
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.memory.window import FullMemory, WindowMemory
from cfgen.model.generator import Conditioning, Generator, WanConfig
from cfgen.ops.select import TORCH
from cfgen.rollout.schedule import FewStepSchedule, KeyedNoise
from cfgen.train.context_forcing.self_rollout import ChunkRecord, Committed, self_rollout

CHUNKS, FRAMES, BATCH = 9, 3, 2
SCHEDULE = FewStepSchedule((1.0, 0.9, 0.75, 0.5))
SLOW_FAST = {"sink": 3, "slow": 3, "fast": 6, "tau": 0.9999999}
POLICIES: dict[str, Policy] = {
    "window": WindowMemory(size=12, sink=3),
    "window, commit reads fast": WindowMemory(size=12, sink=3, commit_reads="fast"),
    "window without sink": WindowMemory(size=6, sink=0),
    "window, absolute positions": WindowMemory(size=9, sink=3, positions="absolute"),
    "infinity-rope": WindowMemory(size=6, sink=1),
    "full": FullMemory(),
    "slow_fast paper": SlowFastMemory(variant="paper", interval=2, min_gap=0, **SLOW_FAST),
    "slow_fast cfgen": SlowFastMemory(variant="cfgen", **SLOW_FAST),
    "slow_fast, whole chunks": SlowFastMemory(admits="chunk", **SLOW_FAST),
    "slow_fast, layers together": SlowFastMemory(admission_layers=(0, 2), **SLOW_FAST),
    "slow_fast, commit reads fast": SlowFastMemory(commit_reads="fast", **SLOW_FAST),
}


def tiny_generator(seed: int = 0) -> Generator:
    """In float64, no weight of it zero."""
    torch.manual_seed(seed)
    config = WanConfig(
        dim=32, ffn_dim=24, num_heads=2, num_layers=3, in_dim=2, out_dim=2, text_len=5, text_dim=4
    )
    made = Generator(config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.3)
    return made


def prompts(generator: Generator) -> list[Conditioning]:
    """Another prompt every three chunks."""
    texts = torch.randn(CHUNKS // 3, BATCH, 5, 4, generator=torch.Generator().manual_seed(3))
    shots = [generator.condition(text.double()) for text in texts]
    return [shots[chunk // 3] for chunk in range(CHUNKS)]


def memory_of(generator: Generator, policy: Policy) -> PagedMemory:
    g = generator.geometry
    return build_memory(
        policy,
        GraphCache(g.num_layers),
        TORCH,
        latent_frames=CHUNKS * FRAMES,
        head_dim=g.head_dim,
        grid=g.grid(4, 6),
    )


def draw(chunk: int, step: int) -> Tensor:
    return KeyedNoise(7).draw(chunk, step, (BATCH, FRAMES, 2, 4, 6)).double()


def rolled_out(
    generator: Generator, policy: Policy, exits: Sequence[int], committed: Committed = "exit"
) -> list[ChunkRecord]:
    memory = memory_of(generator, policy)
    texts = prompts(generator)
    return self_rollout(generator, memory, SCHEDULE, texts, draw, exits, committed=committed)
