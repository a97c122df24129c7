"""Given latents: the published code's extension of a film, and chunks [1, 3, 3, ...]."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfgen.memory.window import WindowTable
from cfgen.rollout.loop import Chunk
from cfgen.rollout.schedule import KeyedNoise, Noise, ReferenceNoise
from tests.golden.cases import CHUNK, STEPS, Case, Traced, load_case, paged, rolling, tiny_generator

FLOAT32 = 2e-5


class RecordedFrom:
    """The noise in the golden file, whose chunks are counted behind the given ones."""

    def __init__(self, case: Case, first: int) -> None:
        self._tensors, self._first = case.tensors, first

    def draw(self, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        made = chunk - self._first
        if step == 0:
            return self._tensors["noise"][:, 3 * made : 3 * made + 3]
        return self._tensors["renoise"][made, step - 1][None]


def extended(given: list[Tensor], chunks: int, noise: Noise, text: Tensor, steps=STEPS) -> Tensor:
    """Latents of a film that begins with given chunks, [1, F, 16, 8, 10]."""
    generator, memory = tiny_generator(), paged(lambda: WindowTable(21))
    found = []
    with torch.inference_mode():
        run = rolling(generator, memory, steps, noise, shape=CHUNK)
        prompt = generator.condition(text)
        for index, latents in enumerate(given):
            run.start_given(Chunk(index, latents), prompt)
            found.append(run.finish())
        found += run.chunks(range(len(given), len(given) + chunks), prompt)
    return torch.cat([chunk.latents for chunk in found], 1)


@pytest.mark.parametrize("source", ["recorded", "seed"])
def test_a_film_goes_on_from_given_latents_as_published(source: str) -> None:
    case = load_case("sf_extend")
    given = list(case.tensors["initial_latent"].split(3, 1))
    shape, seed = tuple(case.tensors["noise"].shape), case.facts["seeds"]["noise"]
    noise: Noise = RecordedFrom(case, len(given))
    if source == "seed":
        noise = ReferenceNoise(seed, shape, draws=3, first=len(given))
    steps = Traced(STEPS)
    latents = extended(given, case.chunks, noise, case.tensors["text/A"], steps)
    assert float((latents - case.tensors["latents"]).abs().max()) < FLOAT32
    traced = [
        steps.x0[4 * chunk + step] for chunk in case.facts["trace_chunks"] for step in range(4)
    ]
    expected = case.tensors["trace/x0"].flatten(0, 1)
    assert float((torch.cat(traced) - expected).abs().max()) < FLOAT32


def test_one_given_frame_is_a_chunk_and_all_that_follows_reads_it() -> None:
    """[1, 3, 3]: as a film in chunks of one, two and three frames would read its first frame."""
    case = load_case("sf_extend")
    picture, text = case.tensors["initial_latent"][:, :1], case.tensors["text/A"]
    latents = extended([picture], 2, KeyedNoise(1), text)
    assert latents.shape[1] == 7
    assert torch.equal(latents[:, :1], picture)
    other = extended([-picture], 2, KeyedNoise(1), text)
    moved = (other - latents).flatten(2).abs().amax(-1)[0]
    assert bool((moved > 1e-3).all())
