"""Imports cfgen from this checkout, installed or not, with `kernels` and `presets` inside it."""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[3]
FOLDERS = {
    "cfgen": ROOT / "cfgen",
    "cfgen.kernels": ROOT / "kernels",
    "cfgen.presets": ROOT / "presets",
}
"""The mapping of pyproject.toml, which only an installation reads."""


class _Checkout(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if (folder := FOLDERS.get(name)) is None:
            return None
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def install() -> None:
    """Have `import cfgen` find this checkout before any installed cfgen.

    The checkout's root stays off the path: its folder `kernels` would pass for PyPI's `kernels`,
    which transformers looks for.
    """
    if not any(isinstance(finder, _Checkout) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Checkout())


def digest(*folders: str) -> str:
    """A digest of the Python files in folders of the checkout: what a measurement is of."""
    found = hashlib.sha256()
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            found.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def commit() -> str | None:
    """The commit that is checked out, with a + if files differ from it; None where git is not."""
    try:
        told = [
            subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return told[0] + ("+" if told[1] else "")
