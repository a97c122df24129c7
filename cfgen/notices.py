"""What a user should know of a render before it begins: licences, limits, unknown words."""

from __future__ import annotations

import re

from cfgen.checkpoint.container import read_json
from cfgen.config.catalog import locate_model
from cfgen.config.schema import RenderConfig
from cfgen.errors import CheckpointError
from cfgen.render.events import Warned


def licence_of(config: RenderConfig) -> tuple[str, ...]:
    """What the licence of a model does not allow, a line."""
    return (f"licence: {config.model.licence}",) if config.model.licence else ()


def too_long(config: RenderConfig) -> tuple[Warned, ...]:
    """A warning if a clip is longer than its model was trained to keep up."""
    longest = config.model.longest_s
    if longest is None or config.duration_s <= longest:
        return ()
    return (
        Warned(
            message=f"{config.preset} was trained on clips of {longest:g} s; pictures may drift or "
            f"freeze in the {config.duration_s:g} s that are asked for",
            hint="longlive, infinity-rope and context-forcing are made for minutes",
        ),
    )


def unknown_words(config: RenderConfig) -> tuple[Warned, ...]:
    """A warning if a model tells which words it knows and the prompt has others."""
    model = locate_model(config.model.path)
    path = (model if model.is_dir() else model.parent) / "mini.json"
    if not path.is_file():
        return ()
    facts = read_json(path)
    known, knows = facts.get("words"), facts.get("knows")
    if not isinstance(known, list) or not isinstance(knows, str):
        raise CheckpointError(
            f"{path} must tell the model's words (a list) and what it knows (a sentence)",
            "restore the model folder",
        )
    words = re.findall(r"[^\W\d_]+", config.prompt.lower())
    strange = list(dict.fromkeys(word for word in words if word not in known))
    if not strange:
        return ()
    return (
        Warned(
            message=f"the model has never seen {', '.join(map(repr, strange))} and may ignore it",
            hint=f"it knows: {knows}",
        ),
    )
