"""The user's folders for caches and settings, also where there is no home folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cfgen.errors import SetupError

VARIABLES = {"cache": "XDG_CACHE_HOME", "config": "XDG_CONFIG_HOME"}


def folder_of(kind: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of the user's caches or settings (freedesktop.org's XDG), or None without a home.

    Args:
        kind: `cache` or `config`.
        environ: The environment.
    """
    if given := environ.get(VARIABLES[kind]):
        return Path(given)
    try:
        return Path("~").expanduser() / f".{kind}"
    except RuntimeError:  # no HOME, and the system knows no user of this number
        return None


def require(kind: str, environ: Mapping[str, str] = os.environ) -> Path:
    """As `folder_of`.

    Raises:
        SetupError: There is none; tells what to set.
    """
    found = folder_of(kind, environ)
    if found is None:
        raise SetupError(
            f"there is no home folder, so no place for {kind} files is known",
            f"set HOME or {VARIABLES[kind]} to a folder",
        )
    return found
