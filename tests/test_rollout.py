"""The loop that makes chunks: its passes, its noise, what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfgen.memory.protocols import Pass
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Conditioning
from cfgen.rollout.loop import ChunkDenoiser, Guidance, Rollout
from cfgen.rollout.schedule import FewStepSchedule, KeyedNoise
from tests.golden.cases import CHUNK, STEPS, paged, rolling, tiny_generator

PROMPT = Conditioning(())
SHAPE = (1, 2, 1, 1, 1)


class Recorder:
    """A generator and a memory that write down how they are called; the flow is 1."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, x: Tensor, sigma: float, text: Conditioning, view: tuple) -> Tensor:
        assert text is PROMPT
        self.calls.append((*view, sigma, x.flatten().tolist()))
        return torch.ones_like(x)

    def begin(self, frames: int) -> Recorder:
        assert frames == SHAPE[1]
        self.calls.append(("begin",))
        return self

    def at(self, pass_: Pass) -> tuple:
        return (pass_.index, pass_.commit)

    def level(self, sigma: float) -> float:
        return sigma

    def remember(self, latents: Tensor) -> None:
        """Of the memory: nothing is committed again here."""

    def reencode(self) -> tuple[()]:
        """Of the memory: nothing is kept as fewer tokens."""
        return ()

    def commit(self, *args: object) -> None:
        """Of the generator, with what a pass takes, or of the memory, with the view."""
        if args == (self,):
            self.calls.append(("commit",))
        else:
            self(*args)


class Counted:
    """Noise that tells its chunk and step."""

    def draw(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, 10.0 * chunk + step)


def made(recorder: Recorder, schedule: FewStepSchedule, chunks: range) -> list:
    return list(
        rolling(recorder, recorder, schedule, Counted(), shape=SHAPE).chunks(chunks, PROMPT)
    )


def test_passes_of_a_chunk() -> None:
    recorder = Recorder()
    (chunk,) = made(recorder, FewStepSchedule((1.0, 0.5)), range(3, 4))
    first = 30.0
    clean = first - 1.0
    second = 0.5 * clean + 0.5 * 31.0
    clean = second - 0.5
    assert recorder.calls == [
        ("begin",),
        (0, False, 1.0, [first] * 2),
        (1, False, 0.5, [second] * 2),
        (2, True, 0.0, [clean] * 2),
        ("commit",),
    ]
    assert chunk.index == 3
    assert chunk.latents.flatten().tolist() == [clean] * 2


def test_predicted_noise_draws_only_the_start() -> None:
    recorder = Recorder()
    (chunk,) = made(recorder, FewStepSchedule((1.0, 0.5, 0.25), renoise="predicted"), range(1))
    levels = [call[3][0] for call in recorder.calls[1:-1]]
    assert levels == [0.0, -0.5, -0.75, -1.0]
    assert chunk.latents.flatten().tolist() == [-1.0] * 2


@pytest.mark.parametrize("opens", [{0}, {0, 2}])
def test_a_chunk_with_nothing_before_it_has_passes_of_its_own(opens: set[int]) -> None:
    recorder = Recorder()
    schedule = FewStepSchedule((1.0,), first=(1.0, 0.5, 0.25))
    opening = ChunkDenoiser(recorder, schedule.opening)
    captured = []

    def capture(passes):
        captured.append(passes)
        return passes

    run = Rollout(
        ChunkDenoiser(recorder, schedule),
        recorder,
        Counted(),
        shape=SHAPE,
        capture=capture,
        opening=opening,
        opens=lambda index: index in opens,
    )
    list(run.chunks(range(4), PROMPT))
    passes = [call for call in recorder.calls if len(call) > 1]
    levels = [[1.0, 0.5, 0.25, 0.0] if index in opens else [1.0, 0.0] for index in range(4)]
    assert [call[2] for call in passes] == [level for each in levels for level in each]
    indices = [index for each in levels for index in range(len(each))]
    assert [call[0] for call in passes] == indices, "the commit pass is counted after the others"
    assert opening not in captured, "what comes once is not worth a graph"


class Torn(Recorder):
    """As a recorder; the flow is 1 for the prompt and 0.25 without it."""

    def __call__(self, x: Tensor, sigma: float, text: Conditioning, view: tuple) -> Tensor:
        self.calls.append((*view, text is FREE))
        return torch.full_like(x, 0.25 if text is FREE else 1.0)


FREE = Conditioning(((torch.zeros(1), torch.zeros(1)),))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guidance_pushes_away_from_the_empty_prompt(scale: float) -> None:
    torn = Torn()
    (chunk,) = rolling(
        torn,
        torn,
        FewStepSchedule((1.0, 0.5), renoise="predicted"),
        Counted(),
        shape=SHAPE,
        guidance=Guidance(FREE, scale),
    ).chunks(range(1), PROMPT)
    assert torn.calls[1:-1] == [
        *[(step, False, free) for step in (0, 1) for free in (False, True)],
        (2, True, False),
    ]
    flow = 0.25 + scale * 0.75
    assert chunk.latents.flatten().tolist() == [-flow] * 2


def test_chunks_come_as_they_are_asked_for() -> None:
    recorder = Recorder()
    run = rolling(recorder, recorder, FewStepSchedule((1.0,)), Counted(), shape=SHAPE)
    chunks = run.chunks(range(10**9), PROMPT)
    assert next(chunks).index == 0
    assert recorder.calls.count(("commit",)) == 1
    assert next(chunks).index == 1


@pytest.fixture(scope="module")
def generator():
    return tiny_generator()


def clip(generator, chunks: int, seed: int = 4) -> list[Tensor]:
    memory = paged(lambda: WindowTable(6, sink=1, positions="relative"))
    with torch.inference_mode():
        run = rolling(generator, memory, STEPS, KeyedNoise(seed), shape=CHUNK)
        prompt = generator.condition(torch.zeros(1, 16, 32))
        return [chunk.latents for chunk in run.chunks(range(chunks), prompt)]


def test_a_longer_clip_starts_like_the_shorter_one(generator) -> None:
    short, long = clip(generator, 3), clip(generator, 5)
    assert all(torch.equal(a, b) for a, b in zip(short, long, strict=False))
    assert len(long) == 5
    assert not torch.equal(short[0], clip(generator, 1, seed=5)[0])
