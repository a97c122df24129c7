"""Films scored whole, written down and read back; films against references."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen import score
from cfgen.errors import InputRefused, OutputRefused
from cfgen.scoring import api
from cfgen.scoring.record import SCHEMA, read_score, score_record, write_score
from tests.scoring.conftest import pan, write_film


def _noisy(frames: list[NDArray[np.uint8]], far: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(2)
    return [
        np.clip(f + rng.integers(-far, far + 1, f.shape), 0, 255).astype(np.uint8) for f in frames
    ]


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for each in value.values() for n in _numbers(each)]
    if isinstance(value, list):
        return [n for each in value for n in _numbers(each)]
    return [value] if isinstance(value, float) else []


def test_bare_film_and_what_is_written_of_it(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mkv", pan(100), prompt="a kite", seed=4)
    found = score(film)
    assert (found.run, found.score.seams, found.against, found.embedding) == (None,) * 4
    assert any("--chunk-frames" in note for note in found.notes)
    assert found.alarms == ()
    written = write_score(found)
    assert written == tmp_path / "a.mkv.score.json"
    told = json.loads(written.read_text())
    assert (
        told
        == read_score(film)
        == json.loads(json.dumps(score_record(found))) | {"provenance": told["provenance"]}
    )
    assert (told["schema"], told["film"]) == (SCHEMA, "a.mkv")
    assert all(map(math.isfinite, _numbers(told)))
    assert {len(curve) for curve in told["curves"].values()} == {13}
    assert [row["to_s"] for row in told["table"]] == [10, 12.5]
    facts = told["provenance"]
    assert (facts["codec"], facts["lossy"], facts["fps"], facts["frames"]) == (
        "ffv1",
        False,
        8,
        100,
    )
    assert (facts["prompt"], facts["seed"], facts["chunk_starts"]) == ("a kite", 4, None)
    assert told["summary"]["ti"] > 0
    write_score(found)  # an earlier score is replaced


def test_score_of_a_film_that_changed_is_none(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mkv", pan(10))
    assert read_score(film) is None
    path = write_score(score(film))
    assert read_score(film) is not None
    write_film(film, pan(11))
    assert read_score(film) is None
    path.write_text('{"schema": "cfgen.score/2"}')
    assert read_score(film) is None


@pytest.mark.parametrize("content", ["{}", "[", "notes of mine", '{"schema": 3}'])
def test_files_of_others_are_not_replaced(tmp_path: Path, content: str) -> None:
    film = write_film(tmp_path / "a.mkv", pan(3))
    place = tmp_path / "a.mkv.score.json"
    place.write_text(content)
    with pytest.raises(OutputRefused, match="is no score"):
        write_score(score(film))
    assert place.read_text() == content


def test_chunks_by_number(tmp_path: Path) -> None:
    frames = [np.full((32, 48, 3), 100 + n + 3 * (n >= 9), np.uint8) for n in range(15)]
    film = write_film(tmp_path / "a.mkv", frames)
    found = score(film, chunk_frames=12)
    assert found.score.seams is not None
    assert found.score.seams.ratio == pytest.approx(4)
    told: Any = score_record(found)["provenance"]
    assert (told["chunk_starts"], told["chunk_frames"], told["chunks_by"]) == ([9], 12, "flag")


def test_film_against_itself_and_against_worse(tmp_path: Path) -> None:
    frames = pan(12)
    film = write_film(tmp_path / "a.mkv", frames)
    same: Any = score_record(score(film, against=film))["against"]
    assert (same["psnr_db"], same["ssim"], same["first_unequal_frame"]) == (None, 1, None)
    assert same["psnr_db_by_second"] == [None, None]
    worse = write_film(tmp_path / "b.mkv", [*frames[:6], *_noisy(frames[6:], 20)])
    told: Any = score_record(score(worse, against=film))["against"]
    assert told["first_unequal_frame"] == 6
    assert told["psnr_db"] < 40
    assert told["ssim"] < 1
    assert told["vmaf"] < same["vmaf"]


@pytest.mark.parametrize(
    ("frames", "rate", "words"),
    [
        (pan(13), "8", "more than 12 frames"),
        (pan(12), "9", "frames a second"),
        ([frame[:, :40] for frame in pan(12)], "8", "pixels wide"),
        ([frame[:20] for frame in pan(12)], "8", "pixels high"),
    ],
)
def test_films_that_cannot_be_compared_are_refused(
    tmp_path: Path, frames: list[NDArray[np.uint8]], rate: str, words: str
) -> None:
    film = write_film(tmp_path / "a.mkv", pan(12))
    other = write_film(tmp_path / "b.mkv", frames, rate=rate)
    with pytest.raises(InputRefused, match=words):
        score(film, against=other)


def test_an_ffmpeg_without_filters_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = write_film(tmp_path / "a.mkv", pan(12))
    monkeypatch.setattr(api, "filters_of", lambda ffmpeg: frozenset())
    found = score(film, against=film)
    assert found.information is None
    assert found.against is not None
    assert found.against.vmaf is None
    told = [note for note in found.notes if "was built without" in note]
    assert [("siti" in note, "libvmaf" in note) for note in told] == [(True, False), (False, True)]


def test_spatial_and_temporal_information(tmp_path: Path) -> None:
    still = score(write_film(tmp_path / "still.mkv", pan(1) * 9)).information
    assert still is not None
    assert still.ti == 0 < still.si
    assert score(write_film(tmp_path / "one.mkv", pan(1))).information is None
