"""What the file system of a place can do, tried out before a model is loaded."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from cfgen.errors import OutputRefused
from cfgen.files.writing import create_exclusive, disk_errors, sync_folder
from cfgen.renderer.events import Warned


def try_place(folder: Path) -> tuple[Warned, ...]:
    """Try out everything that a render asks of the folder of its video, with two empty files.

    Letters of either case may be one and numbers of files may change: nothing here depends on them.

    Args:
        folder: The folder, which must exist.

    Returns:
        What it cannot do that a render can do without, once each.

    Raises:
        OutputRefused: It lacks what no render can do without.
        BudgetError, WriterError: The disk refused.
    """
    found: list[Warned] = []
    first, second = (folder / f".cfgen-{secrets.token_hex(6)}.part" for _ in range(2))
    with disk_errors(folder):
        try:
            for path in (first, second):
                os.close(create_exclusive(path))
            if not _is_exclusive(first):
                found.append(
                    Warned(
                        message=f"the file system of {folder} lets two processes make one file",
                        hint="start no second render of the same film while this one is at work",
                    )
                )
            _require_replacing(first, second)
            if not sync_folder(folder):
                found.append(
                    Warned(
                        message=f"the file system of {folder} cannot be told to write names down",
                        hint="the render goes on; if the machine loses power, its last seconds may "
                        "be lost",
                    )
                )
        finally:
            for path in (first, second):
                with contextlib.suppress(OSError):
                    path.unlink()
    return tuple(found)


def _is_exclusive(path: Path) -> bool:
    """Whether a file that is there cannot be made again."""
    try:
        os.close(create_exclusive(path))
    except FileExistsError:
        return True
    return False


def _require_replacing(new: Path, old: Path) -> None:
    """Refuse a place where a file cannot take the name of another.

    Raises:
        OutputRefused: It cannot.
    """
    try:
        os.replace(new, old)
    except OSError as error:
        raise OutputRefused(
            f"the file system of {old.parent} cannot put a file in the place of another: "
            f"{error.strerror}",
            "choose another folder with -o",
        ) from None
    if new.exists() or not old.exists():
        raise OutputRefused(
            f"the file system of {old.parent} does not do what it says: a file that was renamed is "
            "still under its old name, or not under its new one",
            "choose another folder with -o",
        )
