"""Runs that a person names: their folders, and the configurations that they began with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cfgen.config.loader import from_mapping, leaves
from cfgen.config.schema import RenderConfig, to_mapping
from cfgen.errors import SnapshotError, SnapshotMismatch
from cfgen.fields import CHANGES_NO_FRAME
from cfgen.runs.folder import RunFolder, is_run
from cfgen.video.output import resume_command, run_of

_RESOLVED = ("threads", "dtype", "device", "begin.frames")
"""Keys of which a run holds what `auto`, or nothing, came to on its machine."""


def run_folder(given: Path) -> Path:
    """The run folder that a person means by its own name or by that of its video.

    Raises:
        SnapshotError: There is none.
    """
    if not given.name:
        raise SnapshotError(f"{str(given)!r} names neither a run folder nor a video")
    path = given if given.suffix == ".cfgen" else run_of(given)
    if not is_run(path):
        raise SnapshotError(
            f"{given} has no run folder: {path} is not there, or was cleared away",
            "`cfgen jobs list` shows what there is; --clean, --snapshot off and `cfgen jobs gc` "
            "leave no run folder",
        )
    return path


def config_of(folder: RunFolder) -> RenderConfig:
    """The configuration of a run, with the video's place."""
    config = from_mapping(folder.record.config, label=str(folder.path / "run.json"))
    return dataclasses.replace(config, output=folder.output)


def config_to_resume(folder: RunFolder, asked: RenderConfig | None) -> RenderConfig:
    """The configuration that a run began with, and its video's place.

    Raises:
        SnapshotMismatch: `asked` is another render; tells every difference.
    """
    stored = config_of(folder)
    if asked is not None and folder.record.parts:
        raise SnapshotMismatch(
            f"{folder.path} is a branch, or was done over: its first frames are of another seed",
            f"go on with it: `{resume_command(folder.path)}`, or begin again with -y",
        )
    if asked is not None:
        require_same_render(folder.path, stored, asked)
        device = stored.device if asked.device == "auto" else asked.device
        stored = dataclasses.replace(
            stored,
            snapshot=asked.snapshot,
            placement=asked.placement,
            device=device,
            preview=asked.preview,
            contact_sheet=asked.contact_sheet,
        )
    return stored


def with_parallel(config: RenderConfig, text: str | None) -> RenderConfig:
    """A configuration with another number of processes, as a person writes it; None changes none.

    Raises:
        PresetError: It is no such number.
    """
    if text is None:
        return config
    label, flags = "the run's configuration", {"placement.parallel": text}
    asked = from_mapping(to_mapping(config), label=label, flags=flags)
    return dataclasses.replace(config, placement=asked.placement)


def require_same_render(path: Path, stored: RenderConfig, asked: RenderConfig) -> None:
    """Refuse to go on with one render by the command of another."""
    if asked.seed is None:
        asked = dataclasses.replace(asked, seed=stored.seed)
    # Which of several GPUs computes makes no difference, and its name is in the fingerprint.
    asked = dataclasses.replace(asked, device=asked.device.partition(":")[0])
    before, now = (dict(leaves(to_mapping(config))) for config in (stored, asked))
    differing = [
        key
        for key in {**before, **now}
        if before.get(key) != now.get(key)
        and key.split(".")[0] not in CHANGES_NO_FRAME
        and not (key in _RESOLVED and now.get(key) in ("auto", None))
    ]
    if differing:
        listed = "".join(
            f"\n  {key}: began with {before.get(key)!r}, now {now.get(key)!r}" for key in differing
        )
        raise SnapshotMismatch(
            f"{path} is another render:{listed}",
            f"go on with it: `{resume_command(path)}`, or begin again with -y",
        )
