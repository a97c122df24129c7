"""Folders of films compared over prompts and seeds, and put into a folder for VBench."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen import score
from cfgen.errors import InputRefused, OutputRefused
from cfgen.scoring.api import ScoredFilm
from cfgen.scoring.settings import Key, by_key, compare_settings, figures_of, films_in
from cfgen.scoring.vbench import export_vbench
from tests.scoring.conftest import pan, write_film

KEYS = [("a kite", 1), ("a kite", 2), ("a boat", 1), ("a star", 5)]


def _film(number: int, *, fading: bool) -> list[NDArray[np.uint8]]:
    """Twelve seconds at 2 a second; the second half of a fading one has half the contrast."""
    frames = pan(24, 20 * number)
    halved = [(frame // 2 + 60).astype(np.uint8) for frame in frames[12:]]
    return [*frames[:12], *(halved if fading else frames[12:])]


def _folder(folder: Path, *, fading: bool, keys: list[Key] = KEYS) -> Path:
    for number, (prompt, seed) in enumerate(keys):
        film = _film(number, fading=fading)
        write_film(folder / f"{number}.mkv", film, rate="2", prompt=prompt, seed=seed)
    return folder


def _scored(folder: Path) -> dict[Key, ScoredFilm]:
    return by_key(score(film) for film in films_in(folder))


def test_a_setting_that_fades_is_told_apart(tmp_path: Path) -> None:
    steady = _scored(_folder(tmp_path / "steady", fading=False))
    fading = _scored(_folder(tmp_path / "fading", fading=True))
    found = {row.figure: row for row in compare_settings(steady, fading)}
    row = found["contrast drift"]
    assert row.paired.told_apart
    assert (row.paired.prompts, row.paired.pairs) == (3, 4)
    each = {key: figures_of(fading[key])["contrast drift"] for key in KEYS}
    ratio = fading[KEYS[0]].score.drift.contrast.ratio
    assert ratio is not None
    assert each[KEYS[0]] == abs(math.log(ratio))
    kite = (each[KEYS[0]] + each[KEYS[1]]) / 2
    assert row.other == pytest.approx((kite + each[KEYS[2]] + each[KEYS[3]]) / 3)
    assert row.paired.difference == pytest.approx(row.other - row.base)
    same = compare_settings(steady, steady)
    assert not any(row.paired.told_apart for row in same)
    assert next(iter(found)) == "motion"
    assert "seam ratio" not in found


def test_one_prompt_is_not_compared(tmp_path: Path) -> None:
    one = _scored(_folder(tmp_path / "one", fading=False, keys=KEYS[:2]))
    with pytest.raises(InputRefused, match="these share 1"):
        compare_settings(one, one)


def test_films_without_a_sidecar_are_left_out(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "films", fading=False, keys=KEYS[:2])
    write_film(folder / "bare.mkv", pan(2))
    write_film(folder / "below" / "a.mkv", pan(2), prompt="a cube", seed=3)
    write_film(folder / "a.cfgen" / "segments" / "b.mkv", pan(2), prompt="a cube", seed=4)
    (folder / "notes.json").write_text("{}")
    names = [str(path.relative_to(folder)) for path in films_in(folder)]
    assert names == ["0.mkv", "1.mkv", str(Path("below", "a.mkv"))]


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_folders_without_films_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused, match=name):
        films_in(tmp_path / name)


def test_films_of_one_prompt_and_seed_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "films", fading=False, keys=[KEYS[0], KEYS[0]])
    with pytest.raises(InputRefused, match="same prompt and seed"):
        _scored(folder)


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    keys = [("a kite", 9), ("a kite", 7), ("a boat", 9)]
    return [
        write_film(tmp_path / f"{n}.mp4", pan(3 + n), "-c:v", "libx264", prompt=prompt, seed=seed)
        for n, (prompt, seed) in enumerate(keys)
    ]


def test_vbench_finds_films_by_prompt_and_number(films: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "vbench"
    found = export_vbench(films, folder)
    names = {"a kite-0.mp4": 1, "a kite-1.mp4": 0, "a boat-0.mp4": 2}
    assert found.files == {name: films[number] for name, number in names.items()}
    for name, number in names.items():
        assert (folder / name).read_bytes() == films[number].read_bytes()
    prompts = json.loads((folder / "prompts.json").read_text())
    assert prompts == {str(folder / name): name.rpartition("-")[0] for name in names}
    seeds = json.loads((folder / "seeds.json").read_text())
    assert seeds["a kite-0.mp4"] == {"prompt": "a kite", "seed": 7, "film": str(films[1])}
    assert found.notes == ()
    with pytest.raises(OutputRefused, match="not an empty folder"):
        export_vbench(films, folder)


@pytest.mark.parametrize("prompt", ["a kite/boat", "a" * 300, "a\nkite"])
def test_prompts_that_are_no_names_are_refused(tmp_path: Path, prompt: str) -> None:
    film = write_film(tmp_path / "a.mp4", pan(2), "-c:v", "libx264", prompt=prompt)
    with pytest.raises(InputRefused, match="name of a file"):
        export_vbench([film], tmp_path / "vbench")
    assert not (tmp_path / "vbench").exists()


def test_what_vbench_cannot_read_is_refused(films: list[Path], tmp_path: Path) -> None:
    lossless = write_film(tmp_path / "a.mkv", pan(2), prompt="a star")
    bare = write_film(tmp_path / "bare.mp4", pan(2), "-c:v", "libx264")
    twice = write_film(tmp_path / "twice.mp4", pan(2), "-c:v", "libx264", prompt="a boat", seed=9)
    for film, words in ((lossless, ".mp4, .gif"), (bare, "no prompt"), (twice, "same prompt")):
        with pytest.raises(InputRefused, match=words):
            export_vbench([*films, film], tmp_path / "vbench")


def test_more_films_than_vbench_looks_at_are_told(tmp_path: Path) -> None:
    films = [
        write_film(tmp_path / f"{n}.mp4", pan(2), "-c:v", "libx264", prompt="a kite", seed=n)
        for n in range(6)
    ]
    (note,) = export_vbench(films, tmp_path / "vbench").notes
    assert note.endswith("one has 6")
