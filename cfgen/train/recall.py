"""How much a generator takes from its memory, measured while it trains, in seconds.

Held-out films cut from a place C to A, away to B, and back to A. The chunk that comes back is
denoised from noise with the truth as its past, three times over: with its own past; with a past in
which A was another place (same captions, other hills and landmarks), so that slow memory alone
tells the two apart; and with A's last chunk right before it, as if the film had never left. What
memory could save is the second error less the third; what it does save is the second less the
first.

Axis letters: B batch, F latent frames, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.model.generator import Conditioning, Generator
from cfgen.model.text_encoder import TextEncoder
from cfgen.rollout.loop import predict_flow, recommit
from cfgen.train.film_world.captions import caption
from cfgen.train.film_world.latents import CHUNK_LATENTS, LatentStore, with_other_place
from cfgen.train.film_world.sampling import Structure, sample_film
from cfgen.train.film_world.world import Film
from cfgen.train.shots import prompts_by_chunk, shot_starts
from cfgen.train.training_memory import MemorySettings, TrainingAdmission, training_memory

LEVELS = (0.97, 0.8, 0.5)
"""Noise levels at which the error is measured."""

OWN, FOREIGN, NEVER_LEFT = range(3)


class RecallProbe:
    """Measures recall on a few held-out films.

    Args:
        store: encodes the films and keeps them.
        memory: sizes of slow-fast memory.
        films: how many films.
        away: chunks that the film spends at B.
    """

    def __init__(
        self, store: LatentStore, memory: MemorySettings, films: int, *, away: int = 4
    ) -> None:
        self._store, self._memory, self._count = store, memory, films
        # Two chunks of C: slow-fast memory admits nothing of the chunk that follows its sink.
        self._structure = Structure(((0, 2, "cut"), (1, 2, "cut"), (2, away, "cut"), (1, 1, "cut")))

    @torch.no_grad()
    def __call__(self, generator: Generator, encoder: TextEncoder) -> dict[str, float]:
        """Errors by past at each level, and `recall`: what is saved of what could be, at most 1."""
        films = [
            sample_film(9_000_000 + i, structure=self._structure, held_out=True)
            for i in range(self._count)
        ]
        own, foreign = (
            self._latents(films, "own"),
            self._latents([with_other_place(film, 1) for film in films], "foreign"),
        )

        def words(film: int, shot: int) -> str:
            return caption(films[film], shot, shot, complete=True)

        prompts = prompts_by_chunk(films, words, generator, encoder)
        (_, first, _), (_, here, _), (_, away, _), _ = self._structure.shots
        nothing, elsewhere = range(0), range(first + here, first + here + away)
        starts = shot_starts(films[0])
        target = own[:, -CHUNK_LATENTS:]
        errors = [
            self._errors(generator, prompts, past, target, starts, skip)
            for past, skip in ((own, nothing), (foreign, nothing), (own, elsewhere))
        ]
        figures: dict[str, float] = {}
        for i, level in enumerate(LEVELS):
            true, other, never_left = (errors[kind][i] for kind in (OWN, FOREIGN, NEVER_LEFT))
            name = f"{level:.2f}"
            figures[f"own_{name}"], figures[f"foreign_{name}"] = true, other
            figures[f"never_left_{name}"] = never_left
            figures[f"recall_{name}"] = (other - true) / max(other - never_left, 1e-6)
        return figures

    def _latents(self, films: Sequence[Film], kind: str) -> Tensor:
        names = [f"recall-{kind}-{film.chunks:02d}-{i:04d}" for i, film in enumerate(films)]
        return self._store.batch(films, names).latents

    def _errors(
        self,
        generator: Generator,
        prompts: Sequence[Conditioning],
        past: Tensor,
        target: Tensor,
        starts: frozenset[int],
        skip: range,
    ) -> list[float]:
        """Mean squared error of the flow of `target` [B, F, C, h, w] at each level after a past.

        Args:
            generator: the model.
            prompts: of each chunk.
            past: latents of a whole film, [B, F, C, h, w]; its last chunk is not read.
            target: the chunk that is denoised.
            starts: chunks that begin a shot, which slow memory admits.
            skip: chunks of the past that are left out.
        """
        m, device = self._memory, generator.device
        chunks = past.shape[1] // CHUNK_LATENTS
        admission = TrainingAdmission.oracle(starts, chunks)
        memory = training_memory(
            SlowFastMemory(sink=m.sink, slow=m.slow, fast=m.fast),
            admission,
            generator,
            (past.shape[1], past.shape[3], past.shape[4]),
        )
        for chunk in range(chunks - 1):
            if chunk in skip:
                continue
            admission.chunk = chunk
            x0 = past[:, CHUNK_LATENTS * chunk : CHUNK_LATENTS * (chunk + 1)].to(device)
            recommit(generator, memory, x0, prompts[chunk])
        view = memory.begin(CHUNK_LATENTS)
        x0 = target.to(device)
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
        found = []
        for level in LEVELS:
            x = (1 - level) * x0 + level * eps
            flow = predict_flow(generator, x, level, prompts[-1], view)
            found.append(float((flow - (eps - x0)).square().mean()))
        return found
