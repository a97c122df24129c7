"""A finished run becomes another file: the same frames, others of another VAE, and after a kill."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cfgen.cli.app import app
from cfgen.errors import (
    CfgenError,
    CheckpointError,
    OutputRefused,
    SnapshotCorrupt,
    SnapshotMismatch,
    UsageError,
)
from cfgen.pipeline import decoding
from cfgen.pipeline.decoding import decode_again
from cfgen.pipeline.rendering import Rendering
from cfgen.renderer.events import ChunkDone, Event, Finished, Noted
from cfgen.runs.beginning import SOUND
from cfgen.runs.folder import RunFolder
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.measure import measure
from cfgen.video.output import run_of, sidecar_of
from tests.render.crash import Crash, dying
from tests.render.film import Film, MakeFilm
from tests.render.test_begin import has_sound
from tests.render.test_sound import track


def facts_of(video: Path) -> dict[str, object]:
    return dict(json.loads(sidecar_of(video).read_text())["facts"])


def begun(whole: Film, name: str, overwrite: bool = False, **changes: str) -> Rendering:
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    output = whole.folder / name
    return decode_again(whole.run, output=output, changes=keys, overwrite=overwrite)


def decoded(whole: Film, name: str, **changes: str) -> Path:
    *_, last = begun(whole, name, **changes)
    assert isinstance(last, Finished)
    return last.output


OTHERS = {
    "mkv of FFV1": ("b.mkv", {"encode__codec": "ffv1"}),
    "ProRes": ("b.mov", {"encode__codec": "prores"}),
    "draft": ("b.mp4", {"encode__quality": "draft"}),
    "a folder": ("b.png", {"encode__bits": "16"}),
    "a gif": ("b.gif", {}),
    "interpolated": ("b.webm", {"encode__interpolate": "32"}),
}


@pytest.mark.parametrize(("name", "changes"), OTHERS.values(), ids=OTHERS)
def test_the_same_frames_go_to_another_file(
    name: str, changes: dict[str, str], film: MakeFilm, ffmpeg: Ffmpeg
) -> None:
    whole = film.whole()
    made, before = facts_of(decoded(whole, name, **changes)), facts_of(whole.output)
    if made["encoder"] not in ("prores_ks", "png"):  # of more than 8 bits
        assert made["frames_sha256"] == before["frames_sha256"]
    assert made["duration_s"] == before["duration_s"]
    if name == "b.mkv":
        found = measure(ffmpeg, whole.folder / name, decode=True)
        assert found.frames == before["frames"]


def test_the_generator_may_be_gone(film: MakeFilm, tiny_model: Path, tmp_path: Path) -> None:
    model, vae = tmp_path / "model", tmp_path / "vae.safetensors"
    shutil.copytree(tiny_model, model)
    shutil.copy(model / "tae.safetensors", vae)
    whole = film.whole(f"model.path={model}")
    shutil.rmtree(model)
    with pytest.raises(CheckpointError, match=re.escape(str(model))):
        begun(whole, "b.mkv")
    output = decoded(whole, "b.mkv", model__vae=str(vae))
    assert facts_of(output)["frames_sha256"] == facts_of(whole.output)["frames_sha256"]


def test_another_vae_makes_other_frames(film: MakeFilm, tiny_model: Path, tmp_path: Path) -> None:
    whole = film.whole()
    vae = tiny_model / "tae.safetensors"
    other, weights = tmp_path / vae.name, load_file(vae)
    name = max((n for n in weights if "decoder" in n), key=lambda each: weights[each].numel())
    save_file({**weights, name: torch.flip(weights[name], [0])}, other)
    made = facts_of(decoded(whole, "b.mp4", model__vae=str(other)))
    assert made["frames_sha256"] != facts_of(whole.output)["frames_sha256"]
    assert made["frames"] == facts_of(whole.output)["frames"]


def killed(whole: Film, name: str, chunks: int) -> Path:
    """What a decoding leaves that is killed after some chunks."""
    rendering = begun(whole, name)
    events = cast("Generator[Event, None, None]", iter(rendering))
    with dying(whole.folder, None) as disk:
        for event in events:
            if isinstance(event, ChunkDone) and event.index + 1 == chunks:
                break
        disk.dead = True
        with suppress(Crash):
            events.close()
    path = run_of(whole.folder / name)
    text = (path / "lock").read_text()
    (path / "lock").unlink()
    (path / "lock").write_text(json.dumps(json.loads(text) | {"born": "long ago"}))
    return path


@pytest.mark.parametrize("again", ["decode", "resume"])
@pytest.mark.parametrize("chunks", [1, 4, 8])
def test_a_decoding_that_was_killed_gives_the_same_file(
    chunks: int, again: str, film: MakeFilm
) -> None:
    whole = film.whole()
    expected = decoded(whole, "a.mkv").read_bytes()
    path = killed(whole, "b.mkv", chunks)
    go_on = begun(whole, "b.mkv") if again == "decode" else decoding.resume(path)
    told = [event.message for event in go_on if isinstance(event, Noted)]
    assert (chunks < 4) or any("frames are there" in line for line in told)
    assert (whole.folder / "b.mkv").read_bytes().replace(b"b.mkv", b"a.mkv") == expected
    *_, last = begun(whole, "b.mkv")  # and once more: it is only verified
    assert isinstance(last, Finished)


def test_a_decoding_of_another_kind_is_not_gone_on_with(film: MakeFilm) -> None:
    whole = film.whole()
    killed(whole, "b.mkv", 4)
    with pytest.raises(SnapshotMismatch, match="encode.quality"):
        begun(whole, "b.mkv", encode__quality="draft")


def test_sound_goes_along_or_is_another(film: MakeFilm, tmp_path: Path) -> None:
    first, second = track(tmp_path / "a.wav"), track(tmp_path / "b.wav", samples=50_000)
    whole = film.whole(f"audio.file={first}")
    first.unlink()
    assert has_sound(decoded(whole, "b.mkv"))
    kept = (whole.run / SOUND).read_bytes()
    assert (run_of(whole.folder / "b.mkv") / SOUND).read_bytes() == kept
    other = decoded(whole, "c.mp4", audio__file=str(second))
    assert has_sound(other)
    assert (run_of(other) / SOUND).read_bytes() != kept
    assert not has_sound(decoded(whole, "d.gif"))


REFUSED: dict[str, tuple[str, dict[str, str], type[CfgenError], str]] = {
    "its own name": ("clip.mp4", {}, UsageError, "needs a name of its own"),
    "its own run": ("clip.mp4", {}, UsageError, "needs a name of its own"),
    "no format": ("b.avi", {}, UsageError, "must end in .mp4"),
    "no such codec there": ("b.webm", {"encode__codec": "h264"}, UsageError, "do not carry h264"),
    "a small tile": (
        "b.mp4",
        {"model__vae_tile": "8"},
        UsageError,
        "--vae-tile: must be at least 16, got 8",
    ),
    "no such VAE": ("b.mp4", {"model__vae": "nowhere"}, CfgenError, "nowhere"),
    "no folder": ("no/b.mp4", {}, OutputRefused, "does not exist"),
    "a silent format": ("b.gif", {"audio__file": "a.wav"}, UsageError, "carries no sound"),
}


@pytest.mark.parametrize(("name", "changes", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_decoded_is_refused_before_anything_loads(
    name: str, changes: dict[str, str], error: type[CfgenError], says: str, film: MakeFilm
) -> None:
    whole = film.whole()
    before = sorted(path.name for path in whole.folder.iterdir())
    with pytest.raises(error, match=says):
        begun(whole, name, **changes)
    assert sorted(path.name for path in whole.folder.iterdir()) == before


def test_a_file_that_is_there_is_replaced_only_if_asked(film: MakeFilm) -> None:
    whole = film.whole()
    (whole.folder / "b.mkv").write_bytes(b"mine")
    with pytest.raises(OutputRefused, match="exists already"):
        begun(whole, "b.mkv")
    *_, last = begun(whole, "b.mkv", overwrite=True)
    assert isinstance(last, Finished)


def test_a_run_that_is_not_finished_or_damaged_is_refused(film: MakeFilm) -> None:
    with pytest.raises(UsageError, match="is rendered up to chunk 5 of 8"):
        begun(film.killed(5), "b.mkv")
    whole = film.whole()
    RunFolder(whole.run).latents(3).write_bytes(b"damaged")
    with pytest.raises(SnapshotCorrupt, match="the latents of chunk 4 .* are missing or damaged"):
        begun(whole, "b.mkv")


@pytest.mark.parametrize(
    ("flags", "exit_code", "says"),
    [
        (["-o", "b.mkv", "--codec", "ffv1", "--quality", "draft"], 0, "b.mkv"),
        (["-o", "b.webm", "--codec", "h264"], 2, ".webm files do not carry h264"),
        (["-o", "b.mp4", "--audio-loop"], 2, "belongs to a sound, and none is given"),
        (["-o", "b.mp4", "--vae-tile", "8"], 2, "--vae-tile: must be at least 16"),
        (["-o", "clip.mp4"], 2, "the new video needs a name of its own"),
    ],
)
def test_the_command_line_decodes(
    flags: list[str],
    exit_code: int,
    says: str,
    film: MakeFilm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = film.whole()
    monkeypatch.chdir(whole.folder)
    result = CliRunner().invoke(app, ["decode", "clip.mp4", *flags])
    assert result.exit_code == exit_code
    assert says in (result.stdout if exit_code == 0 else result.stderr)
