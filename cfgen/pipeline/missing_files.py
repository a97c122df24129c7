"""Parts of a model that are not on this machine: all in one sentence, and what fetches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cfgen.config.loader import load
from cfgen.config.presets import locate_model, preset_names
from cfgen.config.schema import ModelConfig
from cfgen.config.values import parse_lora
from cfgen.errors import CfgenError, CheckpointError
from cfgen.hub import locate
from cfgen.hub.reference import parse_reference

Find = Callable[[], Path]


def refuse_missing(model: ModelConfig) -> None:
    """Refuse a model of which parts are neither on disk nor in the cache.

    Raises:
        CheckpointError: One part is nowhere, in `locate`'s words, or several are, in one sentence;
            the hint is one command for all of them where one preset names them all.
    """
    missing: dict[str, str] = {}
    errors: list[CheckpointError] = []
    for what, text, find in _parts(model):
        try:
            find()
        except CheckpointError as error:
            if text not in missing:
                errors.append(error)
                missing[text] = what
    if not errors:
        return
    unknown = next(
        (e for e, text in zip(errors, missing, strict=False) if not parse_reference(text)), None
    )
    if unknown is not None:
        raise unknown
    commands = dict(zip(missing, (str(error.hint) for error in errors), strict=False))
    hint = " && ".join(_pull(model, commands))
    if len(missing) == 1:
        raise CheckpointError(errors[0].message, hint)
    listed = ", ".join(f"{what} ({text})" for text, what in missing.items())
    raise CheckpointError(
        f"{len(missing)} parts of the model are neither on disk nor in the Hugging Face cache: "
        f"{listed}",
        hint,
    )


def _parts(model: ModelConfig) -> Iterator[tuple[str, str, Find]]:
    """Every part that a model names: what it is, what it is called, and what looks for it."""
    yield "model", model.path, lambda: locate_model(model.path)
    named = (
        ("text encoder", model.text_encoder),
        ("tokenizer", model.tokenizer),
        ("video autoencoder", model.vae),
        *(("LoRA", parse_lora(text)[0]) for text in model.loras),
    )
    for what, text in named:
        if text is not None:
            yield what, text, lambda text=text, what=what: locate(text, what=what)  # type: ignore[misc]


def _pull(model: ModelConfig, commands: dict[str, str]) -> list[str]:
    """What fetches all missing parts: the preset with this generator first, then what it lacks.

    Args:
        model: the model.
        commands: what fetches each missing part alone, by what the part is called.
    """
    found: tuple[int, int, list[str]] | None = None
    for name in preset_names():
        try:
            preset = load({"preset": name}, environ={}).config.model
        except CfgenError:  # another preset's fault is told where that one is used
            continue
        theirs = {text for _, text, _ in _parts(preset)}
        if model.path in commands and preset.path == model.path:
            rest = [command for text, command in commands.items() if text not in theirs]
            offer = (len(rest), len(name), [f"cfgen models pull {name}", *rest])
            found = offer if found is None else min(found, offer)
    return list(dict.fromkeys(commands.values())) if found is None else found[2]
