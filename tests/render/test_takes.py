"""Films that are done over: earlier takes stay, and come back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cfgen.cli.app import app
from cfgen.renderer.takes import next_take, takes_of
from cfgen.runs.folder import RunFolder
from tests.render.crash import Crash, dying
from tests.render.film import FOUR_SHOTS, Film, MakeFilm
from tests.render.test_branch import digest_of, spliced

Run = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def take(film: Film, number: int) -> Path:
    return film.output.with_name(f"clip.take-{number}.mp4")


def test_the_take_that_is_replaced_stays_and_comes_back(film: MakeFilm, command: Run) -> None:
    done, first = film.whole(), film.expected()
    result = command("retry", str(done.output), "--from", "2s", "--seed", "9")
    assert result.exit_code == 0, result.stderr
    assert "clip.mp4 stays as clip.take-1.mp4" in result.stderr
    second = done.output.read_bytes()
    assert take(done, 1).read_bytes() == first != second
    jobs = json.loads(command("jobs", "list", str(done.folder), "--json").stdout)["data"]["jobs"]
    assert [(Path(j["path"]).name, j["state"], j["takes"]) for j in jobs] == [
        ("clip.cfgen", "finished", ["clip.take-1.mp4"]),
        ("clip.take-1.cfgen", "finished", []),
    ]
    assert "take      clip.take-1.mp4" in command("jobs", "show", str(done.output)).stdout
    branched = command("branch", str(take(done, 1)), "--at", "3s", "--seed", "4", "-o", "b.mp4")
    assert branched.exit_code == 0, branched.stderr
    back = command("retry", str(done.output), "--undo")
    assert back.exit_code == 0, back.stderr
    assert back.stdout == f"{done.output}\n"
    assert done.output.read_bytes() == first
    assert RunFolder(done.run).finished is not None
    assert RunFolder(done.run).record.config["seed"] == 3
    assert not take(done, 1).exists()
    assert takes_of(done.output) == {2: take(done, 2)}
    assert take(done, 2).read_bytes() == second
    again = command("retry", str(done.output), "--from", "2s", "--seed", "9")
    assert again.exit_code == 0, again.stderr
    assert done.output.read_bytes() == second
    assert sorted(takes_of(done.output)) == [2, 3]


def test_what_is_back_can_be_gone_on_from(film: MakeFilm, command: Run) -> None:
    done, first = film.whole(FOUR_SHOTS), film.expected(FOUR_SHOTS)
    command("retry", str(done.output), "--from", "4s", "--seed", "9")
    assert command("retry", str(done.output), "--undo").exit_code == 0
    done.output.unlink()
    assert command("resume", str(done.output)).exit_code == 0
    assert done.output.read_bytes() == first


@pytest.mark.parametrize("share", [i / 7 for i in range(8)])
def test_an_undo_that_dies_loses_nothing(film: MakeFilm, command: Run, share: float) -> None:
    done, first = film.whole(), film.expected()
    command("retry", str(done.output), "--from", "4s", "--seed", "9")
    second = done.output.read_bytes()
    counted = Film(done.folder.with_name("counted"), done.settings)
    with dying(counted.folder, None) as disk:
        shutil.copytree(done.folder, counted.folder)
        before = len(disk.changes)
        assert command("retry", str(counted.output), "--undo").exit_code == 0
        changes = len(disk.changes) - before
    with dying(done.folder, round(share * (changes - 1))), suppress(Crash):
        command("retry", str(done.output), "--undo")
    for lock in done.folder.glob("*.cfgen/lock"):
        Film.bury(Film(done.folder, []))
        if lock.exists() and lock.stat().st_size:
            lock.write_text(json.dumps(json.loads(lock.read_text()) | {"born": "long ago"}))
    kept = {path.read_bytes() for path in done.folder.glob("*.mp4")}
    assert {first, second} <= kept
    seed = RunFolder(done.run).record.config["seed"]
    if RunFolder(done.run).finished is None:
        assert command("resume", str(done.output)).exit_code == 0
    assert done.output.read_bytes() == {3: first, 9: second}[seed]


def test_it_asks_before_it_replaces_without_a_seed(film: MakeFilm, command: Run) -> None:
    done, first = film.whole(), film.expected()
    refused = command("retry", str(done.output), "--from", "2s")
    assert refused.exit_code == 3
    assert "give --seed, or -y to do it without asking" in refused.stderr
    assert done.output.read_bytes() == first
    assert takes_of(done.output) == {}
    assert command("retry", str(done.output), "--from", "4s", "-y").exit_code == 0
    assert done.output.read_bytes() != first
    for arguments, code, said in [
        (["--undo", "--seed", "3"], 2, "--undo goes with no other change"),
        ([], 2, "where is it to be done over from?"),
        (["--from", "1s", "--prompt", " ", "--seed", "1"], 2, "the prompt is empty"),
        (["--from", "1s", "--transition", "cutt", "--seed", "1"], 2, "did you mean 'cut'?"),
        (["--from", "0.1s", "--transition", "cut", "--seed", "1"], 2, "nothing before the first"),
    ]:
        result = command("retry", str(done.output), *arguments)
        assert result.exit_code == code, result.stderr
        assert said in result.stderr


def test_without_a_take_there_is_nothing_to_undo(film: MakeFilm, command: Run) -> None:
    done = film.whole()
    refused = command("retry", str(done.output), "--undo")
    assert refused.exit_code == 2
    assert "no take of" in refused.stderr


def test_a_take_never_has_the_name_of_something_else(film: MakeFilm) -> None:
    done = film.whole()
    take(done, 1).write_bytes(b"of somebody")
    assert next_take(done.output) == take(done, 2)


def test_a_branch_within_a_shot_keeps_those_before(film: MakeFilm, command: Run) -> None:
    done = film.whole(FOUR_SHOTS)
    for how, shots in {
        ("--prompt", "a blue boat"): ["1.4s", "1.5s recache", "0.6625s cut", "2.2375s fresh"],
        ("--transition", "flush"): ["1.4s", "1.5s recache", "0.6625s cut", "0.7375s flush", "1.5s"],
    }.items():
        asked = ["--transition", "fresh"] if how[0] == "--prompt" else []
        result = command("branch", str(done.run), "--at", "3.6s", *how, *asked, "-o", "b.mp4", "-y")
        assert result.exit_code == 0, result.stderr
        config = RunFolder(Path("b.cfgen")).record.config
        assert [text.partition(":")[0] for text in config["shots"]][: len(shots)][:4] == shots[:4]
        again = Film(done.folder.with_name(f"again-{how[0]}"), done.settings)
        texts = " | ".join(config["shots"])
        again.settings = [s for s in done.settings if not s.startswith("shots=")]
        again.settings.append(f"shots={texts}")
        again.whole()
        assert digest_of(Path("b.mp4")) == digest_of(again.output)


def test_a_retry_within_a_shot_is_another_film_from_there_on(film: MakeFilm, command: Run) -> None:
    done = film.whole()
    asked = ["--from", "3s", "--seed", "9", "--prompt", "a blue boat", "--transition", "cut"]
    assert command("retry", str(done.output), *asked).exit_code == 0
    expected = spliced(done.settings, 4, prompt="a blue boat", seed="9", transition="cut")
    assert digest_of(done.output) == expected
