"""Curves of student trainings: means over blocks, what agrees, what is drawn, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cfgen.errors import UsageError
from tests.bench.student_curves import compared, curve_of, main


def written(path: Path, *, steps: int = 8, higher: float = 0.0, every: int = 2) -> Path:
    """A log whose critic's loss is the step's number, and whose student learns at some steps."""
    lines: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        line = {"step": step, "seconds": 900.0 * step, "critic_loss": step + higher}
        if step % every == 0:
            line["student_distance"] = 1.0 + 0.1 * (step % 4)
        lines.append(line)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def test_blocks_have_means_and_errors(tmp_path: Path) -> None:
    curve = curve_of(written(tmp_path / "log.jsonl"), block=4)
    assert [(step, mean) for step, mean, _ in curve["critic_loss"]] == [(4, 2.5), (8, 6.5)]
    assert curve["critic_loss"][0][2] == pytest.approx(0.6455, abs=1e-4)
    assert curve_of(tmp_path / "log.jsonl", block=2)["student_distance"][0][2] is None


def test_a_step_that_was_made_again_counts_once(tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl")
    log.write_text(log.read_text() + log.read_text(), encoding="utf-8")
    assert curve_of(log, block=4) == curve_of(written(tmp_path / "once.jsonl"), block=4)


@pytest.mark.parametrize(("higher", "agrees"), [(0.0, True), (1.0, True), (9.0, False)])
def test_a_beginning_is_compared_where_it_is(tmp_path: Path, higher: float, agrees: bool) -> None:
    whole = curve_of(written(tmp_path / "whole.jsonl"), block=4)
    begun = curve_of(written(tmp_path / "begun.jsonl", steps=4, higher=higher), block=4)
    rows = {name: (step, apart) for name, step, _, _, apart in compared(begun, whole)}
    assert rows["critic_loss"][0] == 4
    assert (rows["critic_loss"][1] <= 3) == agrees
    assert rows["student_distance"] == (4, 0.0)


def test_the_command_tells_draws_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, kept, picture = written(tmp_path / "a.jsonl", steps=56), tmp_path / "c.json", "p.svg"
    main([f"one={log}", "--json", str(kept), "--svg", str(tmp_path / picture)])
    assert "one: 56 steps in 14.0 h" in capsys.readouterr().out
    assert b"loss of the critic" in (tmp_path / picture).read_bytes()
    main([f"one={written(tmp_path / 'b.jsonl', steps=28)}", "--against", str(kept)])
    assert "2 of 2 agree within 3 standard errors" in capsys.readouterr().out


def test_a_run_that_was_not_kept_is_named(tmp_path: Path) -> None:
    log, kept = written(tmp_path / "log.jsonl"), tmp_path / "kept.json"
    main([f"one={log}", "--json", str(kept)])
    with pytest.raises(UsageError, match="has no run two"):
        main([f"two={log}", "--against", str(kept)])


@pytest.mark.parametrize(
    ("runs", "reason"),
    [(["log.jsonl"], "each run is NAME=LOG"), (["a=log.jsonl"], "tells of no student")],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log.jsonl").write_text('{"step": 1, "seconds": 1, "loss": 2}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=reason):
        main(runs)
