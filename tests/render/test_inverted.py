"""Films that are made from their end towards a first picture: whole, killed anywhere, refused."""

from __future__ import annotations

import json
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cfgen.config.loader import load
from cfgen.errors import Interrupted, SnapshotMismatch, UsageError
from cfgen.model.tiled import SMALLEST
from cfgen.pipeline.branch import plan_branch, plan_retry
from cfgen.pipeline.build import build_render, build_source
from cfgen.pipeline.decoding import decode_again
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.plan_text import order_lines, rounding_lines
from cfgen.pipeline.rendering import begin, go_on
from cfgen.renderer.events import ChunkDone, Encoded, Finished, Noted, Resumed
from cfgen.renderer.source import ChunkWorker, FrameSource
from cfgen.report.films import film_of
from cfgen.rollout.loop import Chunk
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine
from cfgen.timeline import Given, make_plan
from cfgen.video.facts import chain_frames
from cfgen.video.output import sidecar_of
from cfgen.video.shape import VideoShape
from tests.render.crash import Crash, dying
from tests.render.film import PROMPT, Film, MakeFilm
from tests.render.inputs import gradient, picture
from tests.render.test_out_of_memory import short_of_memory, tiles

INVERTED = "preset=framepack-inverted"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a first and a last picture, which do not look alike."""
    folder = tmp_path_factory.mktemp("inputs")
    picture(folder / "first.png")
    Image.fromarray(gradient(48, 32)[::-1, ::-1].copy()).save(folder / "last.png")
    return folder


@pytest.fixture(params=["first", "first and last"])
def settings(request: pytest.FixtureRequest, inputs: Path) -> list[str]:
    """What such a film is made with: nine chunks, seven or eight of which are made."""
    ends = [f"begin.last_image={inputs / 'last.png'}"] if "last" in request.param else []
    return [INVERTED, f"begin.image={inputs / 'first.png'}", *ends]


def source_of(settings: list[str], duration: str = "5.8s") -> FrameSource:
    values = {"prompt": PROMPT, "seed": "3", "duration": duration, "output": "unused.mp4"}
    return build_source(RenderJob(load(values, assignments=settings).config))


def in_order(source: FrameSource, order: list[int]) -> list[Chunk]:
    return sorted(source.make(order), key=lambda chunk: chunk.index)


def frames_sha256(film: Film) -> str:
    return str(json.loads(sidecar_of(film.output).read_text())["facts"]["frames_sha256"])


def test_chunks_are_made_from_the_end_and_play_from_the_start(
    film: MakeFilm, settings: list[str]
) -> None:
    whole = film(*settings)
    events = list(whole.events(resume=False))
    order = [0, 8, 7, 6, 5, 4, 3, 2, 1]
    assert [event.index for event in events if isinstance(event, ChunkDone)] == order
    assert [event.segment for event in events if isinstance(event, Encoded)] == [0, 1, 2]
    source = source_of(whole.settings)
    chunks, state = in_order(source, order), source.vae.start()
    shown = np.concatenate([source.decode(chunk, state) for chunk in chunks])
    assert len(shown) == source.plan.frames == (89 if source.plan.given.at_end else 93)
    assert frames_sha256(whole) == chain_frames(shown)


def test_a_killed_render_goes_on_to_the_same_file(film: MakeFilm, settings: list[str]) -> None:
    expected = film.expected(*settings)
    order = [0, 8, 7, 6, 5, 4, 3, 2, 1]
    for done in (1, 2, 3, 6, 8, 9):
        cut = film(*settings)
        last = order[done - 1]
        cut.killed(cut.events(resume=False), lambda event: event.index == last)  # noqa: B023
        events = cut.go_on()
        assert next(e for e in events if isinstance(e, Resumed)).chunk == done
        assert [e.index for e in events if isinstance(e, ChunkDone)] == order[done:]
        assert cut.output.read_bytes() == expected


@pytest.mark.parametrize("segments", [1, 2, 3])
def test_a_render_that_dies_while_the_video_is_written_goes_on(
    film: MakeFilm, settings: list[str], segments: int
) -> None:
    cut = film(*settings)
    with dying(cut.folder, None) as disk:
        events = cut.events(resume=False)
        assert any(isinstance(e, Encoded) and e.segment + 1 == segments for e in events)
        disk.dead = True
        with suppress(Crash):
            events.close()  # type: ignore[attr-defined]
    cut.bury()
    again = cut.go_on()
    first = next(e.segment for e in again if isinstance(e, Encoded)) if segments < 3 else 3
    assert first == segments, "what was encoded stays"
    assert cut.output.read_bytes() == film.expected(*settings)


@pytest.mark.parametrize("done", [1, 2, 5, 9])
def test_decoding_beside_the_next_chunk_makes_the_same_file(
    film: MakeFilm, settings: list[str], monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    expected = film.expected(*settings)
    monkeypatch.setattr(FrameSource, "beside", True)
    cut = film(*settings)
    last = [0, 8, 7, 6, 5, 4, 3, 2, 1][done - 1]
    cut.killed(cut.events(resume=False), lambda event: event.index == last)
    cut.go_on()
    assert cut.output.read_bytes() == expected


def test_no_more_latents_are_held_than_the_memory_needs(
    film: MakeFilm, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Tensor]] = []
    finish = ChunkWorker.finish

    def finished(worker: ChunkWorker) -> Chunk:
        chunk = finish(worker)
        made.append(weakref.ref(chunk.latents))
        return chunk

    monkeypatch.setattr(ChunkWorker, "finish", finished)
    for _ in film(*settings).events(resume=False):
        assert sum(latents() is not None for latents in made) <= 2
    assert len(made) == 9


@pytest.mark.parametrize("share", [n / 12 for n in range(13)])
def test_a_render_that_dies_at_any_write_goes_on(
    film: MakeFilm, settings: list[str], share: float
) -> None:
    counted, cut = film.undisturbed(*settings), film(*settings)
    cut.folder.mkdir()
    with dying(cut.folder, round(share * (len(counted.changes) - 1))), suppress(Crash):
        cut.whole()
    cut.bury()
    assert cut.gone_on_with() == counted.video


@pytest.mark.parametrize("damaged", [0, 8, 4])
def test_latents_that_are_damaged_are_made_again(
    film: MakeFilm, settings: list[str], damaged: int
) -> None:
    cut = film(*settings)
    cut.killed(cut.events(resume=False), lambda event: event.index == 4)
    RunFolder(cut.run).latents(damaged).write_bytes(b"damaged")
    assert cut.gone_on_with() == film.expected(*settings)


@pytest.mark.parametrize("mode", ["latents", "off"])
def test_what_is_kept_to_resume_with_changes_no_frame(
    film: MakeFilm, settings: list[str], mode: str
) -> None:
    kept = [*settings, f"snapshot.mode={mode}"]
    if mode == "latents":
        cut = film(*kept)
        cut.killed(cut.events(resume=False), lambda event: event.index == 4)
        assert cut.gone_on_with() == film.expected(*settings)
    whole = film(*kept)
    whole.whole()
    assert frames_sha256(whole) == frames_sha256(film.whole(*settings))


def test_tiles_that_were_asked_for_are_those_of_every_chunk(
    film: MakeFilm, settings: list[str]
) -> None:
    tiled = [*settings, "size=160x96", f"model.vae_tile={SMALLEST}"]
    cut = film(*tiled)
    cut.killed(cut.events(resume=False), lambda event: event.index == 4)
    assert cut.gone_on_with() == film.expected(*tiled)
    assert tiles(cut) == [SMALLEST] * 9


@pytest.mark.parametrize("still_short", [True, False])
@pytest.mark.parametrize("segments", [1, 2])
def test_a_render_that_ran_out_of_memory_goes_on_to_the_same_file(
    film: MakeFilm, settings: list[str], segments: int, still_short: bool
) -> None:
    """What was decoded in tiles is decoded so again, and all that plays later."""
    wide = [*settings, "size=160x96"]
    short, cut = film(*wide), film(*wide)
    with short_of_memory(3):
        expected = short.whole()
    assert tiles(short) == [0, *[SMALLEST] * 6, 0, 0]
    with short_of_memory(3), dying(cut.folder, None) as disk:
        events = cut.events(resume=False)
        assert any(isinstance(e, Encoded) and e.segment + 1 == segments for e in events)
        disk.dead = True
        with suppress(Crash):
            events.close()  # type: ignore[attr-defined]
    cut.bury()
    with short_of_memory(3 if still_short else 99):
        cut.go_on()
    if segments > 1 or still_short:  # else it had not run out yet
        assert (cut.video, tiles(cut)) == (expected, tiles(short))


def test_a_stop_while_the_video_is_written_is_heeded(film: MakeFilm, settings: list[str]) -> None:
    cut = film(*settings)
    cut.folder.mkdir()
    render = build_render(RenderJob(cut.config), models=cut.models)

    def stopped() -> None:
        for event in render.run():
            if isinstance(event, Encoded):
                render.stop("interrupted", exit_code=130)

    with pytest.raises(Interrupted) as caught:
        stopped()
    assert "after chunk 9 of 9" in caught.value.message
    assert cut.gone_on_with() == film.expected(*settings)


def test_the_pictures_may_go_once_they_are_committed(
    film: MakeFilm, inputs: Path, tmp_path: Path
) -> None:
    own = {name: tmp_path / f"{name}.png" for name in ("first", "last")}
    for name, path in own.items():
        path.write_bytes((inputs / f"{name}.png").read_bytes())
    settings = [INVERTED, f"begin.image={own['first']}", f"begin.last_image={own['last']}"]
    expected, early, late = film(*settings), film(*settings), film(*settings)
    expected.whole()
    early.killed(early.events(resume=False), lambda event: event.index == 0)
    late.killed(late.events(resume=False), lambda event: event.index == 8)
    own["last"].unlink()
    assert isinstance([*go_on(late.run)][-1], Finished)
    assert late.video == expected.video
    with pytest.raises(SnapshotMismatch, match="last_image_sha256"):
        [*go_on(early.run)]


def test_the_film_ends_with_the_picture_as_the_autoencoder_has_it(
    tiny_settings: list[str], inputs: Path
) -> None:
    ends = {"image": "first.png", "last_image": "last.png"}
    pictures = [f"begin.{key}={inputs / name}" for key, name in ends.items()]
    source = source_of([*tiny_settings, INVERTED, *pictures], "1.1s")
    assert [chunk.latent_frames for chunk in source.plan] == [1, 3, 1]
    chunks = in_order(source, [0, 2, 1])
    for chunk, name, held in ((chunks[0], "first.png", 1), (chunks[2], "last.png", 5)):
        pixels = torch.from_numpy(np.asarray(Image.open(inputs / name)).copy())
        video = (pixels.permute(2, 0, 1)[None, None] / 255).repeat(1, held, 1, 1, 1)
        with torch.inference_mode():
            weight = next(source.vae.parameters())
            latents: Tensor = source.vae.decoder.encode(video.to(weight.dtype))  # type: ignore[attr-defined]
        assert torch.equal(chunk.latents, latents[:, -1:].float())


def test_a_last_picture_changes_what_leads_to_it(tiny_settings: list[str], inputs: Path) -> None:
    base = [*tiny_settings, INVERTED, f"begin.image={inputs / 'first.png'}"]
    made = []
    for name in ("first", "last"):
        source = source_of([*base, f"begin.last_image={inputs / f'{name}.png'}"], "1.9s")
        made.append(in_order(source, list(source.plan.order)))
    assert torch.equal(made[0][0].latents, made[1][0].latents)
    assert not any(torch.equal(made[0][n].latents, made[1][n].latents) for n in (1, 2, 3))


def test_another_file_of_the_same_film(film: MakeFilm, settings: list[str]) -> None:
    whole = film.whole(*settings)
    output = whole.folder / "again.mkv"
    changes = {"encode.codec": "ffv1", "encode.format": "mkv"}
    assert isinstance([*decode_again(whole.run, output=output, changes=changes)][-1], Finished)
    facts = json.loads(sidecar_of(output).read_text())["facts"]
    assert facts["frames_sha256"] == frames_sha256(whole)


def test_another_continuation_is_refused(film: MakeFilm, settings: list[str]) -> None:
    whole = film.whole(*settings)
    before, changes = whole.video, {"seed": "9"}
    with pytest.raises(UsageError, match="was made from its end") as caught:
        plan_branch(whole.run, at="3s", output=whole.folder / "b.mp4", changes=changes)
    assert "render it again" in str(caught.value.hint)
    with pytest.raises(UsageError, match="was made from its end"):
        plan_retry(whole.run, begin="3s", changes={})
    assert whole.video == before
    assert len(RunFolder(whole.run).journal.of(ChunkLine)) == 9


def test_a_report_offers_no_branch_and_tells_what_chunks_took_as_they_play(
    film: MakeFilm, settings: list[str]
) -> None:
    whole, cut = film.whole(*settings), film(*settings)
    cut.killed(cut.events(resume=False), lambda event: event.index == 4)
    lines = RunFolder(whole.run).journal.of(ChunkLine)
    told = film_of(whole.output, whole.folder / "report.html", {})
    assert told.branch is None
    ends = {line.index: line.elapsed_s for line in lines}
    assert told.chunk_costs_s[1] == round(ends[1] - ends[2], 3)
    assert len(told.chunk_costs_s) == 9
    unfinished = film_of(cut.output, cut.folder / "report.html", {})
    assert (unfinished.chunks_done, len(unfinished.chunk_costs_s)) == (6, 1)


def test_what_follows_from_the_order_is_told_before(
    settings: list[str], tiny_settings: list[str], tmp_path: Path
) -> None:
    values = {"prompt": PROMPT, "seed": "3", "duration": "1.1s", "output": str(tmp_path / "a.mp4")}
    job = RenderJob(load(values, assignments=[*tiny_settings, *settings]).config)
    told = [event.message for event in begin(job) if isinstance(event, Noted)]
    assert [line for line in told if line in order_lines(job.plan)] == list(order_lines(job.plan))
    assert any("now the video is written" in line for line in told)


SHAPE = VideoShape(width=48, height=32)
PICTURE = Given(latent_frames=1)
PICTURES = Given(latent_frames=1, at_end=1)


def test_a_plan_from_the_end() -> None:
    plan = make_plan(2, SHAPE, given=PICTURE, inverted=True)
    sizes = [(chunk.latent_start, chunk.latent_frames, chunk.frames) for chunk in plan]
    assert sizes == [(0, 1, 1), (1, 3, 12), (4, 3, 12), (7, 3, 7)]
    assert (list(plan.order), list(plan.all_given), plan.first_made) == ([0, 3, 2, 1], [0], 3)


def test_a_plan_with_a_last_picture_has_whole_chunks_between() -> None:
    plan = make_plan(2, SHAPE, given=PICTURES, inverted=True)
    sizes = [(chunk.latent_start, chunk.latent_frames, chunk.frames) for chunk in plan]
    assert sizes == [(0, 1, 1), (1, 3, 12), (4, 3, 12), (7, 1, 4)]
    assert (list(plan.order), list(plan.all_given), plan.first_made) == ([0, 3, 2, 1], [0, 3], 2)
    assert [plan.chunk_of_latent(frame) for frame in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]
    assert rounding_lines(plan)[:5] == (
        "2 s at 16 fps are 32 frames, rounded to 29 frames (1.812 s), so that whole chunks lead to "
        "the last picture",
        "1 frame is given, 1 latent frame in 1 chunk: the video shows it",
        "the last 4 frames are given, 1 latent frame in 1 chunk: a picture that stands",
        "29 frames need 8 latent frames (the first holds 1 frame, each later one 4): a chunk of 1, "
        "then 2 chunks of 3, then a chunk of 1",
        "all 29 decoded frames are kept",
    )


@pytest.mark.parametrize("chunk", [1, 3, 9])
@pytest.mark.parametrize("seconds", [2.5, 5, 9.99, 60])
def test_a_plan_with_a_last_picture_is_never_half_a_chunk_off(chunk: int, seconds: float) -> None:
    shape = VideoShape(width=48, height=32, chunk_latent_frames=chunk)
    plan = make_plan(seconds, shape, given=PICTURES, inverted=True)
    assert abs(plan.frames - seconds * 16) <= 4 * chunk / 2
    assert sum(each.frames for each in plan) == plan.frames == plan.decoded_frames
    assert sum(each.latent_frames for each in plan) == plan.latent_frames
    assert sorted(plan.order) == list(range(plan.chunks))
    assert plan.spans[0].stop == plan.latent_frames


REFUSED = {
    "no first picture": ({"duration_s": 2}, "none is given"),
    "no chunk between pictures": ({"duration_s": 0.6, "given": PICTURES}, "leave no chunk"),
    "no length": ({"duration_s": float("inf"), "given": PICTURES}, "must be a positive number"),
}


@pytest.mark.parametrize(("values", "said"), REFUSED.values(), ids=REFUSED)
def test_plans_that_cannot_be_made_from_the_end(values: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_plan(geometry=SHAPE, inverted=True, **values)
