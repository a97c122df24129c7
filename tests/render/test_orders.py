"""Films whose chunks are made in another order than they play in, whole, killed and branched."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest

from cfgen.config.loader import load
from cfgen.pipeline.branch import plan_branch
from cfgen.pipeline.build import build_source
from cfgen.pipeline.job import RenderJob
from cfgen.renderer.events import ChunkDone, Finished, Resumed
from cfgen.renderer.playing import Playing
from cfgen.renderer.source import FrameSource
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine
from cfgen.timeline import Plan
from cfgen.video.facts import chain_frames
from cfgen.video.output import sidecar_of
from tests.render.film import EIGHT_CHUNKS, PROMPT, Film, MakeFilm

ORDERS = {"backwards": [7, 6, 5, 4, 3, 2, 1, 0], "ends first": [0, 7, 2, 1, 4, 3, 6, 5]}


def frames_sha256(film: Film) -> str:
    facts = json.loads(sidecar_of(film.output).read_text())["facts"]
    return str(facts["frames_sha256"])


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sequence[int]:
    chosen = ORDERS[request.param]
    monkeypatch.setattr(Plan, "order", property(lambda _: chosen))
    return chosen


def source_of(film: MakeFilm, seed: str) -> FrameSource:
    values = {"prompt": PROMPT, "seed": seed, "duration": EIGHT_CHUNKS, "output": "unused.mp4"}
    return build_source(RenderJob(load(values, assignments=film.settings).config))


@pytest.fixture
def expected(order: Sequence[int], film: MakeFilm) -> str:
    """The digest of the film, each of its frames where it plays."""
    source = source_of(film, "3")
    found = [(planned.index, frames) for planned, _, frames in source.chunks()]
    assert [index for index, _ in found] == list(range(8))
    return chain_frames(np.concatenate([frames for _, frames in found]))


def test_a_film_plays_in_the_order_of_the_plan_and_goes_on_wherever_it_was_killed(
    film: MakeFilm, order: Sequence[int], expected: str
) -> None:
    whole = film()
    made = [event for event in whole.events(resume=False) if isinstance(event, ChunkDone)]
    assert [event.index for event in made] == order
    assert [event.frames_done for event in made][-1] == made[-1].frames_total
    assert frames_sha256(whole) == expected
    for chunks in (1, 4, 5, 7):
        cut = film()
        done = order[:chunks]
        cut.killed(cut.events(resume=False), lambda event: event.index == done[-1])  # noqa: B023
        assert [line.index for line in RunFolder(cut.run).journal.of(ChunkLine)] == done
        events = cut.go_on()
        assert next(e for e in events if isinstance(e, Resumed)).chunk == chunks
        assert [e.index for e in events if isinstance(e, ChunkDone)] == order[chunks:]
        assert cut.output.read_bytes() == whole.output.read_bytes()


def test_a_damaged_chunk_is_made_again_after_those_that_were_made_before_it(
    film: MakeFilm, order: Sequence[int], expected: str
) -> None:
    cut = film()
    cut.killed(cut.events(resume=False), lambda event: event.index == order[5])
    RunFolder(cut.run).latents(order[4]).write_bytes(b"damaged")
    events = cut.go_on()
    assert next(e for e in events if isinstance(e, Resumed)).made_again == 1
    assert frames_sha256(cut) == expected


def test_a_branch_takes_over_what_was_made_before_its_chunk(
    film: MakeFilm, order: Sequence[int]
) -> None:
    parent, child = film(), film()
    parent.whole()
    child.folder.mkdir()
    branch = plan_branch(parent.run, at="3s", output=child.output, changes={"seed": "9"})
    assert branch.chunk == 4
    assert isinstance([*branch.make()][-1], Finished)
    made = order.index(4)
    first, second = source_of(film, "3"), source_of(film, "9")
    second = dataclasses.replace(second, memory=first.memory)
    chunks = [*first.make(order[:made]), *second.make(order[made:])]
    state = first.vae.start()
    frames = [first.decode(c, state) for c in sorted(chunks, key=lambda c: c.index)]
    assert frames_sha256(child) == chain_frames(np.concatenate(frames))


def test_chunks_wait_for_those_that_play_before_them() -> None:
    playing = Playing[str]()
    assert [list(playing.add(index, "abcd"[index])) for index in (1, 0, 3, 2)] == [
        [],
        ["a", "b"],
        [],
        ["c", "d"],
    ]
