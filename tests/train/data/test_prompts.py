"""Prompts from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfgen.errors import UsageError
from cfgen.train.data.prompts import read_prompts


@pytest.mark.parametrize(
    "content",
    [
        b"a cat\n\n  # two dogs \n\t\na caf\xc3\xa9",
        b"\xef\xbb\xbfa cat\r\n# two dogs\r\n\r\na caf\xc3\xa9\r\n",
    ],
)
def test_every_line_that_is_not_blank_is_a_prompt(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    assert read_prompts(path) == ["a cat", "# two dogs", "a café"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "holds no prompt"), (b" \n\n\t", "holds no prompt"), (b"caf\xe9", "UTF-8")],
)
def test_a_file_without_prompts_is_refused_by_name(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"prompts\.txt.*{reason}"):
        read_prompts(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.txt"):
        read_prompts(tmp_path / "nowhere.txt")
