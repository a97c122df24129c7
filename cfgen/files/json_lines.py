"""Records that are kept one a line as soon as they are made, so that killed work goes on from them.

One process at a time may append to a file; any number may read it meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfgen.errors import InputRefused
from cfgen.files.reading import open_binary, read_text
from cfgen.files.writing import append


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; none if there is no file.

    A last line without its end is not a record: its writer was killed, or is still at it.

    Raises:
        InputRefused: A line is not a JSON object.
        OSError: The file cannot be read.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise InputRefused(
                f"line {number} of {path} is not a JSON object",
                "delete that line: what it told is then made again",
            )
        records.append(record)
    return records


def append_json_line(path: Path, record: Mapping[str, Any], *, allow_nan: bool = False) -> None:
    """Append a record, in the place of what a killed process left of a line.

    Args:
        path: The file; it need not be there.
        record: What is kept.
        allow_nan: Whether it may hold NaN and infinities, which only Python reads again.

    Raises:
        OSError: The disk refused.
        ValueError: The record holds NaN or an infinity and may not.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=allow_nan)
    with append(path) as file:
        os.ftruncate(file.fileno(), _nbytes_of_lines(path))
        file.write(f"{line}\n".encode())


def _nbytes_of_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with open_binary(path) as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


_BLOCK = 1 << 16
