"""The adherence bench: it goes on, its parts are the whole, and its sheet shows its films."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from cfgen.errors import LockHeld, UsageError
from cfgen.train.film_world import adherence
from cfgen.train.film_world.adherence import Findings
from cfgen.train.film_world.world import Film
from tests.bench import film_world
from tests.bench.film_world import film_of, main, sheet_frames

Bench = Callable[..., dict]
CHUNKS = 1


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the films whose findings were made; findings are quick and told by the film."""
    seeds: list[int] = []

    def found(film: Film, frames: np.ndarray) -> Findings:
        assert frames.shape == (film.frames, 192, 320, 3)
        seeds.append(film.seed)
        return Findings({"sky": [film.seed % 2 == 0, True]}, {"off": [film.seed % 7 / 2]})

    monkeypatch.setattr(film_world, "findings_of", found)
    return seeds


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Run the bench in a folder of its own; gives back its JSON."""

    def run(*arguments: str) -> dict:
        target = tmp_path / "figures.json"
        main([*arguments, "--chunks", str(CHUNKS), "--work", str(tmp_path), "--json", str(target)])
        return json.loads(target.read_text())

    return run


def seeds(*numbers: int) -> list[int]:
    return [film_of(number, CHUNKS).seed for number in numbers]


def test_the_same_command_goes_on(made: list[int], bench: Bench, tmp_path: Path) -> None:
    bench("--truth", "--films", "2")
    assert made == seeds(0, 1)
    (file,) = tmp_path.glob("*.jsonl")
    file.write_text(file.read_text()[:-5])  # killed while it wrote
    report = bench("--truth", "--films", "3")
    assert made == seeds(0, 1, 1, 2)
    assert (report["films"], report["of"]) == (3, 3)
    assert report["figures"]["sky"]["count"] == 6
    assert bench("--truth", "--films", "3") == report
    assert made == seeds(0, 1, 1, 2)
    assert bench("--truth", "--films", "2")["figures"]["sky"]["count"] == 4


def test_parts_make_the_whole(made: list[int], bench: Bench) -> None:
    first = bench("--truth", "--films", "3", "--part", "1/2")
    assert (made, first["films"]) == (seeds(0, 2), 2)
    bench("--truth", "--films", "3", "--part", "2/2")
    whole = bench("--truth", "--films", "3")
    assert sorted(made) == sorted(seeds(0, 1, 2))
    assert whole["films"] == 3
    rights = [seed % 2 == 0 for seed in seeds(0, 1, 2)]
    assert whole["figures"]["sky"]["mean"] == pytest.approx((sum(rights) + 3) / 6)


def test_two_processes_do_not_make_one_part(made: list[int], bench: Bench, tmp_path: Path) -> None:
    bench("--truth", "--films", "1", "--part", "1/2")
    (lock,) = tmp_path.glob("*-1-of-2.jsonl.lock")
    with FileLock(lock), pytest.raises(LockHeld, match="part 1/2"):
        bench("--truth", "--films", "3", "--part", "1/2")
    assert made == seeds(0)


@pytest.mark.usefixtures("made")
def test_a_sheet_has_a_row_a_film(bench: Bench, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    report = bench("--truth", "--films", "9", "--sheet", str(sheet))
    assert [row["film"] for row in report["sheet"]] == list(range(8))
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (8 * 192, 6 * 320, 3)
    film = film_of(3, CHUNKS)
    assert report["sheet"][3]["frames"] == sheet_frames(film) == [0, 2, 3, 5, 6, 8]
    assert len(report["sheet"][3]["captions"]) == len(film.shots)
    last = film_world.render(film, 8, 9)[0]
    assert (pixels[3 * 192 : 4 * 192, 5 * 320 :] == last).all()
    next(tmp_path.glob("*-film-3.png")).unlink()
    with pytest.raises(UsageError, match=r"film-3\.png is missing"):
        bench("--truth", "--films", "9", "--sheet", str(sheet))


def test_a_model_is_measured_by_everything(
    tiny_model: Path, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = ["--steps", "2", "--shift", "4", "--guidance", "1", "--renoise", "fresh"]
    memory = ["--policy", "slow_fast-cfgen", "--admission-layers", "1"]
    report = bench(str(tiny_model), "--films", "1", *student, *memory)
    assert report["settings"]["renoise"] == "fresh"
    assert report["settings"]["admission_layers"] == [1]
    figures = report["figures"]
    assert {"sky", "camera", "colour", "shape", "camera read"} <= set(figures)
    assert set(figures) <= {*adherence.RATES, *figures}
    for key in ("saturation", "contrast", "detail"):
        assert figures[f"{key} drift, %"]["count"] == 1
    assert 0 <= figures["sky"]["low"] <= figures["sky"]["high"] <= 1
    assert figures["contrast drift, %"]["low"] is None
    out = capsys.readouterr().out
    assert f"{tiny_model}: 1 of 1 films" in out
    assert ">= 98%" in out
    (unseen,) = (line.split() for line in out.splitlines() if line.startswith("no trace"))
    assert unseen == ["no", "trace", "-", "0", ">=", "90%"]


def test_settings_that_change_films_have_files_of_their_own(
    tiny_model: Path, tmp_path: Path
) -> None:
    def digest(*arguments: str) -> str:
        options = film_world.parsed([str(tiny_model), *arguments])
        return film_world.running.digest_of_run(tiny_model, film_world.settings_of(options))

    usual = digest()
    changes = ["--renoise fresh", "--steps 4", "--timesteps 900 10", "--admission-layers 0"]
    changes += ["--tau 0.5", "--chunks 3", "--guidance 1", "--shift 4", "--policy full"]
    found = {usual, *(digest(*change.split()) for change in changes)}
    assert len(found) == 1 + len(changes)
    others = ["--films", "3", "--part", "2/3", "--work", str(tmp_path), "--device", "cuda"]
    assert digest(*others) == usual


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--truth"),
        (["model", "--truth"], "--truth"),
        (["--truth", "--part", "3/2"], "3/2"),
        (["--truth", "--part", "0/2"], "0/2"),
        (["--truth", "--films", "0"], "--films"),
        (["model", "--renoise", "new"], "new"),
        (["model", "--policy", "old"], "old"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert named in capsys.readouterr().err
