"""Whole renders with a tiny model of random weights: what is planned is what the file holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner, Result

from cfgen.cli.app import app
from cfgen.cli.console import Console
from cfgen.config.loader import load
from cfgen.model.vae import TinyAutoencoder
from cfgen.pipeline.build import build_render, build_source
from cfgen.pipeline.job import RenderJob
from cfgen.renderer.events import ChunkDone, Encoded, Finished, Loaded
from cfgen.renderer.source import to_levels
from cfgen.video.facts import chain_frames
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.measure import Measured, measure
from tests.render.film import EIGHT_CHUNKS, MEMORIES, PROMPT
from tests.render.test_writer import ask

Frames = npt.NDArray[np.uint8]
Render = Callable[..., Result]


@pytest.fixture
def render(tiny_settings: list[str], tmp_path: Path) -> Render:
    """Run `cfgen render` with the tiny model; the video is `clip.mp4` in a folder of its own."""

    def run(*arguments: str, prompt: str = PROMPT, settings: Sequence[str] = ()) -> Result:
        (tmp_path / "out").mkdir(exist_ok=True)
        output = str(tmp_path / "out" / "clip.mp4")
        sets = [part for value in [*tiny_settings, *settings] for part in ("--set", value)]
        given = ["render", prompt, "--seed", "3", *sets, "-o", output, *arguments]
        return CliRunner().invoke(app, given)

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder that `render` writes to."""
    return tmp_path / "out"


def _facts(out: Path) -> dict[str, object]:
    facts = json.loads((out / "clip.mp4.json").read_text())["facts"]
    assert isinstance(facts, dict)
    return facts


def _chunks(settings: Sequence[str], **flags: str) -> Iterator[Frames]:
    """The frames of each chunk, before encoding."""
    values = {"prompt": PROMPT, "seed": "3", "output": "unused.mp4", **flags}
    config = load(values, assignments=settings).config
    for planned, chunk, frames in build_source(RenderJob(config)).chunks():
        assert planned.index == chunk.index
        assert len(frames) == planned.frames
        yield frames


def _film(settings: Sequence[str], **flags: str) -> Frames:
    return np.concatenate(list(_chunks(settings, **flags)))


@pytest.mark.parametrize(
    ("duration", "frames", "segments"),
    [("0.0625s", 1, 1), ("0.5s", 8, 1), ("1s", 16, 1), ("12.5s", 200, 2)],
)
def test_the_video_holds_exactly_the_planned_frames(
    render: Render, out: Path, ffmpeg: Ffmpeg, duration: str, frames: int, segments: int
) -> None:
    result = render("--duration", duration)
    assert result.exit_code == 0, result.stderr
    found = measure(ffmpeg, out / "clip.mp4", decode=True)
    assert found == Measured(frames, 48, 32, found.fps)
    assert found.fps == 16
    assert (_facts(out)["frames"], _facts(out)["segments"]) == (frames, segments)
    assert sorted(path.name for path in out.iterdir()) == [
        "clip.cfgen",
        "clip.mp4",
        "clip.mp4.json",
        "clip.sheet.jpg",
    ]


def test_a_trained_size_may_be_chosen(render: Render, out: Path, ffmpeg: Ffmpeg) -> None:
    assert render("--duration", "1s", "--size", "160x96").exit_code == 0
    assert measure(ffmpeg, out / "clip.mp4", decode=True) == Measured(16, 160, 96, 16)


def test_fps_changes_the_playback_rate_alone(render: Render, out: Path, ffmpeg: Ffmpeg) -> None:
    render("--duration", "1s")
    slow = _facts(out)
    render("--duration", "0.5s", "--fps", "32", "-y")
    assert measure(ffmpeg, out / "clip.mp4", decode=True) == Measured(16, 48, 32, 32)
    assert _facts(out)["frames_sha256"] == slow["frames_sha256"]


def test_the_same_command_makes_the_same_frames_and_the_same_file(
    render: Render, out: Path
) -> None:
    first, again = (
        (render("--duration", "2s", "-y").exit_code, _facts(out)["frames_sha256"], _video(out))
        for _ in range(2)
    )
    assert first[0] == 0
    assert first == again


def _video(out: Path) -> bytes:
    return (out / "clip.mp4").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [(["--seed", "4"], PROMPT), ([], "a blue kite circles by night over desert dunes")],
    ids=["seed", "prompt"],
)
def test_seed_and_prompt_reach_the_frames(
    render: Render, out: Path, arguments: list[str], prompt: str
) -> None:
    render("--duration", "1s")
    before = _facts(out)["frames_sha256"]
    assert render("--duration", "1s", "-y", *arguments, prompt=prompt).exit_code == 0
    assert _facts(out)["frames_sha256"] != before


def test_the_sidecar_has_the_digest_of_the_frames(
    render: Render, out: Path, tiny_settings: list[str]
) -> None:
    render("--duration", "2s")
    digest = ""
    for frames in _chunks(tiny_settings, duration="2s"):
        digest = chain_frames(frames, digest)
    assert _facts(out)["frames_sha256"] == digest


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_longer_clip_starts_with_the_shorter_one(tiny_settings: list[str], memory: str) -> None:
    settings = [*tiny_settings, *MEMORIES[memory]]
    short, long = (_film(settings, duration=duration) for duration in ("3s", EIGHT_CHUNKS))
    assert len(short) == 48
    assert chain_frames(long[:48]) == chain_frames(short)


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory_renders(render: Render, out: Path, ffmpeg: Ffmpeg, memory: str) -> None:
    result = render("--duration", "4s", "--json", settings=MEMORIES[memory])
    assert result.exit_code == 0, result.stderr
    assert measure(ffmpeg, out / "clip.mp4", decode=True).frames == 64
    events = [json.loads(line) for line in result.stdout.splitlines()]
    slots = [event["memory"]["slots"] for event in events if event["type"] == "chunk"]
    most = {"full": 18, "window": 9, "far": 18, "framepack": 5, "whole": 12}
    assert max(slots) == most.get(memory.partition("-")[0], 11)


def test_every_memory_makes_a_film_of_its_own(tiny_settings: list[str]) -> None:
    """They must differ, since each has forgotten something else by the end of the clip."""
    films = {
        name: chain_frames(_film([*tiny_settings, *settings], duration=EIGHT_CHUNKS))
        for name, settings in MEMORIES.items()
    }
    assert len(set(films.values())) == len(MEMORIES), films


def test_guidance_makes_a_film_of_its_own(tiny_settings: list[str]) -> None:
    digests = {
        scale: chain_frames(_film([*tiny_settings, f"schedule.guidance={scale}"], duration="2s"))
        for scale in ("1", "1.0", "3")
    }
    assert digests["1"] == digests["1.0"] != digests["3"]


def test_reference_noise_is_repeatable_and_another_than_keyed(tiny_settings: list[str]) -> None:
    films = [_film(tiny_settings, duration="2s", rng=rng) for rng in ("keyed", *["reference"] * 2)]
    assert np.array_equal(films[1], films[2])
    assert not np.array_equal(films[0], films[1])


def test_events_tell_the_render_from_start_to_end(tiny_settings: list[str], tmp_path: Path) -> None:
    output = tmp_path / "clip.mp4"
    flags = {"prompt": PROMPT, "seed": "3", "duration": "13s", "output": str(output)}
    config = load(flags, assignments=tiny_settings).config
    job = RenderJob(config)
    plan = job.plan
    events = list(build_render(job).run())
    assert isinstance(events[0], Loaded)
    assert isinstance(events[-1], Finished)
    assert (events[-1].frames, events[-1].output) == (208, output)
    chunks = [event for event in events if isinstance(event, ChunkDone)]
    assert [chunk.index for chunk in chunks] == list(range(plan.chunks))
    assert [chunk.frames_done for chunk in chunks[:3]] == [9, 21, 33]
    assert chunks[-1].frames_done == plan.frames
    encoded = [event.frames for event in events if isinstance(event, Encoded)]
    assert encoded == [9 + 15 * 12, 208 - 9 - 15 * 12]


def test_pixels_are_rounded_and_clamped() -> None:
    levels = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0, 1.4 / 255])
    video = levels.reshape(1, 1, 2, 3).expand(2, 3, 2, 3)
    frames = to_levels(video).numpy()
    assert frames.shape == (2, 2, 3, 3)
    assert frames.flags.c_contiguous
    assert frames[1, ..., 2].ravel().tolist() == [0, 0, 128, 255, 255, 1]


@pytest.mark.parametrize(
    ("error", "exit_code"), [(KeyboardInterrupt(), 130), (RuntimeError("no memory left"), 1)]
)
@pytest.mark.parametrize(
    ("place", "method"), [(TinyAutoencoder, "decode"), (Console, "show")], ids=["decode", "show"]
)
def test_a_render_that_fails_leaves_what_it_made_and_no_video(
    render: Render,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: type,
    method: str,
    error: BaseException,
    exit_code: int,
) -> None:
    calls = []
    original = getattr(place, method)

    def failing(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 6:
            raise error
        return original(*arguments)

    monkeypatch.setattr(place, method, failing)
    result = render("--duration", "5s")
    assert result.exit_code == exit_code
    assert [path.name for path in out.iterdir()] == ["clip.cfgen"]
    assert not (out / "clip.cfgen" / "lock").exists()
    assert "error: " in result.stderr
    assert ("Traceback" in result.stderr) == (exit_code == 1)


def test_a_render_that_fails_before_its_first_chunk_leaves_nothing(
    render: Render, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TinyAutoencoder, "decode", failing)
    assert render("--duration", "5s").exit_code == 130
    assert list(out.iterdir()) == []


def test_a_stopped_render_leaves_the_old_video_alone(
    render: Render, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render("--duration", "1s")
    before = {path.name: path.read_bytes() for path in out.glob("clip.mp4*")}

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TinyAutoencoder, "decode", interrupted)
    assert render("--duration", "2s", "-y").exit_code == 130
    assert {path.name: path.read_bytes() for path in out.glob("clip.mp4*")} == before


@pytest.mark.parametrize(
    ("ending", "codec", "bits", "layout"),
    [(".mkv", "ffv1", 10, "gbrp10le"), (".mov", "prores", 10, "yuv422p10le")],
)
def test_ten_bits_come_from_the_decoder(
    ending: str, codec: str, bits: int, layout: str, render: Render, out: Path, ffmpeg: Ffmpeg
) -> None:
    film = out / f"clip{ending}"
    result = render("--duration", "1s", "--codec", codec, "--bits", str(bits), "-o", str(film))
    assert result.exit_code == 0, result.output
    raw, told = ask(ffmpeg, film, "-f", "rawvideo", "-pix_fmt", "gbrp10le", "-")
    assert layout in told
    # Levels of 8 bits would be multiples of 1023 / 255, of which there are 256.
    assert codec != "ffv1" or len(np.unique(np.frombuffer(raw, np.uint16))) > 256


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--codec", "ffv1"), "do not carry ffv1"),
        (("--bits", "10"), "H.264 is written with 8 bits, not 10"),
        (("--format", "mkv"), "is mkv, but the output is clip.mp4"),
        (("--codec", "h266"), "h266"),
        (("--bits", "12"), "12"),
    ],
)
def test_a_format_that_cannot_be_is_refused_before_anything_loads(
    flags: tuple[str, ...], says: str, render: Render, out: Path
) -> None:
    result = render("--duration", "1s", "--dry-run", *flags)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert list(out.iterdir()) == []
