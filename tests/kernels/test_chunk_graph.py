"""A chunk's passes hold nothing that the host decides: recorded once, they go for every chunk.

There may be no GPU to capture on, so the recording is a tape of PyTorch's operations and of kernel
launches, played again on the very same tensors. Like a CUDA graph it knows no Python: what changed
from chunk to chunk must stand in tensors that did not move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cfgen.memory.compressed_table import CompressedTable, Level
from cfgen.memory.page_pool import KVCache, Storage
from cfgen.memory.page_sizes import SmallPages
from cfgen.memory.protocols import Table
from cfgen.memory.recency import RecencyTable
from cfgen.memory.relax import RelaxTable
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.memory.slow_fast_release import ReleaseTable
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator, WanConfig
from cfgen.ops.reference import Rope
from cfgen.ops.select import TORCH, Ops, _triton
from cfgen.rollout.cuda_graph import ChunkGraph
from cfgen.rollout.loop import Chunk, ChunkDenoiser, ChunkFn, Guidance, Rollout
from cfgen.rollout.schedule import FewStepSchedule, KeyedNoise
from cfgen.rollout.transitions import enter
from tests.kernels.tape import Tape, on_tape
from tests.strategies import memory_of, random_generator

SMALL = WanConfig(
    dim=64, ffn_dim=48, num_heads=2, num_layers=2, in_dim=3, out_dim=3, text_len=9, text_dim=5
)
SHAPE = (1, 1, 3, 4, 6)
CHUNKS = 7
SIZES = {"sink": 1, "slow": 1, "fast": 2}
TABLES: dict[str, Callable[[], Table]] = {
    "release": lambda: ReleaseTable(**SIZES),
    "slow_fast": lambda: SlowFastTable(**SIZES),
    "paper, reads fast": lambda: SlowFastTable(**SIZES, against="previous", commit_reads="fast"),
    "together": lambda: SlowFastTable(**SIZES),
    "window": lambda: WindowTable(4, sink=1),
    "relax": lambda: RelaxTable(6, sink=1),
    "recency": lambda: RecencyTable(6, sink=1, reads=4, reach=2, commit_reads="newest:5"),
}
COMPRESSED: dict[str, Callable[[], Table]] = {
    "far": lambda: CompressedTable([Level(2, (1, 1, 1)), Level(None, (1, 4, 4))]),
    "framepack": lambda: CompressedTable(
        [Level(1, (1, 1, 1)), Level(2, (2, 2, 2)), Level(4, (4, 4, 4))], sink=1, reordered=True
    ),
}
TAUS = {"paper, reads fast": 1.0, "together": 0.99}
"""Where 0.9 admits nothing."""


def capture(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    tape = Tape()
    with tape:
        out = work()
    tape.undo()
    return out, tape.play


def taped(passes: ChunkFn) -> ChunkFn:
    return ChunkGraph(passes, capture)


PROMPTS = {
    "one": lambda text: text,
    "two": lambda text: -text,
    "another length": lambda text: text.flip(1),
}
"""What the second half of a clip is told, of what the first half is."""


def rolled(
    generator: Generator,
    table: Callable[[], Table],
    ops: Ops,
    *,
    graph: Callable[[ChunkFn], ChunkFn] | None = None,
    storage: Storage = "auto",
    place: torch.device | None = None,
    guided: bool = False,
    prompts: str = "one",
    tau: float = 0.9,
    admission_layers: tuple[int, ...] = (),
    given: int = 0,
    transition: str = "continue",
) -> tuple[Tensor, list[list[int]], int]:
    """Latents of a clip, which frames layers hold after each chunk, and key frames admitted."""
    generator.compute_with(ops)
    tables = [table() for _ in range(SMALL.num_layers)]
    compresses = isinstance(tables[0], CompressedTable)
    slots = tables[0].capacity + 9 * compresses
    pool = KVCache(
        SMALL.num_layers,
        tables[0].capacity + 1,
        (1, 6, SMALL.num_heads, SMALL.head_dim),
        small=[SmallPages(2, 9, 2), SmallPages(4, 9, 1)] if compresses else (),
        dtype=torch.float32,
        device=generator.device,
        place=place,
        storage=storage,
        write=ops.write_pages,
    )
    memory = memory_of(
        tables,
        pool,
        ops=ops,
        rope=Rope(32),
        grid=(2, 3),
        tau=tau,
        admission_layers=admission_layers,
        recaches=slots,
        slots=slots,
        pooled=compresses,
    )
    text = torch.randn(1, 9, 5, generator=torch.Generator().manual_seed(3))
    text[:, 4:] = 0
    text = text.to(generator.device)
    held, latents, admitted = [], [], 0

    with torch.inference_mode():
        guidance = Guidance(generator.condition(text * 0), 2.0) if guided else None
        schedule = FewStepSchedule.from_timesteps((1000, 500))
        rolling = Rollout(
            ChunkDenoiser(generator, schedule, guidance),
            memory,
            KeyedNoise(5),
            shape=SHAPE,
            capture=graph,
        )
        first, other = (generator.condition(each) for each in (text, PROMPTS[prompts](text)))
        if given:
            beginning = KeyedNoise(7).draw(0, 0, (1, given, *SHAPE[2:]))
            rolling.start_given(Chunk(0, beginning), first)
            latents.append(rolling.finish().latents)
        for index in range(len(latents), CHUNKS):
            if index == CHUNKS // 2 + 1:
                enter(generator, memory, transition, other)
            rolling.start(index, other if index >= CHUNKS // 2 else first)
            latents.append(rolling.finish().latents)
            held += [memory.frames(layer) for layer in range(SMALL.num_layers)]
            admitted += int(memory.figures()["admitted"])
    return torch.cat(latents, 1), held, admitted


@pytest.mark.parametrize(
    ("name", "storage", "guided"),
    [
        ("release", "int8", False),
        ("slow_fast", "auto", True),
        ("paper, reads fast", "auto", False),
        ("together", "auto", False),
        ("window", "int8", False),
    ],
)
def test_a_recorded_chunk_goes_for_every_chunk(name: str, storage: Storage, guided: bool) -> None:
    generator = random_generator(SMALL)
    film = {"storage": storage, "guided": guided, "tau": TAUS.get(name, 0.9)}
    film["admission_layers"] = (0, 1) if name == "together" else ()
    film["prompts"] = "another length" if guided else "two" if storage == "int8" else "one"
    plain = rolled(generator, TABLES[name], TORCH, **film)
    graph = rolled(generator, TABLES[name], on_tape(_triton()), graph=taped, **film)
    assert graph[1:] == plain[1:]
    assert 0 < plain[2] < CHUNKS * SMALL.num_layers or name == "window"
    error = (graph[0] - plain[0]).norm() / plain[0].norm()
    assert float(error) < (1e-4 if storage == "auto" else 2e-2)
    assert float((plain[0][:, -1:] - plain[0][:, -2:-1]).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["release", "slow_fast", "window"])
def test_a_given_chunk_of_another_size_comes_before_the_recorded_ones(name: str) -> None:
    generator = random_generator(SMALL)
    plain = rolled(generator, TABLES[name], TORCH, given=2)
    graph = rolled(generator, TABLES[name], on_tape(_triton()), graph=taped, given=2)
    assert graph[1:] == plain[1:]
    assert plain[0].shape[1] == 2 + CHUNKS - 1
    assert float((graph[0] - plain[0]).norm() / plain[0].norm()) < 1e-4


@pytest.mark.parametrize("transition", ["recache", "flush", "cut", "fresh"])
@pytest.mark.parametrize("name", ["release", "slow_fast", "window"])
def test_a_recorded_chunk_goes_on_after_a_shot_began(name: str, transition: str) -> None:
    """What memory does between two chunks leaves everything where the recording finds it."""
    generator = random_generator(SMALL)
    plain = rolled(generator, TABLES[name], TORCH, prompts="two", transition=transition)
    ops = on_tape(_triton())
    graph = rolled(generator, TABLES[name], ops, graph=taped, prompts="two", transition=transition)
    assert graph[1:] == plain[1:]
    assert float((graph[0] - plain[0]).norm() / plain[0].norm()) < 1e-4
    same = rolled(generator, TABLES[name], TORCH, prompts="two")
    assert torch.equal(same[0][:, : CHUNKS // 2 + 1], plain[0][:, : CHUNKS // 2 + 1])
    later = slice(CHUNKS // 2 + 1, None)
    # Of so small a memory, a flush drops nothing that the next chunk would not.
    assert torch.equal(same[0][:, later], plain[0][:, later]) == (transition == "flush")


@pytest.mark.parametrize("transition", ["continue", "recache", "cut"])
@pytest.mark.parametrize("name", COMPRESSED)
def test_a_past_is_encoded_again_between_recorded_chunks(name: str, transition: str) -> None:
    """It is no part of the recording, and leaves everything where that finds it."""
    generator = random_generator(replace(SMALL, larger_patches=(2, 4)))
    film = {"prompts": "two", "transition": transition}
    plain = rolled(generator, COMPRESSED[name], TORCH, **film)
    graph = rolled(generator, COMPRESSED[name], on_tape(_triton()), graph=taped, **film)
    assert graph[1:] == plain[1:]
    assert float((graph[0] - plain[0]).norm() / plain[0].norm()) < 1e-4


def test_another_prompt_makes_another_chunk() -> None:
    one, two = (
        rolled(random_generator(SMALL), TABLES["window"], TORCH, prompts=name)[0]
        for name in ("one", "two")
    )
    assert torch.equal(one[:, :1], two[:, :1])
    assert not torch.equal(one[:, -1:], two[:, -1:])


def test_the_tape_refuses_a_chunk_that_waits_for_the_device() -> None:
    with pytest.raises(AssertionError, match="the host waits"):
        rolled(random_generator(SMALL), TABLES["release"], TORCH, graph=taped)


def test_the_tape_knows_no_python() -> None:
    """What is not in a tensor stays as it was recorded: so the test above can fail."""
    offset, x = 1.0, torch.zeros(3)
    out, again = capture(lambda: x + offset)
    offset = 2.0
    x.fill_(5)
    again()
    assert out.tolist() == [6.0, 6.0, 6.0]
