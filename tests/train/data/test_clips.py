"""Clips of films: their frames, their latents, and what is encoded anew."""

from __future__ import annotations

import dataclasses
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cfgen.errors import UsageError
from cfgen.model.vae import TinyAutoencoder
from cfgen.model.wan_vae import WanAutoencoder
from cfgen.train.data import clips
from cfgen.train.data.clips import Clips, ClipSettings, Encoded, encode_films, in_random_order
from cfgen.train.film_world.latents import encode
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.reading import read_frames

SETTINGS = ClipSettings(fps=8, width=16, height=16, latents=3)
FRAMES = 9


def _write(path: Path, video: NDArray[np.uint8], fps: int = 8) -> Path:
    """A lossless film of frames [T, H, W, 3], with its caption beside it."""
    count, height, width, _ = video.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps)]
    coded = ["-c:v", "libx264rgb", "-qp", "0", "-f", "matroska"]
    argv = [*find_ffmpeg().prefix(), *raw, "-i", "pipe:0", *coded, str(path)]
    subprocess.run([part for part in argv if part != "-nostdin"], input=video.tobytes(), check=True)
    path.with_suffix(".txt").write_text("a cat", encoding="utf-8")
    return path


def _video(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


def _read(path: Path, fps: int, width: int, height: int) -> NDArray[np.uint8]:
    frames = read_frames(find_ffmpeg(), path, fps=Fraction(fps), width=width, height=height)
    return np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in frames])


def _tiny(seed: int = 0) -> TinyAutoencoder:
    torch.manual_seed(seed)
    return TinyAutoencoder(4, 8, (8, 8, 8, 8)).eval()


def _encoded(folder: Path, vae: TinyAutoencoder | WanAutoencoder, **how: bool) -> list[Encoded]:
    settings = dataclasses.replace(SETTINGS, folder=folder, **how)
    return list(encode_films(folder / "cache", vae, settings))


def test_frames_of_another_rate_are_those_shown_at_their_time(tmp_path: Path) -> None:
    shades = np.repeat(np.arange(24, dtype=np.uint8) * 10, 16 * 16 * 3).reshape(24, 16, 16, 3)
    slow = _read(_write(tmp_path / "a.mkv", shades, fps=24), 8, 16, 16)
    assert (slow[:, 0, 0, 0] // 10).tolist() == pytest.approx([0, 3, 6, 9, 12, 15, 18, 21], abs=1)
    assert np.diff(slow[:, 0, 0, 0]).tolist() == [30] * 7
    fast = _read(_write(tmp_path / "b.mkv", shades[:4], fps=4), 8, 16, 16)
    assert (fast[:, 0, 0, 0] // 10).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("height", "width"), [(16, 48), (48, 16), (32, 96)])
def test_what_stands_out_is_cut_off_on_both_sides(height: int, width: int, tmp_path: Path) -> None:
    """The middle third is white; it alone is left of a film three times as long one way."""
    picture = np.zeros((height, width, 3), np.uint8)
    third = height // 3 if height > width else width // 3
    middle = slice(third, 2 * third)
    picture[
        middle if height > width else slice(None), middle if width > height else slice(None)
    ] = 255
    path = _write(tmp_path / "a.mkv", np.stack([picture] * 2))
    assert _read(path, 8, 16, 16)[:, 2:-2, 2:-2].min() == 255
    assert _read(path, 8, 16, 16).shape == (2, 16, 16, 3)


def test_a_film_gives_as_many_clips_as_it_holds(tmp_path: Path) -> None:
    video, vae = _video(2 * FRAMES + 5), _tiny()
    _write(tmp_path / "film.mkv", video)
    (film,) = _encoded(tmp_path, vae)
    latents, captions = Clips.of([film]).batch([1, 0])
    assert captions == ["a cat", "a cat"]
    assert latents.shape == (2, 3, 4, 2, 2)
    for found, start in zip(latents, (FRAMES, 0), strict=True):
        expected = encode(vae, video[start : start + FRAMES])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_wans_autoencoder_encodes_as_well(tmp_path: Path) -> None:
    _write(tmp_path / "film.mkv", _video(FRAMES))
    torch.manual_seed(0)
    (film,) = _encoded(tmp_path, WanAutoencoder(8, 8, (1, 1, 1, 1)).eval())
    assert Clips.of([film]).batch([0])[0].shape == (1, 3, 16, 2, 2)


def test_nothing_is_encoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "film.mkv", _video(2 * FRAMES))
    calls = 0

    def counted(vae: TinyAutoencoder, video: NDArray[np.uint8]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return encode(vae, video)

    monkeypatch.setattr(clips, "encode", counted)
    first = _encoded(tmp_path, _tiny())[0].clips
    assert calls == 2
    assert _encoded(tmp_path, _tiny())[0].clips == first
    assert calls == 2
    for suffix, name in ((".mkv", "film"), (".txt", "film")):  # another name, the same content
        (tmp_path / f"{name}{suffix}").rename(tmp_path / f"other{suffix}")
    assert _encoded(tmp_path, _tiny())[0].clips == first
    assert calls == 2
    for record in (tmp_path / "cache").glob("*.json"):  # as if it was cut within the second clip
        record.unlink()
    first[1].unlink()
    assert _encoded(tmp_path, _tiny())[0].clips == first
    assert calls == 3
    assert not set(_encoded(tmp_path, _tiny(1))[0].clips) & set(first)  # another autoencoder
    assert calls == 5


def test_a_film_that_cannot_be_read_is_named_and_skipped_only_if_asked(tmp_path: Path) -> None:
    good = _write(tmp_path / "good.mkv", _video(FRAMES))
    short = _write(tmp_path / "short.mkv", _video(FRAMES - 1))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    broken.with_suffix(".txt").write_text("nothing")
    with pytest.raises(UsageError, match=r"broken\.mp4 cannot be read"):
        _encoded(tmp_path, _tiny())
    found = {each.film.path: each for each in _encoded(tmp_path, _tiny(), skip_unreadable=True)}
    assert len(found[good].clips) == 1
    assert "shorter than one clip (1.1 s)" in found[short].skipped
    assert "broken.mp4" in found[broken].skipped
    assert len(Clips.of(list(found.values())).paths) == 1
    with pytest.raises(UsageError, match="no film could be read"):
        Clips.of([found[short], found[broken]])


def test_a_film_with_damaged_frames_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "film.mkv", _video(4 * FRAMES))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"film\.mkv cannot be read"):
        _encoded(tmp_path, _tiny())


def test_a_size_of_broken_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="20x16 are no whole cells"):
        list(encode_films(tmp_path, _tiny(), ClipSettings(width=20, height=16)))


def test_an_order_takes_every_number_once_a_round() -> None:
    whole = in_random_order(0, 21, 7, "clips", 3)
    rounds = [whole[start : start + 7] for start in (0, 7, 14)]
    assert [sorted(r) for r in rounds] == [list(range(7))] * 3
    assert rounds[0] != rounds[1]
    assert in_random_order(5, 9, 7, "clips", 3) == whole[5:14]
    assert in_random_order(0, 7, 7, "clips", 4) != rounds[0]
