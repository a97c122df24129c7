"""Records that are kept one a line outlive whoever wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfgen.errors import InputRefused
from cfgen.files.json_lines import append_json_line, read_json_lines


def test_records_come_back_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    assert read_json_lines(file) == []
    records = [{"film": 0, "text": "é\u2028\nü"}, {"film": 1}]
    for record in records:
        append_json_line(file, record)
    assert read_json_lines(file) == records


@pytest.mark.parametrize("rest", ['{"film": 2', "{", '{"film": 2}', "x" * 100_000])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_line_without_its_end_is_none_and_gives_its_place(
    tmp_path: Path, before: int, rest: str
) -> None:
    file = tmp_path / "records.jsonl"
    records = [{"film": n} for n in range(before)]
    for record in records:
        append_json_line(file, record)
    with file.open("a") as killed:
        killed.write(rest)
    left = file.read_bytes()
    assert read_json_lines(file) == records
    assert file.read_bytes() == left  # another process may still be at it
    append_json_line(file, {"film": 9})
    assert read_json_lines(file) == [*records, {"film": 9}]


@pytest.mark.parametrize("line", ["{", "[1]", "3", ""])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text(f'{{"film": 0}}\n{line}\n{{"film": 2}}\n')
    with pytest.raises(InputRefused, match=r"line 2 of .*records\.jsonl"):
        read_json_lines(file)


def test_what_json_does_not_have_is_refused_and_leaves_the_file(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    append_json_line(file, {"film": 0})
    with pytest.raises(ValueError, match="JSON"):
        append_json_line(file, {"psnr": float("nan")})
    assert read_json_lines(file) == [{"film": 0}]
