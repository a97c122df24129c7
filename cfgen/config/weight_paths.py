"""Paths of files that hold from any folder: a render may be resumed from another one."""

from __future__ import annotations

import os
from pathlib import Path

from cfgen.config.presets import presets_folder
from cfgen.config.sources import Entries, Entry
from cfgen.config.values import NONE, RawValue

PATHS = frozenset(
    {"model.path", "model.text_encoder", "model.tokenizer", "model.vae", "model.loras"}
)
"""Keys that name weights: on disk, or in a cache."""

INPUTS = frozenset({"begin.image", "begin.last_image", "begin.video", "audio.file"})
"""Keys that name pictures, films and sounds on disk."""


def anchored(entries: Entries, folder: Path | None) -> Entries:
    """Entries whose paths of weights on disk are absolute, and of inputs anywhere.

    Args:
        entries: What one source holds.
        folder: Where paths in it start from: the folder of a file, None for the current one.
    """
    found = dict(entries)
    for key in INPUTS & set(entries):
        tree = entries[key].tree
        if isinstance(tree, str) and tree.strip().lower() not in NONE:
            place = os.path.abspath((folder or Path()) / os.path.expanduser(tree))
            found[key] = Entry(tree=place, origin=entries[key].origin)
    for key in PATHS & set(entries):
        tree = entries[key].tree
        if key == "model.loras" and isinstance(tree, str):
            listed = tree.strip().removeprefix("[").removesuffix("]").split(",")
            tree = [part.strip() for part in listed if part.strip()]
        made = [_absolute(each, folder) for each in tree] if isinstance(tree, list) else None
        found[key] = Entry(
            tree=_absolute(tree, folder) if made is None else made, origin=entries[key].origin
        )
    return found


def _absolute(tree: RawValue, folder: Path | None) -> RawValue:
    """A path that is on disk from the root on; whatever else it may be as it is."""
    if not isinstance(tree, str) or (presets_folder() / tree).is_dir():
        return tree
    path, colon, strength = tree, "", ""
    if not _on_disk(path, folder):
        path, colon, strength = tree.rpartition(":")
    if not path or not _on_disk(path, folder):
        return tree
    return os.path.abspath((folder or Path()) / os.path.expanduser(path)) + colon + strength


def _on_disk(path: str, folder: Path | None) -> bool:
    try:
        return ((folder or Path()) / os.path.expanduser(path)).exists()
    except (OSError, RuntimeError, ValueError):  # no path at all: a colon, a NUL, an unknown ~user
        return False
