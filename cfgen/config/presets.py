"""Where presets, model folders and the user's own configuration lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import yaml

from cfgen.config.values import nearest
from cfgen.errors import PresetError, Problem
from cfgen.files.reading import read_text
from cfgen.files.user_folders import folder_of
from cfgen.hub import locate


def presets_folder() -> Path:
    """The folder of the installed presets."""
    return Path(str(files("cfgen.presets")))


def preset_names() -> tuple[str, ...]:
    """Names of the render presets, sorted; training values (`train.*.yaml`) are not among them."""
    names = (path.stem for path in presets_folder().glob("*.yaml"))
    return tuple(sorted(name for name in names if not name.startswith("train.")))


def preset_file(name: str, *, where: str = "") -> Path:
    """Return the YAML file of the preset `name`.

    Args:
        name: The preset.
        where: What asked for it, for the error.

    Raises:
        PresetError: There is none of that name.
    """
    known = preset_names()
    if name not in known:
        reason = f"there is no preset {name!r}{nearest(name, known)}"
        hint = f"the presets are {', '.join(known)}; see `cfgen presets list`"
        raise PresetError([Problem(key="preset", reason=reason, where=where)], hint=hint)
    return presets_folder() / f"{name}.yaml"


def preset_description(name: str) -> str:
    """Return the line that a preset says of itself.

    Raises:
        PresetError: There is no preset of that name.
    """
    values = yaml.safe_load(read_text(preset_file(name)))
    return str(values["description"])


def presets_of_order(order: str) -> tuple[str, ...]:
    """Names of the presets that set this order of chunks themselves, sorted."""
    values = {name: yaml.safe_load(read_text(preset_file(name))) for name in preset_names()}
    return tuple(name for name, found in values.items() if found.get("order") == order)


def locate_model(path: str) -> Path:
    """Return where a model lies: among the installed presets, on disk or in the hub's cache.

    A bare name (no slash) means an installed model if there is one of that name.

    Raises:
        CheckpointError: It is nowhere.
    """
    if is_installed(path):
        return presets_folder() / path
    return locate(path, what="model")


def is_installed(path: str) -> bool:
    """Whether a path of a model is the bare name of one that came with cfgen."""
    return Path(path).name == path and (presets_folder() / path).is_dir()


def user_config_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's own configuration, whether it exists or not; a user without a home has none."""
    return (folder_of("config", environ) or Path(os.devnull)) / "cfgen" / "config.yaml"
