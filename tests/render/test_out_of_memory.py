"""Memory that runs out while frames are decoded: none is lost, and a resume decodes likewise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from cfgen.errors import BudgetError
from cfgen.model.tiled import SMALLEST
from cfgen.model.vae import State, TinyAutoencoder
from cfgen.renderer.events import Event, Warned
from cfgen.renderer.source import FrameSource, PendingFrames
from cfgen.rollout.loop import Chunk
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine
from tests.render.film import Film, MakeFilm

SETTINGS = ("size=160x96", "memory.policy=window", "memory.size=6")
"""20x12 latent cells: two of the smallest tiles, side by side."""


@contextmanager
def short_of_memory(first: int, *, cells: int = SMALLEST) -> Iterator[None]:
    """From chunk `first` on, nothing wider than so many cells can be decoded."""
    decoding, decode_cells = FrameSource.decoding, TinyAutoencoder.decode
    now = 0

    def noted(source: FrameSource, chunk: Chunk, state: State) -> PendingFrames:
        nonlocal now
        now = chunk.index
        return decoding(source, chunk, state)

    def short(vae: TinyAutoencoder, latents: Tensor, state: State | None = None) -> Tensor:
        if now >= first and latents.shape[-1] > cells:
            raise torch.OutOfMemoryError("out of memory")
        return decode_cells(vae, latents, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameSource, "decoding", noted)
        patch.setattr(TinyAutoencoder, "decode", short)
        yield


def tiles(made: Film) -> list[int]:
    return [line.tile for line in RunFolder(made.run).journal.of(ChunkLine)]


def test_frames_are_decoded_in_tiles_from_the_chunk_on_where_memory_ran_out(
    film: MakeFilm,
) -> None:
    plenty, short = film.whole(*SETTINGS), film(*SETTINGS)
    events: list[Event] = []
    with short_of_memory(3):
        events += short.events(resume=False)
    told = [event.message for event in events if isinstance(event, Warned)]
    assert told == [
        "memory ran out while chunk 4 was decoded; from it on frames are decoded in tiles of 16x16 "
        "cells, which can show at the tiles' borders"
    ]
    assert tiles(plenty) == [0] * 8
    assert tiles(short) == [0, 0, 0, 16, 16, 16, 16, 16]
    before, after = (
        [line.frames_sha256 for line in RunFolder(made.run).journal.of(ChunkLine)]
        for made in (plenty, short)
    )
    assert before[:3] == after[:3]
    assert before[3] != after[3]


@pytest.fixture(scope="module")
def seen() -> dict[str, tuple[bytes, list[int]]]:
    return {}


@pytest.fixture
def short(film: MakeFilm, seen: dict[str, tuple[bytes, list[int]]]) -> tuple[bytes, list[int]]:
    """Video and tiles of a film whose memory runs out at its fourth chunk; it is made once."""
    if "short" not in seen:
        made = film(*SETTINGS)
        with short_of_memory(3):
            seen["short"] = made.whole(), tiles(made)
    return seen["short"]


@pytest.mark.parametrize(
    ("chunks", "still_short"), [(2, True), (3, True), (4, True), (4, False), (6, False)]
)
def test_a_render_that_ran_out_of_memory_goes_on_to_the_same_file(
    film: MakeFilm, short: tuple[bytes, list[int]], chunks: int, still_short: bool
) -> None:
    """What was decoded in tiles is decoded so again, and all that follows: short again or not."""
    cut = film(*SETTINGS)
    with short_of_memory(3):
        cut.until(chunks)
    with short_of_memory(3 if still_short else 99):
        cut.go_on()
    assert (cut.output.read_bytes(), tiles(cut)) == short


def test_where_even_the_smallest_tiles_do_not_fit_the_render_stops_and_can_go_on(
    film: MakeFilm,
) -> None:
    expected = film.expected(*SETTINGS)
    cut = film(*SETTINGS)
    with (
        short_of_memory(3, cells=SMALLEST - 1),
        pytest.raises(BudgetError, match="16x16"),
    ):
        cut.whole()
    assert tiles(cut) == [0, 0, 0]
    cut.bury()
    cut.go_on()
    assert cut.output.read_bytes() == expected


def test_tiles_that_were_asked_for_are_those_of_every_chunk(film: MakeFilm) -> None:
    settings = (*SETTINGS, f"model.vae_tile={SMALLEST}")
    cut, expected = film.killed(5, *settings), film.expected(*settings)
    cut.go_on()
    assert cut.output.read_bytes() == expected
    assert tiles(cut) == [SMALLEST] * 8
