"""Films are read at their own rate and size, and what was read is told."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cfgen.errors import InputRefused
from cfgen.files.writing import sha256_of
from cfgen.scoring.runs import film_of
from cfgen.scoring.settings import films_in
from cfgen.scoring.source import FilmSource, open_film
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.formats import FRAME_NAME
from tests.scoring.conftest import pan, write_film

H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")


def _open(path: Path) -> FilmSource:
    return open_film(find_ffmpeg(), path)


@pytest.mark.parametrize(
    ("name", "options", "rate", "codec", "lossy"),
    [
        ("a.mkv", (), "8", "ffv1", False),
        ("a.mp4", H264, "30000/1001", "h264", True),
        ("a.webm", ("-c:v", "libvpx-vp9"), "25", "vp9", True),
        ("a.mov", ("-c:v", "qtrle"), "24", "qtrle", False),
    ],
)
def test_films_are_read_as_they_are(
    tmp_path: Path, name: str, options: tuple[str, ...], rate: str, codec: str, lossy: bool
) -> None:
    made = pan(20)
    film = _open(write_film(tmp_path / name, made, *options, rate=rate))
    frames = list(film.frames())
    assert (len(frames), frames[0].shape, film.fps) == (20, (32, 48, 3), Fraction(rate))
    assert (film.codec, film.lossy, film.packets) == (codec, lossy, 20)
    assert any("loses detail" in note for note in film.notes(20)) is lossy
    assert lossy or all(np.array_equal(a, b) for a, b in zip(frames, made, strict=True))


def _sidecar(film: Path, **facts: object) -> None:
    told = {
        "metadata": {"prompt": "a kite", "seed": "7"},
        "facts": {"sha256": sha256_of(film), **facts},
    }
    film.with_name(f"{film.name}.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", ("-pix_fmt", "rgb24")),
        ("b.png", ("-pix_fmt", "rgb48be")),
        ("a.gif", ("-c:v", "gif")),
        ("a.mkv", ("-c:v", "ffv1", "-pix_fmt", "yuv444p10le")),
        ("a.mov", ("-c:v", "prores_ks", "-pix_fmt", "yuv422p10le")),
    ],
)
def test_what_cfgen_made_is_read_at_the_rate_that_it_tells(
    tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    path, made = tmp_path / name, pan(20)
    if path.suffix == ".png":
        path.mkdir()
    write_film(path / FRAME_NAME if path.is_dir() else path, made, *options, rate="16")
    _sidecar(path, fps=16.0, frames=20)
    film = _open(path)
    frames = list(film.frames())
    assert (len(frames), frames[0].shape, film.fps) == (20, (32, 48, 3), Fraction(16))
    assert (film.packets, film.prompt, film.seed) == (20, "a kite", 7)
    assert path.suffix != ".png" or all(
        np.array_equal(a, b) for a, b in zip(frames, made, strict=True)
    )


def test_a_folder_of_frames_needs_its_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.mkdir()
    write_film(path / FRAME_NAME, pan(3), "-pix_fmt", "rgb24")
    with pytest.raises(InputRefused, match="rate"):
        _open(path)
    _sidecar(path, fps=16.0)
    assert _open(path).fps == 16
    assert films_in(tmp_path) == [path]
    assert film_of(path) == path
    (path / "000003.png").unlink()
    with pytest.raises(InputRefused, match="rate"):
        _open(path)


def test_uneven_times_are_told(tmp_path: Path) -> None:
    uneven = ("-vf", "select='not(eq(mod(n,5),2))'", "-fps_mode", "vfr", "-c:v", "ffv1")
    film = _open(write_film(tmp_path / "uneven.mkv", pan(40), *uneven))
    frames = sum(1 for _ in film.frames())
    assert film.packets == 32 < frames
    assert [note for note in film.notes(frames) if "uneven" in note]


def test_sidecar_of_another_file_is_not_believed(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mkv", pan(4), prompt="a kite", seed=7)
    found = _open(path)
    assert (found.prompt, found.seed, found.quality) == ("a kite", 7, "good")
    write_film(path, pan(5))
    changed = _open(path)
    assert (changed.prompt, changed.seed, changed.quality) == (None, None, None)


@pytest.mark.parametrize("sidecar", ["[]", "{", '{"facts": 3}', '{"facts": {"sha256": 1}}', ""])
def test_odd_sidecars_tell_nothing(tmp_path: Path, sidecar: str) -> None:
    path = write_film(tmp_path / "a.mkv", pan(2))
    (tmp_path / "a.mkv.json").write_text(sidecar)
    assert _open(path).prompt is None


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no film")
    for path in (tmp_path / "a.mp4", tmp_path / "b.mp4"):
        with pytest.raises(InputRefused, match=path.name):
            _open(path)
