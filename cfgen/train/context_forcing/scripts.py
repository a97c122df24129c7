"""What a student's rollouts are to show: prompts by shot, of the film world or of a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cfgen.train.film_world.captions import caption
from cfgen.train.film_world.latents import film_of
from cfgen.train.film_world.sampling import sample_structure
from cfgen.train.shots import shot_by_chunk, shot_starts


@dataclass(frozen=True, slots=True)
class Script:
    """Prompts of films that are cut at the same places.

    Attributes:
        prompts: for each shot, one of each film.
        shots: the shot of each chunk.
        starts: chunks that begin a shot.
    """

    prompts: Sequence[Sequence[str]]
    shots: Sequence[int]
    starts: frozenset[int]


class Scripts(Protocol):
    """Where scripts come from."""

    def draw(self, rng: np.random.Generator, films: int, chunks: int) -> Script:
        """The script of so many films of so many chunks."""


class FilmWorldScripts:
    """Films of the film world: shots that return, subjects that come and go. No picture is made."""

    def draw(self, rng: np.random.Generator, films: int, chunks: int) -> Script:
        """See `Scripts`."""
        family = int(rng.integers(2**31))
        structure = sample_structure(family, chunks)
        drawn = [film_of(structure, family, member) for member in range(films)]
        prompts = [
            [caption(film, shot, int(rng.integers(2**62))) for film in drawn]
            for shot in range(len(drawn[0].shots))
        ]
        return Script(prompts, shot_by_chunk(drawn[0]), shot_starts(drawn[0]))


class PromptScripts:
    """Prompts of a list, one a film."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self._prompts = prompts

    def draw(self, rng: np.random.Generator, films: int, chunks: int) -> Script:
        """See `Scripts`."""
        chosen = [self._prompts[int(i)] for i in rng.integers(len(self._prompts), size=films)]
        return Script([chosen], [0] * chunks, frozenset({0}))
