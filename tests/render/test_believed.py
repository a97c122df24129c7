"""What decides a pixel is looked at again where it is used, and only what is ours is written to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfgen.checkpoint.identify import digests
from cfgen.errors import OutputRefused, WriterError
from cfgen.files.writing import part_of
from cfgen.model.prompts import embeddings
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.output import sidecar_of
from tests.render.test_writer import moving, parts_of, writer


def flip(path: Path, at: int) -> None:
    """Turn one bit around and leave the times as they were."""
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    with path.open("rb+") as file:
        file.write(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("damage", ["bit", "other", "gone", "cut"])
@pytest.mark.parametrize("segment", [0, 1])
def test_a_segment_that_changed_is_not_joined(
    damage: str, segment: int, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    output = tmp_path / "clip.mp4"
    with writer(output, ffmpeg) as video:
        made = []
        for start in (0, 2):
            video.write(moving(2, start))
            made.append(video.end_segment().path)
        path = made[segment]
        if damage == "bit":
            flip(path, path.stat().st_size - 20)
        elif damage == "other":
            path.write_bytes(made[1 - segment].read_bytes())
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink()
        with pytest.raises(WriterError, match=f"segment-00000{segment}.mp4 is not what was"):
            video.join()
        video.abort()
    assert not output.exists()


def _encoder(asked: list[str]) -> Callable[[], Callable[[list[str]], Tensor]]:
    def encode(prompts: list[str]) -> Tensor:
        asked.extend(prompts)
        return torch.stack([torch.full((4, 3), float(len(prompt))) for prompt in prompts])

    return lambda: encode


@pytest.mark.parametrize("damage", ["first bit", "last bit", "another prompt", "no digest"])
def test_a_cached_prompt_that_changed_is_encoded_again(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import save

    asked: list[str] = []

    def ask(prompt: str) -> Tensor:
        return embeddings([prompt], encoder="x", load=_encoder(asked), folder=tmp_path)[prompt]

    ask("a")
    (file,) = tmp_path.iterdir()
    if damage == "another prompt":
        ask("bb")
        (other,) = set(tmp_path.iterdir()) - {file}
        file.write_bytes(other.read_bytes())
    elif damage == "no digest":
        file.write_bytes(save({"embedding": torch.zeros(1, 4, 3)}))
    else:
        flip(file, -1 if damage == "last bit" else file.stat().st_size - 48)
    asked.clear()
    assert float(ask("a").mean()) == 1
    assert asked == ["a"]
    ask("a")
    assert asked == ["a"]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(digests, "WORTH_KEEPING", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(100_000))
    digests._digest.cache_clear()
    return path


@pytest.mark.parametrize("at", [0, 50_000, 99_999])
def test_other_weights_of_the_same_size_time_and_inode_are_read(weights: Path, at: int) -> None:
    before = digests.digest(weights)
    flip(weights, at)
    assert digests.digest(weights) != before
    digests._digest.cache_clear()
    assert digests.digest(weights) != before


def test_a_sample_tells_where_no_time_does(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, stamp = digests.digest(weights), digests._stamp(weights)
    flip(weights, 0)
    monkeypatch.setattr(digests, "SAMPLES", 64)
    assert digests._stamp(weights)[-1] != stamp[-1]
    assert digests.digest(weights) != before


def test_a_resume_believes_no_kept_digest(weights: Path) -> None:
    right = digests.digest(weights)
    (kept,) = (digests.cache_folder() / "digests").iterdir()
    kept.write_text("0" * 64)
    digests._digest.cache_clear()
    assert digests.digest(weights) == "0" * 64
    assert digests.digest(weights, anew=True) == right


@pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")
@pytest.mark.parametrize("place", ["segment", "listing", "metadata", "video", "sidecar"])
def test_links_under_temporary_names_are_not_written_through(
    place: str, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    output, victim = tmp_path / "clip.mp4", tmp_path / "victim"
    victim.write_bytes(b"precious")
    parts = parts_of(output)
    links = {
        "segment": parts / "segment-000000.part.mp4",
        "listing": parts / "segments.ffconcat",
        "metadata": parts / "metadata.ffmeta",
        "video": part_of(output),
        "sidecar": part_of(sidecar_of(output)),
    }
    with writer(output, ffmpeg) as video:
        links[place].symlink_to(victim)
        video.write(moving(2))
        video.join()
        video.publish()
    assert victim.read_bytes() == b"precious"
    assert output.stat().st_size > 100
    assert not output.is_symlink()


def test_a_child_of_a_dead_render_writes_to_no_name_of_the_next(
    tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    """The names that ffmpeg is given differ each time, and what was left under old ones goes."""
    output = tmp_path / "clip.mp4"
    dead = writer(output, ffmpeg).__enter__()
    dead.write(moving(2))
    orphan = set(parts_of(output).iterdir())
    with writer(output, ffmpeg) as video:
        video.write(moving(3))
        dead.let_go()
        video.join()
        video.publish()
    assert output.exists()
    assert not orphan & set(parts_of(output).iterdir())


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("which", ["video", "sidecar"])
@pytest.mark.parametrize("before", [False, True])
def test_a_file_that_came_meanwhile_is_not_replaced(
    replaces: bool, which: str, before: bool, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    output = tmp_path / "clip.mp4"
    place = output if which == "video" else sidecar_of(output)
    if before:
        place.write_bytes(b"old")
    with writer(output, ffmpeg, replaces=replaces) as video:
        video.write(moving(2))
        video.join()
        place.write_bytes(b"somebody's own")
        if replaces:
            video.publish()
        else:
            with pytest.raises(OutputRefused, match="came or changed while"):
                video.publish()
            video.abort()
    assert (place.read_bytes() == b"somebody's own") is not replaces
