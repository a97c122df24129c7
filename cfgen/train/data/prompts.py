"""Prompts from a text file, one a line."""

from __future__ import annotations

from pathlib import Path

from cfgen.errors import UsageError
from cfgen.files.reading import read_text

LIMIT = 4 << 30
"""Bytes that a list of prompts may have; VidProM's has some 300 MB."""


def read_prompts(path: Path) -> list[str]:
    """Every line of a file that is not blank, without the space around it.

    Raises:
        UsageError: there is none, or the file cannot be read as UTF-8 text.
    """
    try:
        lines = read_text(path, encoding="utf-8-sig", limit=LIMIT).split("\n")
    except OSError as error:
        raise UsageError(f"the prompts in {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"the prompts in {path} are not text in UTF-8: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"{path} holds no prompt", "write one prompt a line")
    return prompts
