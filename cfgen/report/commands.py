"""Commands as a person types them: what renders a film again, goes on with it, branches off it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from cfgen.config.keys import FLAGS, flag_of
from cfgen.config.loader import leaves, load
from cfgen.config.schema import RenderConfig, to_mapping
from cfgen.config.values import size_text
from cfgen.errors import CfgenError
from cfgen.fields import CHANGES_NO_FRAME
from cfgen.video.output import pasted, run_of

_CHOSEN_BY_MACHINE = ("device", "threads", "dtype", "begin.frames")
"""Keys of which a run holds what its machine chose; the same machine chooses the same again."""
_TOLD_APART = ("preset", "prompt", "shots", "duration", "seed")
"""Keys that have a place of their own in a command and on the page."""
_NOWHERE = os.path.join(os.devnull, "nowhere")


def changed_settings(config: RenderConfig) -> dict[str, object]:
    """What a render has otherwise than its preset, by dotted key.

    Without prompt, shots, duration, seed, what changes no frame and what the machine chose.
    """
    values = dict(leaves(to_mapping(config)))
    preset = _preset_values(config.preset)
    return {
        key: value
        for key, value in values.items()
        if value != preset.get(key)
        and key not in (*_TOLD_APART, *_CHOSEN_BY_MACHINE)
        and key.split(".")[0] not in CHANGES_NO_FRAME
    }


def render_command(config: RenderConfig, output: str) -> str:
    """The command that renders a film again, frame by frame the same.

    Args:
        config: Its configuration.
        output: The new video, as seen from where the command is typed.
    """
    words = ["cfgen", "render"]
    if config.shots:
        words += [word for shot in config.shots for word in ("--shot", str(shot))]
    else:
        words += [] if config.prompt.startswith("-") else [config.prompt]
        words += ["--duration", f"{config.duration_s:g}s"]
    words += ["--seed", str(config.seed)]
    if config.preset != "mini":
        words += ["--preset", config.preset]
    for key, value in changed_settings(config).items():
        words += _flags(key, value)
    command = f"{shlex.join(words)} -o {pasted(output)}"
    bare = not config.shots and config.prompt.startswith("-")
    return f"{command} -- {shlex.quote(config.prompt)}" if bare else command


def resume_command(video: str) -> str:
    """The command that goes on with a render, by its video as seen from where it is typed."""
    return f"cfgen resume {pasted(str(run_of(Path(video))))}"


def branch_command(video: str) -> tuple[str, str]:
    """What stands before and after the moment in the command that branches off a film.

    Args:
        video: The film, as seen from where the command is typed.
    """
    path = Path(video)
    new = path.with_name(f"{path.stem}-branch{path.suffix}")
    return f"cfgen branch {pasted(video)} --at ", f" -o {pasted(str(new))}"


def _preset_values(name: str) -> Mapping[str, object]:
    """The values of a preset alone; none where it is gone."""
    try:
        base = load({"preset": name}, environ={"XDG_CONFIG_HOME": _NOWHERE}).config
    except CfgenError:
        return {}
    return dict(leaves(to_mapping(base)))


def _flags(key: str, value: object) -> list[str]:
    """A value as words of a command line."""
    if key not in FLAGS:
        return ["--set", f"{key}={text_of(value)}"]
    flag = flag_of(key)
    if value is True:
        return [flag]
    if key == "size" and isinstance(value, list):
        return [flag, size_text((int(value[0]), int(value[1])))]
    if isinstance(value, list):
        return [word for each in value or ["none"] for word in (flag, str(each))]
    return [flag, text_of(value)]


def text_of(value: object) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, list):
        return f"[{', '.join(map(text_of, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return f"{value:.10g}" if isinstance(value, float) else str(value)
