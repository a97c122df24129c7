"""Interrupted renders go on to the very film that would have been, whatever interrupted them."""

from __future__ import annotations

import functools
import json
import operator
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cfgen.cli.app import app
from cfgen.config.loader import load
from cfgen.config.schema import RenderConfig, to_mapping
from cfgen.errors import CfgenError, Interrupted, PresetError, SnapshotMismatch
from cfgen.files.writing import sha256_of
from cfgen.pipeline.build import build_render
from cfgen.pipeline.job import RenderJob
from cfgen.renderer.events import ChunkDone, Finished, Resumed, Saved, Warned
from cfgen.renderer.source import FrameSource
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine, SegmentLine
from cfgen.video.output import recorded_digest, sidecar_of
from tests.render.crash import Crash, dying
from tests.render.film import EIGHT_CHUNKS, MEMORIES, PROMPT, Film, MakeFilm


@pytest.mark.parametrize("chunks", [1, 4, 6])
def test_decoding_beside_the_next_chunk_makes_the_same_file(
    film: MakeFilm, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    expected = film.expected()
    monkeypatch.setattr(FrameSource, "beside", True)
    cut = film()
    cut.until(chunks)
    events = cut.go_on()
    assert cut.output.read_bytes() == expected
    assert any(isinstance(event, Saved) for event in events) == (chunks < 6)


@pytest.mark.parametrize("chunks", range(1, 8))
def test_a_killed_render_goes_on_to_the_same_file(film: MakeFilm, chunks: int) -> None:
    cut = film.killed(chunks)
    events = cut.go_on()
    assert cut.output.read_bytes() == film.expected()
    resumed = next(event for event in events if isinstance(event, Resumed))
    assert resumed.chunk == chunks
    assert resumed.made_again == 0
    made = [event.index for event in events if isinstance(event, ChunkDone)]
    assert made == list(range(chunks, 8))
    assert isinstance(events[-1], Finished)
    assert events[-1].frames == 93


@pytest.mark.parametrize("mode", ["full", "latents"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory_goes_on(film: MakeFilm, memory: str, mode: str) -> None:
    settings = [*MEMORIES[memory], f"snapshot.mode={mode}"]
    if (memory, mode) == ("release", "latents"):
        with pytest.raises(PresetError, match=r"snapshot\.mode"):
            film(*settings).whole()
        return
    cut = film.killed(5, *settings)
    events = cut.go_on()
    resumed = next(event for event in events if isinstance(event, Resumed))
    start = resumed.snapshot
    assert (start > 0) == (mode == "full")
    again = 5 - start
    release = memory == "release"
    assert (resumed.replayed, resumed.made_again) == ((0, again) if release else (again, 0))
    assert cut.output.read_bytes() == film.expected(*settings)


@pytest.mark.parametrize("kept", ["bf16", "int8", "fp8"])
def test_every_kind_of_kv_cache_goes_on(film: MakeFilm, kept: str) -> None:
    settings = [*MEMORIES["cfgen"], f"memory.kv_cache={kept}"]
    cut = film.killed(5, *settings)
    resumed = next(event for event in cut.go_on() if isinstance(event, Resumed))
    assert resumed.snapshot > 0
    assert cut.output.read_bytes() == film.expected(*settings)


@pytest.mark.parametrize(
    ("kind", "codec", "bits"),
    [
        ("mp4", "h265", 10),
        ("mkv", "av1", 10),
        ("mkv", "ffv1", 10),
        ("webm", "vp9", 8),
        ("mov", "prores", 10),
        ("png", "png", 16),
        ("gif", "gif", 8),
    ],
)
def test_every_codec_goes_on(film: MakeFilm, kind: str, codec: str, bits: int) -> None:
    names = {"format": kind, "codec": codec, "bits": bits}
    settings = [f"encode.{name}={value}" for name, value in names.items()]
    assert film.killed(5, *settings).gone_on_with() == film.expected(*settings)


@pytest.mark.parametrize("settings", [("format=gif",), ("interpolate=48", "quality=30")])
def test_a_film_that_is_coded_at_its_end_goes_on_before_that(
    settings: tuple[str, ...], film: MakeFilm
) -> None:
    given = [f"encode.{setting}" for setting in settings]
    assert film.killed(8, *given).gone_on_with() == film.expected(*given)


@pytest.mark.parametrize("rng", ["reference", "keyed"])
@pytest.mark.parametrize("renoise", ["fresh", "predicted"])
def test_noise_goes_on_where_it_stopped(film: MakeFilm, rng: str, renoise: str) -> None:
    settings = [f"rng={rng}", f"schedule.renoise={renoise}"]
    cut = film.killed(4, *settings)
    cut.go_on()
    assert cut.output.read_bytes() == film.expected(*settings)


def test_a_render_may_be_killed_again_and_again(film: MakeFilm) -> None:
    cut = film.killed(1)
    for _ in range(5):
        cut.killed(cut.events(resume=True), lambda event: True)
    events = cut.go_on()
    assert [event.index for event in events if isinstance(event, ChunkDone)] == [6, 7]
    assert cut.output.read_bytes() == film.expected()


@pytest.mark.parametrize("share", [i / 11 for i in range(12)])
def test_a_render_that_dies_at_any_write_goes_on(film: MakeFilm, share: float) -> None:
    """The disk changes of a whole render are counted; then one of them is the last."""
    counted = film.undisturbed()
    dies_and_goes_on(film(), round(share * (len(counted.changes) - 1)), counted.video)


@pytest.mark.slow
def test_a_render_that_dies_at_every_write_goes_on(film: MakeFilm) -> None:
    counted = film.undisturbed()
    for at in range(len(counted.changes)):
        dies_and_goes_on(film(), at, counted.video)


def dies_and_goes_on(cut: Film, at: int, expected: bytes) -> None:
    """Let a render die at one change to the disk, and go on with it."""
    with dying(cut.folder, at), pytest.raises(Crash):
        cut.whole()
    cut.bury()
    if cut.output.exists():
        assert cut.output.read_bytes() == expected
    if not (cut.run / "run.json").exists():
        assert not cut.output.exists()
    assert cut.gone_on_with() == expected


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": lambda path: flip(path),
    "deleted": lambda path: path.unlink(),
}
KINDS = {
    "record": "run.json",
    "journal": "journal.jsonl",
    "latents": "latents/000003.safetensors",
    "newest latents": "latents/000006.safetensors",
    "first segment": "segments/segment-000000.mp4",
    "second segment": "segments/segment-000001.mp4",
    "manifest": "snapshots/000006.json",
    "pages": "snapshots/000006-0.safetensors",
    "older manifest": "snapshots/000004.json",
    "older pages": "snapshots/000004-0.safetensors",
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SHORTENED = ("truncated", "emptied", "zeroed")
"""Damages of which each file has one, in turn; it has all the others."""


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        (kind, damage)
        for number, kind in enumerate(KINDS)
        for damage in DAMAGES
        if damage not in SHORTENED or damage == SHORTENED[number % 3]
    ],
)
def test_damage_is_found_and_mended_or_refused(film: MakeFilm, kind: str, damage: str) -> None:
    cut = film.killed(7)
    file = cut.run / KINDS[kind]
    assert file.is_file(), sorted(cut.run.rglob("*"))
    DAMAGES[damage](file)
    if kind == "record":
        with pytest.raises(CfgenError, match=r"run\.json"):
            cut.go_on()
        assert not cut.output.exists()
        return
    events = cut.go_on()
    assert cut.output.read_bytes() == film.expected()
    unneeded = {"latents": False, "older manifest": True, "older pages": True}
    told = [event for event in events if isinstance(event, Warned)]
    # Without its manifest, a snapshot is one that was never taken.
    if not unneeded.get(kind, False) and (kind, damage) != ("manifest", "deleted"):
        assert told, "damage is told"


def test_everything_but_the_latents_may_be_lost(film: MakeFilm) -> None:
    cut = film.killed(7)
    shutil.rmtree(cut.run / "segments")
    shutil.rmtree(cut.run / "snapshots")
    events = cut.go_on()
    resumed = next(event for event in events if isinstance(event, Resumed))
    assert (resumed.made_again, resumed.replayed, resumed.encoded_again) == (0, 7, 81)
    assert cut.output.read_bytes() == film.expected()


@pytest.mark.parametrize(
    "damage",
    [
        lambda film: film.output.unlink(),
        lambda film: flip(film.output),
        lambda film: sidecar_of(film.output).unlink(),
        lambda film: sidecar_of(film.output).write_text("{}") and film.output.unlink(),
    ],
)
def test_a_lost_video_is_made_from_its_latents(
    film: MakeFilm, damage: Callable[[Film], None]
) -> None:
    done, expected = film.whole(), film.expected()
    damage(done)
    events = done.go_on()
    assert not [event for event in events if isinstance(event, ChunkDone)]
    assert done.output.read_bytes() == expected
    assert recorded_digest(done.output) == sha256_of(done.output)


def test_a_gentle_stop_snapshots_and_goes_on(film: MakeFilm) -> None:
    cut = film()
    values = {"prompt": PROMPT, "seed": "3", "duration": EIGHT_CHUNKS}
    cut.folder.mkdir()
    config = load(values | {"output": str(cut.output)}, assignments=cut.settings).config
    render = build_render(RenderJob(config))
    events = []

    def work() -> None:
        for event in render.run():
            events.append(event)
            if isinstance(event, ChunkDone) and event.index == 2:
                render.stop("interrupted", exit_code=130)

    with pytest.raises(Interrupted, match=r"\b3 of 8\b") as stopped:
        work()
    assert isinstance(events[-1], Saved)
    assert events[-1].chunk == 3
    assert "cfgen resume" in (stopped.value.hint or "")
    resumed = next(event for event in cut.go_on() if isinstance(event, Resumed))
    assert (resumed.snapshot, resumed.replayed, resumed.encoded_again) == (3, 0, 0)
    assert cut.output.read_bytes() == film.expected()


def test_journal_latents_and_settings_stay_and_the_rest_goes(film: MakeFilm) -> None:
    done = film.whole()
    folder = RunFolder(done.run)
    assert folder.finished is not None
    assert len(folder.journal.of(ChunkLine)) == 8
    assert len(list((done.run / "latents").iterdir())) == 8
    assert list((done.run / "segments").iterdir()) == []
    clean = film.whole("snapshot.clean=true")
    assert not clean.run.exists()
    off = film("snapshot.mode=off")
    off.whole()
    assert not off.run.exists()


def test_time_spent_is_counted_over_all_sessions(film: MakeFilm) -> None:
    cut = film.killed(5)
    before = RunFolder(cut.run).journal.of(ChunkLine)[-1].elapsed_s
    events = cut.go_on()
    resumed = next(event for event in events if isinstance(event, Resumed))
    assert resumed.elapsed_s == before
    assert events[-1].elapsed_s > before
    assert all(e.elapsed_s > before for e in events if isinstance(e, ChunkDone))


@pytest.fixture
def cfgen_command(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    sets = [part for value in tiny_settings for part in ("--set", value)]

    def run(command: str, *arguments: str) -> Result:
        given = [command, *arguments]
        if command == "render":
            given += ["--duration", EIGHT_CHUNKS, "--seed", "3", *sets, "-o", "clip.mp4"]
        return CliRunner().invoke(app, given)

    return run


def interrupted_here(film: MakeFilm, tmp_path: Path, chunks: int = 5) -> None:
    shutil.copytree(film.killed(chunks).folder, tmp_path, dirs_exist_ok=True)


def test_commands_go_on_with_an_interrupted_render(
    film: MakeFilm, cfgen_command: Callable[..., Result], tmp_path: Path
) -> None:
    for arguments in (["resume"], ["resume", "clip.cfgen"], ["resume", "clip.mp4"]):
        interrupted_here(film, tmp_path)
        result = cfgen_command(*arguments)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == "clip.mp4\n"
        assert "resuming at chunk 6 of 8, 0:04 of 0:06" in result.stderr
        shutil.rmtree(tmp_path / "clip.cfgen")
        (tmp_path / "clip.mp4").unlink()
        (tmp_path / "clip.mp4.json").unlink()


def test_a_plain_render_onto_an_interrupted_one_is_refused(
    film: MakeFilm, cfgen_command: Callable[..., Result], tmp_path: Path
) -> None:
    interrupted_here(film, tmp_path)
    result = cfgen_command("render", PROMPT)
    assert result.exit_code == 3
    assert "clip.cfgen holds an earlier render of clip.mp4" in result.stderr
    assert "`cfgen resume clip.cfgen`, or begin again with -y" in result.stderr
    assert cfgen_command("render", PROMPT, "--resume").exit_code == 0
    again = cfgen_command("resume")
    assert again.exit_code == 2
    assert "no render was interrupted" in again.stderr
    done = cfgen_command("resume", "clip.mp4")
    assert (done.exit_code, done.stdout) == (0, "clip.mp4\n")
    assert "clip.mp4 is finished, and whole: 93 frames" in done.stderr


def test_another_render_is_refused_with_every_difference(
    film: MakeFilm, cfgen_command: Callable[..., Result], tmp_path: Path
) -> None:
    interrupted_here(film, tmp_path)
    result = cfgen_command("render", "a boat", "--resume", "--set", "memory.tau=0.5")
    assert result.exit_code == 3
    assert f"prompt: began with {PROMPT!r}, now 'a boat'" in result.stderr
    tau = json.loads((tmp_path / "clip.cfgen" / "run.json").read_text())["config"]["memory"]["tau"]
    assert f"memory.tau: began with {tau}, now 0.5" in result.stderr
    record = tmp_path / "clip.cfgen" / "run.json"
    facts = json.loads(record.read_text())
    from cfgen.runs.records import with_checksum

    facts.pop("check")
    facts["fingerprint"] |= {"torch_version": "0.0", "ffmpeg_version": "0.1"}
    record.write_text(json.dumps(with_checksum(facts)))
    result = cfgen_command("resume")
    assert result.exit_code == 3
    assert "torch_version: began with 0.0, now" in result.stderr
    assert "ffmpeg_version: began with 0.1, now" in result.stderr
    allowed = cfgen_command("resume", "--allow-changed", "ffmpeg_version")
    assert "ffmpeg_version" not in allowed.stderr
    assert allowed.exit_code == 3
    never = cfgen_command("resume", "--allow-changed", "torch_version")
    assert never.exit_code == 2
    assert "'torch_version' may not change" in never.stderr


def test_several_interrupted_renders_are_listed(
    film: MakeFilm, cfgen_command: Callable[..., Result], tmp_path: Path
) -> None:
    interrupted_here(film, tmp_path)
    shutil.copytree(tmp_path / "clip.cfgen", tmp_path / "other one.cfgen")
    result = cfgen_command("resume")
    assert result.exit_code == 2
    assert "2 renders were interrupted in this folder" in result.stderr
    assert "cfgen resume 'other one.cfgen'" in result.stderr


def test_a_video_of_somebody_else_is_not_overwritten(film: MakeFilm) -> None:
    cut = film.killed(5)
    cut.output.write_bytes(b"another film")
    with pytest.raises(CfgenError, match=re.escape(str(cut.output))):
        cut.go_on()
    assert cut.output.read_bytes() == b"another film"


def test_segment_lines_stand_only_for_whole_segments(film: MakeFilm) -> None:
    cut = film.killed(7)
    (cut.run / "segments" / "segment-000000.mp4").unlink()
    cut.go_on()
    lines = RunFolder(cut.run).journal.of(SegmentLine)
    assert [line.index for line in lines] == [0, 1, 2]


def test_what_is_finished_and_whole_is_so_after_an_upgrade(
    film: MakeFilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch too, for which nothing is loaded or made."""
    import cfgen.pipeline.build as build_module
    from cfgen.pipeline.rendering import whole_video
    from cfgen.pipeline.runs import config_of

    cut, half, video = film.whole(), film.killed(2), film.expected()
    before = build_module.versions()
    changed = dict.fromkeys(before, "of another day")
    monkeypatch.setattr(build_module, "versions", lambda: changed)
    assert isinstance(cut.go_on()[-1], Finished)
    folder = RunFolder(cut.run)
    finished = whole_video(folder, RenderJob(config_of(folder)))
    assert finished is not None
    assert (finished.output, finished.frames) == (cut.output, RunFolder(cut.run).finished.frames)
    assert cut.output.read_bytes() == video
    assert whole_video(RunFolder(half.run), RenderJob(config_of(RunFolder(half.run)))) is None
    with pytest.raises(SnapshotMismatch):
        half.go_on()


def test_a_render_that_a_cfgen_with_fewer_keys_began_is_gone_on_with(
    film: MakeFilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = ("begin", "shots", "transition", "memory.global_sink")

    def older(config: RenderConfig) -> dict[str, object]:
        found: dict[str, Any] = to_mapping(config)
        for key in later:
            *sections, last = key.split(".")
            functools.reduce(operator.getitem, sections, found).pop(last, None)
        return found

    with monkeypatch.context() as patch:
        patch.setattr("cfgen.pipeline.build.to_mapping", older)
        cut = film()
        cut.until(3)
    assert not set(later) & set(RunFolder(cut.run).record.config)
    assert cut.gone_on_with() == film.expected()
