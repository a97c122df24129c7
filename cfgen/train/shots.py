"""Films of one family as a rollout reads them: which shot a chunk belongs to, and its captions.

Axis letters: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cfgen.model.generator import Conditioning, Generator
from cfgen.model.text_encoder import TextEncoder
from cfgen.train.film_world.latents import CHUNK_LATENTS, FilmBatch
from cfgen.train.film_world.world import Film


def shot_by_chunk(film: Film) -> list[int]:
    """The shot of each chunk."""
    return [i for i, shot in enumerate(film.shots) for _ in range(shot.chunks)]


def shot_starts(film: Film) -> frozenset[int]:
    """The chunks that begin a shot."""
    shots = shot_by_chunk(film)
    return frozenset(c for c, shot in enumerate(shots) if c == 0 or shots[c - 1] != shot)


def choose_chunks(
    batch: FilmBatch,
    starts: frozenset[int],
    count: int,
    rng: np.random.Generator,
    *,
    among: range | None = None,
) -> frozenset[int]:
    """Draw the chunks of a batch that are denoised: returns and starts of shots most often.

    Args:
        batch: films of one family.
        starts: chunks that begin a shot.
        count: chunks to draw, fewer if there are not as many.
        rng: what is drawn by.
        among: chunks that may be drawn; without it all.
    """
    chunks = batch.latents.shape[1] // CHUNK_LATENTS
    returns = torch.unflatten(batch.returns, 1, (chunks, -1)).mean((0, 2, 3, 4)).tolist()
    chances = np.array([1 + 2 * (c in starts) + 12 * share for c, share in enumerate(returns)])
    if among is not None:
        chances = np.where(np.isin(np.arange(chunks), among), chances, 0)
    count = min(count, int(np.count_nonzero(chances)))
    chosen = rng.choice(chunks, count, replace=False, p=chances / chances.sum())
    return frozenset(int(c) for c in chosen)


def spans(chunks: int, *, given: bool) -> list[tuple[int, slice]]:
    """Latent frames of each chunk, with its number; a given first one stands by itself."""
    whole = [
        (chunk, slice(CHUNK_LATENTS * chunk, CHUNK_LATENTS * (chunk + 1)))
        for chunk in range(chunks)
    ]
    return [(0, slice(0, 1)), (0, slice(1, CHUNK_LATENTS)), *whole[1:]] if given else whole


def prompts_by_chunk(
    films: Sequence[Film],
    words: Callable[[int, int], str],
    generator: Generator,
    encoder: TextEncoder,
) -> list[Conditioning]:
    """What the generator reads in each chunk: prompts of all films, B of them.

    Args:
        films: of one family.
        words: the prompt of a film, by its place in `films`, and of a shot.
        generator: embeds the prompts.
        encoder: encodes them, all at once.
    """
    return prompts_by_shot(shot_by_chunk(films[0]), len(films), words, generator, encoder)


def prompts_by_shot(
    shots: Sequence[int],
    films: int,
    words: Callable[[int, int], str],
    generator: Generator,
    encoder: TextEncoder,
) -> list[Conditioning]:
    """The same for any films that are cut at the same places; `shots` is the shot of each chunk."""
    texts = [words(film, shot) for shot in range(max(shots) + 1) for film in range(films)]
    by_shot = split(generator.condition(encoder(texts)), films)
    return [by_shot[shot] for shot in shots]


def split(conditioning: Conditioning, batch: int) -> list[Conditioning]:
    """Prompts [n * batch, ...] as n conditionings of `batch` each."""
    bias = conditioning.bias
    count = len(conditioning.keys_values[0][0]) // batch
    spans = [slice(i * batch, (i + 1) * batch) for i in range(count)]
    return [
        Conditioning(
            tuple((k[span], v[span]) for k, v in conditioning.keys_values),
            None if bias is None else bias[span],
        )
        for span in spans
    ]


def repeated(conditioning: Conditioning, times: int) -> Conditioning:
    """The same prompts `times` over along the batch."""
    return Conditioning(
        tuple(
            (k.repeat(times, 1, 1, 1), v.repeat(times, 1, 1, 1))
            for k, v in conditioning.keys_values
        ),
        None if conditioning.bias is None else conditioning.bias.repeat(times, 1),
    )
