"""The curves of recall are those of the log, and other logs are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cfgen.errors import UsageError
from tests.bench.recall import draw, measured

LINE = {"own_0.97": 0.2, "foreign_0.97": 0.3, "never_left_0.97": 0.1, "recall_0.97": 0.5}


def written(path: Path, lines: list[dict[str, float]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_rows_hold_what_is_said_of_recall_alone(tmp_path: Path) -> None:
    log = written(
        tmp_path / "log.jsonl",
        [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.9, **LINE}, {"step": 30, **LINE}],
    )
    rows = measured(log)
    assert rows == [{"step": 20, **LINE}, {"step": 30, **LINE}]
    draw(rows, tmp_path / "first.svg")
    draw(rows, tmp_path / "again.svg")
    first = (tmp_path / "first.svg").read_bytes()
    assert b"noise 0.97" in first
    assert first == (tmp_path / "again.svg").read_bytes()


@pytest.mark.parametrize("lines", [[], [{"step": 10, "loss": 1.0}]])
def test_a_log_without_recall_is_refused(tmp_path: Path, lines: list[dict[str, float]]) -> None:
    with pytest.raises(UsageError, match="holds no recall"):
        measured(written(tmp_path / "log.jsonl", lines))
