"""Videos that begin with a picture or go on from a film: killed, resumed, branched, done over."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cfgen.config.loader import load
from cfgen.errors import CheckpointError, InputRefused, SnapshotMismatch, UsageError
from cfgen.files.writing import sha256_of
from cfgen.pipeline.beginning import Beginning
from cfgen.pipeline.branch import plan_branch, plan_retry
from cfgen.pipeline.build import build_source
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.plan_text import rounding_lines
from cfgen.pipeline.rendering import begin, go_on
from cfgen.renderer.events import Finished, Noted
from cfgen.runs.beginning import OLD_SOUND, SOUND
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine, SoundLine
from cfgen.timeline import Given, make_plan
from cfgen.video.shape import VideoShape
from tests.conftest import ROOT
from tests.render.film import FOUR_SHOTS, MEMORIES, PROMPT, MakeFilm
from tests.render.inputs import ffmpeg, picture
from tests.render.inputs import film as make_input

BEEP = "sine=880:sample_rate=44100:duration=3,volume='if(between(t,1,1.5),1,0)':eval=frame"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture and a film of 48 frames that beeps from 1 s to 1.5 s."""
    folder = tmp_path_factory.mktemp("inputs")
    picture(folder / "start.png")
    make_input(folder / "film.mp4", "-c:a", "aac", sound=BEEP)
    return folder


BEGINNINGS: dict[str, Callable[[Path], list[str]]] = {
    "image": lambda folder: [f"begin.image={folder / 'start.png'}"],
    "film": lambda folder: [f"begin.video={folder / 'film.mp4'}"],
    "kept film": lambda folder: [f"begin.video={folder / 'film.mp4'}", "begin.keep_input=true"],
}
GIVEN = {"image": 1, "film": 4, "kept film": 4}


@pytest.fixture(params=BEGINNINGS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def source_of(settings: list[str], duration: str = "5.8s"):
    values = {"prompt": PROMPT, "seed": "3", "duration": duration, "output": "unused.mp4"}
    return build_source(RenderJob(load(values, assignments=settings).config))


def test_a_film_is_resumed_wherever_it_was_killed(kind: str, film: MakeFilm, inputs: Path) -> None:
    settings = BEGINNINGS[kind](inputs)
    expected = film.expected(*settings)
    chunks = len(RunFolder(film.undisturbed(*settings).film.run).journal.of(ChunkLine))
    for done in sorted({1, GIVEN[kind], GIVEN[kind] + 1, chunks - 1}):
        cut = film.killed(done, *settings)
        assert cut.gone_on_with() == expected


def moved(film: MakeFilm, inputs: Path, folder: Path, kind: str) -> list[str]:
    """Settings whose input lies in a folder of the test's own, to go away."""
    folder.mkdir(exist_ok=True)
    for path in inputs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return BEGINNINGS[kind](folder)


def test_the_input_may_go_once_its_chunks_are_made_and_not_before(
    kind: str, film: MakeFilm, inputs: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    settings = moved(film, inputs, own, kind)
    early, late = film(*settings), film(*settings)
    late.until(GIVEN[kind] + 1)
    if GIVEN[kind] > 1:
        early.until(GIVEN[kind] - 1)
    before = film(*settings)
    expected = before.whole()
    for path in own.iterdir():
        path.unlink()
    assert isinstance([*go_on(late.run)][-1], Finished)
    assert late.output.read_bytes() == expected
    if GIVEN[kind] > 1:
        with pytest.raises(SnapshotMismatch, match="beginning_sha256"):
            [*go_on(early.run)]


def test_branch_and_retry_do_without_the_input(
    kind: str, film: MakeFilm, inputs: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    parent, child = film(*moved(film, inputs, own, kind)), film()
    parent.whole()
    for path in own.iterdir():
        path.unlink()
    child.folder.mkdir()
    branch = plan_branch(parent.run, at="0.1s", output=child.output, changes={"seed": "9"})
    assert branch.chunk == GIVEN[kind]
    assert isinstance([*branch.make()][-1], Finished)
    assert child.output.read_bytes() != parent.output.read_bytes()
    assert has_sound(child.output) == (kind == "kept film")
    again = plan_retry(parent.run, begin="0.1s", changes={"seed": "9"})
    assert isinstance([*again.make()][-1], Finished)
    assert frames_of(parent.output) == frames_of(child.output)
    assert has_sound(parent.output) == (kind == "kept film")


def test_given_latents_that_are_damaged_are_encoded_again(
    kind: str, film: MakeFilm, inputs: Path
) -> None:
    settings = BEGINNINGS[kind](inputs)
    cut = film.killed(GIVEN[kind] + 1, *settings)
    RunFolder(cut.run).latents(GIVEN[kind] - 1).write_bytes(b"damaged")
    assert cut.gone_on_with() == film.expected(*settings)


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory_takes_a_picture_and_is_resumed(
    memory: str, film: MakeFilm, inputs: Path
) -> None:
    settings = [*MEMORIES[memory], *BEGINNINGS["image"](inputs)]
    assert film.killed(4, *settings).gone_on_with() == film.expected(*settings)


def test_the_first_frame_is_the_picture_as_the_autoencoder_has_it(
    tiny_settings: list[str], inputs: Path
) -> None:
    source = source_of([*tiny_settings, *BEGINNINGS["image"](inputs)], "1s")
    planned, chunk, frames = next(source.chunks())
    assert (planned.frames, planned.latent_frames, len(frames)) == (1, 1, 1)
    from PIL import Image

    pixels = torch.from_numpy(np.asarray(Image.open(inputs / "start.png")).copy())
    video = (pixels.permute(2, 0, 1)[None, None] / 255).to(next(source.vae.parameters()).dtype)
    with torch.inference_mode():
        latents = source.vae.decoder.encode(video)  # type: ignore[attr-defined]
    assert torch.equal(chunk.latents, latents.float())


@pytest.mark.parametrize("vae", ["tiny", "wan"])
def test_a_film_is_encoded_as_a_stream_to_what_it_is_as_a_whole(
    vae: str, tiny_settings: list[str], inputs: Path, tmp_path: Path
) -> None:
    settings = [*tiny_settings, *BEGINNINGS["film"](inputs)]
    if vae == "wan":
        weights = load_file(ROOT / "tests" / "golden" / "wan_vae_diffusers.safetensors")
        own = {n: t for n, t in weights.items() if n.split("/")[0] not in ("in", "out", "aux")}
        save_file(own, tmp_path / "vae.safetensors")
        settings += [f"model.vae={tmp_path / 'vae.safetensors'}", "dtype=float32"]
    source = source_of(settings, "1s")
    given = torch.cat([chunk.latents for chunk in source.make(range(source.plan.given_chunks))], 1)
    beginning = Beginning.of(load({"prompt": PROMPT}, assignments=settings).config)
    assert beginning is not None
    frames = np.stack([np.frombuffer(frame, np.uint8) for frame in beginning._read()])
    weight = next(source.vae.parameters())
    video = torch.from_numpy(frames.reshape(1, -1, 32, 48, 3)).permute(0, 1, 4, 2, 3)
    with torch.inference_mode():
        whole = source.vae.decoder.encode(video.to(weight.dtype) / 255)  # type: ignore[attr-defined]
    assert given.shape == whole.shape == (1, 12, 16, 4, 6)
    close = 2e-5 if weight.dtype == torch.float32 else 0.05
    torch.testing.assert_close(given, whole.float(), rtol=0, atol=close)


def test_what_is_made_is_the_same_whether_the_film_is_shown_or_not(
    tiny_settings: list[str], inputs: Path
) -> None:
    kept = source_of([*tiny_settings, *BEGINNINGS["kept film"](inputs)], f"{45 / 16 + 2}s")
    alone = source_of([*tiny_settings, *BEGINNINGS["film"](inputs)], "2s")
    shown = np.concatenate([frames for _, _, frames in kept.chunks()])
    made = np.concatenate([frames for _, _, frames in alone.chunks()])
    assert (len(shown), len(made)) == (45 + 32, 32)
    assert np.array_equal(shown[45:], made)
    assert alone.decode_from == max(0, 4 - alone.warm_up)


def frames_of(video: Path) -> bytes:
    argv = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(video)]
    argv += ["-map", "0:v", "-f", "rawvideo", "-"]
    return subprocess.run(argv, capture_output=True, check=True).stdout


def samples_of(video: Path) -> np.ndarray:
    argv = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(video)]
    argv += ["-map", "0:a?", "-ac", "1", "-ar", "48000", "-f", "f32le", "-"]
    found = subprocess.run(argv, capture_output=True, check=False)
    return np.frombuffer(found.stdout, np.float32)


def has_sound(video: Path) -> bool:
    return len(samples_of(video)) > 0


def test_the_sound_of_what_is_kept_plays_when_it_did(film: MakeFilm, inputs: Path) -> None:
    """Three frames make no chunk and are left out, so the beep comes 3 / 16 s earlier."""
    whole = film.whole(*BEGINNINGS["kept film"](inputs))
    there, then = (
        np.flatnonzero(np.abs(samples_of(path)) > 0.05)[[0, -1]] / 48000
        for path in (whole.output, inputs / "film.mp4")
    )
    assert np.abs(there - (then - 3 / 16)).max() < 0.002
    (line,) = RunFolder(whole.run).journal.of(SoundLine)
    assert line.nbytes == (whole.run / SOUND).stat().st_size
    assert not has_sound(film.whole(*BEGINNINGS["film"](inputs)).output)


def test_sound_that_is_damaged_is_read_again(film: MakeFilm, inputs: Path) -> None:
    settings = BEGINNINGS["kept film"](inputs)
    cut = film.killed(5, *settings)
    (cut.run / SOUND).write_bytes(b"damaged")
    assert cut.gone_on_with() == film.expected(*settings)


def test_a_run_of_an_older_cfgen_keeps_its_sound_in_aac(film: MakeFilm, inputs: Path) -> None:
    cut = film.killed(5, *BEGINNINGS["kept film"](inputs))
    old = cut.run / OLD_SOUND
    ffmpeg("-i", str(cut.run / SOUND), "-c:a", "aac", "-f", "adts", str(old))
    (cut.run / SOUND).unlink()
    journal = RunFolder(cut.run).journal
    kept = SoundLine(nbytes=old.stat().st_size, sha256=sha256_of(old))
    journal.rewrite([kept if isinstance(line, SoundLine) else line for line in journal.lines])
    cut.go_on()
    assert has_sound(cut.output)
    assert sorted(path.name for path in cut.run.glob("sound*")) == [OLD_SOUND]


def test_a_part_of_a_film_and_what_is_told_of_it(
    tiny_settings: list[str], inputs: Path, tmp_path: Path
) -> None:
    part = ["begin.from=0.5", "begin.to=0:02"]
    values = {"prompt": PROMPT, "seed": "3", "duration": "1s", "output": str(tmp_path / "a.mp4")}
    settings = [*tiny_settings, *BEGINNINGS["film"](inputs), *part]
    job = RenderJob(load(values, assignments=settings).config)
    assert job.plan.given == Given(latent_frames=6, shown=False)
    events = [*begin(job)]
    told = [event.message for event in events if isinstance(event, Noted)]
    assert any("21 frames of film.mp4, 0.69 s to 2.00 s" in line for line in told)
    finished = [event for event in events if isinstance(event, Finished)]
    assert finished[0].frames == 16
    again = [*go_on(tmp_path / "a.cfgen")]  # a run keeps the number of frames
    assert isinstance(again[-1], Finished)


REFUSED = {
    "shorter than a chunk": (["begin.to=0.4"], InputRefused, "needs 9"),
    "ends before its part": (["begin.to=5"], InputRefused, "ends at 3.00 s"),
    "begins behind its end": (["begin.from=4"], InputRefused, "is 3.00 s long"),
    "nothing would be made": (
        ["begin.keep_input=true", "duration=2s"],
        UsageError,
        "longer --duration",
    ),
}


@pytest.mark.parametrize(("settings", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_a_film_that_cannot_be_gone_on_from_is_refused_before_anything_loads(
    settings: list[str], error: type, said: str, tiny_settings: list[str], inputs: Path
) -> None:
    values = {"prompt": PROMPT, "seed": "3", "output": "unused.mp4"}
    every = [*tiny_settings, *BEGINNINGS["film"](inputs), *settings]
    job = RenderJob(load(values, assignments=every).config)
    with pytest.raises(error) as caught:
        begin(job)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_an_autoencoder_without_an_encoder_is_told_with_files_that_have_one(
    tiny_model: Path, tiny_settings: list[str], inputs: Path, tmp_path: Path
) -> None:
    weights = load_file(tiny_model / "tae.safetensors")
    half = {name: tensor for name, tensor in weights.items() if name.startswith("decoder.")}
    save_file(half, tmp_path / "half.safetensors")
    vae = [f"model.vae={tmp_path / 'half.safetensors'}"]
    values = {"prompt": PROMPT, "seed": "3", "duration": "1s", "output": str(tmp_path / "a.mp4")}
    job = RenderJob(load(values, assignments=[*tiny_settings, *vae]).config)
    assert [*begin(job)][-1].frames == 16  # type: ignore[union-attr]
    values["output"] = str(tmp_path / "b.mp4")
    every = [*tiny_settings, *vae, *BEGINNINGS["image"](inputs)]
    with pytest.raises(CheckpointError) as caught:
        begin(RenderJob(load(values, assignments=every).config))
    assert "taew2_1" in str(caught.value.hint)


SHAPE = VideoShape(width=48, height=32)


def test_a_picture_makes_chunks_of_one_and_then_of_three() -> None:
    plan = make_plan(2, SHAPE, given=Given(latent_frames=1))
    sizes = [(chunk.latent_start, chunk.latent_frames, chunk.frames) for chunk in plan]
    assert sizes == [(0, 1, 1), (1, 3, 12), (4, 3, 12), (7, 3, 7)]
    assert rounding_lines(plan)[1:3] == (
        "1 frame is given, 1 latent frame in 1 chunk: the video shows it",
        "32 frames need 9 latent frames (the first holds 1 frame, each later one 4), rounded up "
        "to 10: a chunk of 1, then 3 chunks of 3",
    )
    assert [plan.chunk_at(seconds) for seconds in (0, 0.07, 0.8, 0.82)] == [0, 1, 1, 2]


def test_a_past_that_is_not_shown_has_no_frames_and_no_segment() -> None:
    plan = make_plan(2, SHAPE, segment_chunks=2, given=Given(latent_frames=6, shown=False))
    assert [chunk.frames for chunk in plan] == [0, 0, 12, 12, 8]
    assert [chunk.segment for chunk in plan] == [0, 0, 0, 0, 1]
    assert [chunk.ends_segment for chunk in plan] == [False, False, False, True, True]
    assert [plan.chunks_of(segment) for segment in (0, 1)] == [range(2, 4), range(4, 5)]
    assert (plan.chunk_at(0), plan.frames, plan.decoded_frames) == (2, 32, 36)


def test_models_of_single_frames_take_a_picture_natively() -> None:
    shape = VideoShape(width=48, height=32, chunk_latent_frames=1)
    plan = make_plan(1, shape, given=Given(latent_frames=1))
    assert [chunk.latent_frames for chunk in plan] == [1] * 5
    assert plan.given_chunks == 1


def test_shots_follow_what_a_film_begins_with(kind: str, film: MakeFilm, inputs: Path) -> None:
    settings = [FOUR_SHOTS, *BEGINNINGS[kind](inputs)]
    cut = film.killed(GIVEN[kind] + 2, *settings)
    assert cut.gone_on_with() == film.expected(*settings)
    plan = RenderJob(cut.config).plan
    starts = [plan.chunk_of_latent(span.start) for span in plan.spans]
    assert all(
        plan.latent_start(at) == span.start for at, span in zip(starts, plan.spans, strict=True)
    )
    shown = [plan.chunk(at).frame_start for at in starts]
    nearest = 12  # frames of a chunk, of which a border is never further than half
    asked = [span.asked_s * plan.geometry.fps for span in plan.spans]
    assert max(abs(a - b) for a, b in zip(shown, asked, strict=True)) <= nearest / 2
    assert film.expected(*settings) != film.expected(*settings[1:])
