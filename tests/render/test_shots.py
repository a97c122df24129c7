"""Films of several shots: whole, killed, resumed, and their memory worked out from latents."""

from __future__ import annotations

import json
import re
import subprocess
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from cfgen.pipeline.build import build_source
from cfgen.pipeline.job import RenderJob
from cfgen.renderer.events import ChunkDone, Resumed
from cfgen.renderer.source import FrameSource, to_levels
from cfgen.rollout.loop import Chunk, Rollout
from cfgen.rollout.transitions import enter
from cfgen.video.facts import Chapter, chain_frames
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.output import sidecar_of
from tests.render.film import FOUR_SHOTS, MEMORIES, MakeFilm
from tests.render.test_orders import frames_sha256

BORDERS = [2, 4, 6]
SHOWN = {
    name: [*settings, FOUR_SHOTS.replace("recache", "flush") if name == "full" else FOUR_SHOTS]
    for name, settings in MEMORIES.items()
}
"""Every memory, with four shots that begin in ways that it knows."""


def source_of(film: MakeFilm, *settings: str) -> FrameSource:
    return build_source(RenderJob(film(*settings).config))


def by_hand(source: FrameSource) -> list[Chunk]:
    """The chunks of a film, without any of the code that knows plans."""
    made = []
    run = source.making()._rollout
    assert isinstance(run, Rollout)
    with torch.inference_mode():
        for chunk in source.plan.order:
            text = source.conditionings[sum(chunk >= border for border in BORDERS)]
            if chunk in BORDERS:
                span = source.plan.spans[1 + BORDERS.index(chunk)]
                enter(source.generator, source.memory, span.transition, text)
            run.start(chunk, text)
            made.append(run.finish())
    return made


@pytest.mark.parametrize("memory", SHOWN)
def test_every_memory_begins_shots_and_is_worked_out_again_from_latents(
    film: MakeFilm, memory: str
) -> None:
    source = source_of(film, *SHOWN[memory])
    assert [span.start for span in source.plan.spans] == [0, *(3 * chunk for chunk in BORDERS)]
    made = [chunk for _, chunk, _ in source.chunks()]
    by = by_hand(source_of(film, *SHOWN[memory]))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(made, by, strict=True))
    plain = [c.latents for _, c, _ in source_of(film, *MEMORIES[memory]).chunks()]
    assert not any(torch.equal(made[chunk].latents, plain[chunk]) for chunk in range(2, 8))
    if not source.memory.replayable:
        return
    again = source_of(film, *SHOWN[memory])
    for chunk in made[:-1]:
        again.recommit(chunk)
    (last,) = again.make([7])
    assert torch.equal(last.latents, made[7].latents)


@pytest.mark.parametrize("memory", SHOWN)
@pytest.mark.parametrize("mode", ["full", "latents"])
def test_a_film_of_shots_goes_on_wherever_it_was_killed(
    film: MakeFilm, memory: str, mode: str
) -> None:
    if (memory, mode) == ("release", "latents"):
        pytest.skip("refused: tests/render/test_resume.py")
    settings = [*SHOWN[memory], f"snapshot.mode={mode}"]
    chunks = 2 + ([*SHOWN].index(memory) + 3 * (mode == "latents")) % 6
    cut = film.killed(chunks, *settings)
    events = cut.go_on()
    assert next(e for e in events if isinstance(e, Resumed)).chunk == chunks
    assert [e.index for e in events if isinstance(e, ChunkDone)] == list(range(chunks, 8))
    assert cut.output.read_bytes() == film.expected(*settings)


def test_a_film_of_shots_may_be_killed_after_every_chunk(film: MakeFilm) -> None:
    cut = film.killed(1, FOUR_SHOTS)
    for _ in range(6):
        cut.killed(cut.events(resume=True), lambda event: True)
    cut.go_on()
    assert cut.output.read_bytes() == film.expected(FOUR_SHOTS)


def test_the_first_shot_is_the_film_of_its_prompt_alone(film: MakeFilm) -> None:
    whole = film.whole(FOUR_SHOTS)
    source = source_of(film, FOUR_SHOTS)
    frames = np.concatenate([frames for _, _, frames in source.chunks()])
    assert frames_sha256(whole) == chain_frames(frames)
    alone = source_of(film, "shots=5.8s: a red balloon drifts over snowy hills")
    first = np.concatenate([frames for _, _, frames in alone.chunks()])
    assert np.array_equal(first[:21], frames[:21])
    assert not np.array_equal(first[21:33], frames[21:33])


def test_shots_are_chapters_of_the_video_and_stand_in_the_sidecar(
    film: MakeFilm, ffmpeg: Ffmpeg
) -> None:
    odd = "a = b; c # d \\ e, ü 北京"
    whole = film(f"shots=1.4s: a red balloon | 1.5s cut: a blue kite | 1.4s: {odd}")
    whole.whole()
    argv = [str(ffmpeg.path), "-v", "error", "-i", str(whole.output), "-f", "ffmetadata", "-"]
    text = subprocess.run(argv, capture_output=True, check=True).stdout.decode()
    chapters = [dict(re.findall(r"^(\w+)=(.*)$", part, re.M)) for part in text.split("[CHAPTER]")]
    times = [
        tuple(int(each[k]) * Fraction(each["TIMEBASE"]) for k in ("START", "END"))
        for each in chapters[1:]
    ]
    borders = [Fraction(frame, 16) for frame in (0, 21, 45, 69)]
    assert times == list(pairwise(borders))
    titles = [re.sub(r"\\(.)", r"\1", each["title"]) for each in chapters[1:]]
    assert titles == ["a red balloon", "a blue kite", odd]
    long = Chapter(frame=0, prompt="x" + "北" * 200, transition="cut").title
    assert long == "x" + "北" * 84
    told = json.loads(sidecar_of(whole.output).read_text())["shots"]
    assert [(each["frame"], each["start_s"], each["transition"]) for each in told] == [
        (0, 0.0, "fresh"),
        (21, 1.3125, "cut"),
        (45, 2.8125, whole.config.transition),
    ]
    assert told[2]["prompt"] == odd
    assert told[2]["end_s"] == 69 / 16


def test_a_fresh_shot_remembers_nothing_of_those_before(film: MakeFilm) -> None:
    one, other = (
        source_of(film, *MEMORIES["cfgen"], f"shots=1.4s: {first} | 1.5s fresh: a green cube")
        for first in ("a red balloon", "a blue boat on a calm sea")
    )
    made = [[(chunk.latents, frames) for _, chunk, frames in s.chunks()] for s in (one, other)]
    assert not torch.equal(made[0][1][0], made[1][1][0])
    for (latents, frames), (same, shown) in zip(made[0][2:], made[1][2:], strict=True):
        assert torch.equal(latents, same)
        assert np.array_equal(frames, shown)
    scene = made[0][2][0].to(next(one.vae.parameters()).dtype)
    with torch.inference_mode():
        alone = one.vae.decode(torch.cat([scene[:, :1], scene], 1))
    assert np.array_equal(made[0][2][1], to_levels(alone[0])[1:].numpy())
