"""Where a network is written anew: what forbids a place, and what must lie beside the file."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cfgen.checkpoint.convert.input import Source
from cfgen.checkpoint.networks.fill import CONFIG_FILE, config_of
from cfgen.checkpoint.networks.geometry import read_geometry
from cfgen.errors import BudgetError, CheckpointError, OutputRefused, UsageError
from cfgen.files.reading import read_bytes
from cfgen.files.writing import write_file
from cfgen.model.generator import WanConfig

SUFFIX = ".safetensors"


def check(source: Source, target: Path, *, nbytes: int, overwrite: bool) -> None:
    """Refuse a target that could not or should not be written, before any work.

    Args:
        source: what it is made of.
        target: the file to write.
        nbytes: bytes that it will have.
        overwrite: whether a file that is there may be replaced.

    Raises:
        UsageError: its name does not end in `.safetensors`.
        OutputRefused: it is there already, is the source itself, its folder is missing or not
            writable, or a config.json of another model lies beside it.
        BudgetError: the disk is too small.
    """
    if target.suffix != SUFFIX:
        raise UsageError(f"{target} must end in {SUFFIX}", f"use {target.stem}{SUFFIX}")
    folder = target.absolute().parent
    hint = "choose another name"
    if not folder.is_dir():
        raise OutputRefused(f"the folder {folder} does not exist", f"make it: mkdir -p {folder}")
    if target.is_dir():
        raise OutputRefused(f"{target} is a folder", hint)
    files = source.network.file.files
    if target.exists() and any(target.samefile(file) for file in files):
        raise OutputRefused(f"{target} is the source itself", hint)
    if target.exists() and not overwrite:
        raise OutputRefused(f"{target} exists already", "replace it with -y")
    if not os.access(folder, os.W_OK):
        raise OutputRefused(f"the folder {folder} is not writable", hint)
    config_needed(source, target)
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise BudgetError(
            f"{target} needs {nbytes:,} bytes, and {free:,} are free there",
            "free some space, or choose another disk",
        )


@contextlib.contextmanager
def config_beside(source: Source, target: Path) -> Iterator[Path | None]:
    """Put config.json beside the file, if it is needed; take it away again if writing fails."""
    own = config_needed(source, target)
    if own is None:
        yield None
        return
    config = target.with_name(CONFIG_FILE)
    try:
        write_file(config, read_bytes(own), shared=True)
        yield config
    except BaseException as error:
        config.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputRefused(f"{config} cannot be written: {error.strerror}") from error
        raise


def config_needed(source: Source, target: Path) -> Path | None:
    """The config.json without which `target` would be taken for another model, if there is one.

    Wan's published models are told by their weights alone; others need what is said of their heads.

    Raises:
        OutputRefused: one lies there that belongs to another model.
    """
    if source.geometry is None or _told(source, target) == source.geometry:
        return None
    beside = target.with_name(CONFIG_FILE)
    if beside.exists():
        raise OutputRefused(
            f"{beside} is not that of {source.path}, and {target.name} would be read by it",
            "choose another folder",
        )
    own = config_of(source.path)
    assert own is not None  # without one, the weights had told the geometry
    return own[0]


def _told(source: Source, target: Path) -> WanConfig | None:
    """The sizes that the file would be read with if it stood there, None if it could not be."""
    try:
        return read_geometry(source.network.shapes, config_of(target), weights=target)
    except CheckpointError:
        return None
