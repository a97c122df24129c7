"""The table of effective contexts: what it reads, leaves out, goes on with and draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cfgen.errors import CheckpointError, PresetError, UsageError
from cfgen.train.film_world import return_probe
from cfgen.train.film_world.return_test import Case, other_world
from cfgen.train.film_world.world import render
from tests.bench import effective_context, returns
from tests.bench.effective_context import chosen, main, read_table

EXAMPLE = Path(effective_context.__file__).with_suffix(".yaml")
TWO_ROWS = """
rows:
- {name: window, model: model, policy: window-6-1, steps: 1, guidance: 1}
- {name: full, model: model, policy: full, label: all kept, steps: 1, guidance: 1}
- {name: later, model: not/yet, policy: full}
"""
REST = "model: m, policy: full"
SMALL = ["--films", "2", "--way", "cut", "--away", "2", "--away", "4"]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with a model and a table of it."""
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "table.yaml").write_text(TWO_ROWS)
    return tmp_path


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Policies and times away that were played: `full` shows the truth, others another place."""
    calls: list[tuple[str, float]] = []

    def maker(*_: object) -> Callable[[str, list[Case]], list[np.ndarray]]:
        def made(policy: str, cases: list[Case]) -> list[np.ndarray]:
            calls.extend((policy, case.away_s) for case in cases)
            films = [other_world(case.film, 0 if policy == "full" else 40) for case in cases]
            spans = [case.frames for case in cases]
            return [render(f, s.start, s.stop) for f, s in zip(films, spans, strict=True)]

        return made

    monkeypatch.setattr(return_probe, "model_maker", maker)
    return calls


def run(folder: Path, *arguments: str) -> dict:
    paths = ["--work", str(folder / "work"), "--json", str(folder / "table.json")]
    main([str(folder / "table.yaml"), *SMALL, *paths, *arguments])
    return json.loads((folder / "table.json").read_text())


def test_a_table_is_made_told_drawn_and_gone_on_with(
    folder: Path, played: list[tuple[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(folder, "--svg", str(folder / "hits.svg"))
    assert sorted(set(played)) == [(p, t) for p in ("full", "window-6-1") for t in (2.0, 4.0)]
    assert len(played) == 8
    contexts = {row["name"]: row["effective_context_s"] for row in made["rows"]}
    assert contexts == {"window": 0.0, "full": 4.0}
    hits = [(r["name"], r["away_s"], r["hit_rate"]) for r in made["rows"] if r["name"] == "full"]
    assert hits == [("full", 2.0, 1.0), ("full", 4.0, 1.0)]
    assert list(made["left_out"]) == ["later"]
    said = capsys.readouterr()
    missing = f"left out: later: there is no model folder {folder / 'not/yet'}"
    assert missing in said.err
    assert missing in said.out
    heads, _, full, *_ = said.out.splitlines()
    assert heads.split("  ")[0] == "row"
    assert "4 s (4 to 4)" in full
    assert full.startswith("all kept")
    assert "all kept" in (folder / "hits.svg").read_text()
    assert run(folder) == made
    assert len(played) == 8
    run(folder, "--films", "3", "--only", "full")
    assert played[8:] == [("full", 2.0), ("full", 4.0)]  # the third film
    capsys.readouterr()
    run(folder, "--films", "3", "--no-run")
    assert len(played) == 10
    window = capsys.readouterr().out.splitlines()[1]
    assert window.startswith("window")
    assert "(2)" in window  # two films of three


@pytest.mark.usefixtures("played")
def test_rows_without_a_score_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="has a score yet"):
        run(folder, "--no-run")
    run(folder, "--only", "full", "--films", "1")
    capsys.readouterr()
    run(folder, "--no-run", "--films", "1")
    assert "left out: window has no score yet" in capsys.readouterr().out
    with pytest.raises(UsageError, match="has a model folder"):
        run(folder, "--only", "later")


def test_a_model_is_played(folder: Path) -> None:
    made = run(folder, "--films", "1", "--only", "window")
    assert [row["away_s"] for row in made["rows"]] == [2.0, 4.0]
    assert all(np.isfinite(row["psnr"]) for row in made["rows"])
    assert {row["effective_context_low_s"] for row in made["rows"]} == {None}


def test_a_row_that_cannot_be_played_is_refused_before_any_is(
    folder: Path, played: list[tuple[str, float]]
) -> None:
    bad = "- {name: bad, model: model, policy: slow_fast-cfgen, admission_layers: [0, 99]}"
    (folder / "table.yaml").write_text(TWO_ROWS + bad)
    with pytest.raises(UsageError, match="row 'bad': .*admission_layers"):
        run(folder)
    (folder / "hollow").mkdir()
    (folder / "table.yaml").write_text(TWO_ROWS + "- {name: bad, model: hollow, policy: full}")
    with pytest.raises(CheckpointError, match="row 'bad'"):
        run(folder)
    steps = "- {name: bad, model: model, policy: full, timesteps: [250, 500]}"
    (folder / "table.yaml").write_text(TWO_ROWS + steps)
    with pytest.raises(UsageError, match="row 'bad': .*250, 500"):
        run(folder)
    assert played == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rows: []", "a row or more"),
        ("rows:\n- 3", r"table\.yaml:2: rows\.1: must"),
        ("rows: [{name: a, model: m, policy: fll}]", "did you mean 'full'"),
        ("rows: [{name: a, model: m, policy: full, stps: 3}]", "did you mean 'steps'"),
        ("rows: [{name: a, model: m, policy: full, steps: x}]", "got 'x'"),
        ("rows: [{name: a, policy: full}]", "lacks 'model'"),
        ("rows: [{name: b, like: a}, {name: a, model: m, policy: full}]", "names no row before it"),
        ("rows: [{name: base, model: m, policy: full}, {name: b, like: bse}]", "mean 'base'"),
        ("rows: [{name: a, model: m, policy: full}, {like: a, steps: 3}]", "lacks 'name'"),
        ("rows: [{name: a, model: m, policy: full, renoise: new}]", "got 'new'"),
        (f"rows: [{{name: a, {REST}}}, {{name: a, {REST}}}]", "the name 'a'"),
        (f"rows: [{{name: a, {REST}}}, {{name: b, label: a, {REST}}}]", "the label 'a'"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "table.yaml").write_text(text)
    with pytest.raises(PresetError, match=named):
        read_table(tmp_path / "table.yaml")


@pytest.mark.parametrize("text", ["", "[1]", "row: []", "rows: [", "rows: 3"])
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"table\.yaml"):
        read_table(tmp_path / "table.yaml")
    with pytest.raises(UsageError, match=r"none\.yaml"):
        read_table(tmp_path / "none.yaml")


def test_the_example_is_a_table_and_rows_are_chosen_by_name() -> None:
    rows = read_table(EXAMPLE)
    student = next(row for row in rows if row.name == "cdmd")
    assert (student.steps, student.shift, student.renoise, student.guidance) == (4, 6, "fresh", 1)
    assert (student.admission_layers, student.label) == ((0,), "cdmd, slow_fast")
    assert (student.slow, student.tau, student.admits) == (12, 0.998, "chunk")
    assert [row.name for row in chosen(rows, ["dmd", "cdmd"])] == ["dmd", "cdmd"]
    assert chosen(rows, []) == rows
    with pytest.raises(UsageError, match="did you mean 'cdmd'"):
        chosen(rows, ["cdmdd"])


def test_returns_and_the_table_share_their_scores(tmp_path: Path) -> None:
    """The same model and settings are the same file, whichever command plays them."""
    asked = returns.parsed(["model", "--steps", "4", "--shift", "6", "--guidance", "1"])
    assert returns.settings_of(asked).renoise == "predicted"
    words = ["--steps", "4", "--shift", "6", "--guidance", "1", "--renoise", "fresh"]
    words += ["--slow", "12", "--tau", "0.998", "--admits", "chunk", "--admission-layers", "0"]
    asked = returns.parsed(["model", *words])
    settings = returns.settings_of(asked)
    assert settings.renoise == "fresh"
    student = next(row for row in read_table(EXAMPLE) if row.name == "cdmd")
    table = student.settings(effective_context.parsed([str(EXAMPLE)]))
    digests = [
        return_probe.digest_of(None, settings, returns.sizes_of(asked)),
        return_probe.digest_of(None, table, student.sizes),
    ]
    assert digests[0] == digests[1]
