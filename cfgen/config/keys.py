"""The keys that presets, `--config` and `--set` know: what each is, its values, and its flag.

Descriptions come from the docstrings of the schema classes, so that they are written once. Python
without docstrings (`-OO`) knows keys, values and flags, and no descriptions.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from cfgen.config.begin import key_of
from cfgen.config.schema import RenderConfig
from cfgen.fields import Pattern

FLAGS: Mapping[str, str] = {
    "prompt": "PROMPT",
    "shots": "--shot",
    "output": "--output",
    "preset": "--preset",
    "duration": "--duration",
    "seed": "--seed",
    "size": "--size",
    "fps": "--fps",
    "rng": "--rng",
    "backend": "--backend",
    "compile": "--compile",
    "begin.image": "--image",
    "begin.last_image": "--last-image",
    "begin.video": "--video",
    "begin.from": "--from",
    "begin.to": "--to",
    "begin.keep_input": "--keep-input",
    "begin.fit": "--fit",
    "audio.file": "--audio",
    "audio.offset": "--audio-offset",
    "audio.loop": "--audio-loop",
    "audio.fade": "--audio-fade",
    "model.path": "--model",
    "model.loras": "--lora",
    "model.text_encoder": "--text-encoder",
    "model.tokenizer": "--tokenizer",
    "model.vae": "--vae",
    "memory.policy": "--memory",
    "memory.commit_reads": "--commit-reads",
    "memory.kv_cache": "--kv-cache",
    "placement.offload": "--offload",
    "placement.vram": "--vram",
    "placement.parallel": "--parallel",
    "encode.quality": "--quality",
    "encode.format": "--format",
    "encode.codec": "--codec",
    "encode.bits": "--bits",
    "encode.interpolate": "--interpolate",
    "snapshot.mode": "--snapshot",
    "snapshot.disk_budget": "--disk-budget",
    "snapshot.clean": "--clean",
    "preview": "--preview",
}
"""The flag of `cfgen render` that sets a key; all other keys are set with `--set`."""

_POLICY = "What the model keeps of earlier chunks."
_ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key that may be set.

    Attributes:
        name: Its dotted name.
        about: What it is, in a sentence or two.
        values: All values that it takes; empty where they are not a few names.
        default: What it is where nothing sets it, as it is written; empty for a value that has to
            be set, and for none.
        policies: The memory policies that know it; empty if that does not matter.
        flag: The flag that sets it, or empty.
    """

    name: str
    about: str
    values: tuple[str, ...] = ()
    default: str = ""
    policies: tuple[str, ...] = ()
    flag: str = ""


def flag_of(key: str) -> str:
    """The flag that sets a key; for a key without one, what such a flag is called."""
    return FLAGS.get(key) or f"--{key.rpartition('.')[2].replace('_', '-')}"


@cache
def keys() -> Mapping[str, Key]:
    """Every key by name, in the order of the schema."""
    found: dict[str, Key] = {}
    for key in _keys(RenderConfig, "", ()):
        old = found.get(key.name)
        if old is None:
            found[key.name] = key
            continue
        found[key.name] = replace(
            old,
            values=old.values + tuple(each for each in key.values if each not in old.values),
            default=old.default if old.default == key.default else "",
            policies=old.policies + key.policies,
        )
    every = found["memory.policy"].values
    return {
        name: replace(key, policies=()) if key.policies == every else key
        for name, key in found.items()
    }


def _keys(cls: type, prefix: str, policies: tuple[str, ...]) -> Iterator[Key]:
    about = _described(cls)
    hints = get_type_hints(cls, include_extras=True)
    for item in fields(cls):
        hint = hints[item.name]
        name = prefix + key_of(item.name)
        members = members_of(hint)
        for member in members:
            own = get_type_hints(member).get("policy")
            yield from _keys(member, f"{name}.", tuple(map(str, get_args(own))) if own else ())
        if members:
            continue
        is_policy = item.name == "policy"
        yield Key(
            name=name,
            about=_POLICY if is_policy else about.get(item.name, ""),
            values=_values(hint),
            default="" if is_policy else _default(item),
            policies=policies,
            flag=FLAGS.get(name, ""),
        )


def members_of(hint: object) -> tuple[type, ...]:
    """The schema classes that a field may hold; none for a plain value."""
    options = (hint,) if isinstance(hint, type) else get_args(hint)
    return tuple(option for option in options if isinstance(option, type) and is_dataclass(option))


def _described(cls: type) -> dict[str, str]:
    """What a class's docstring says of its attributes."""
    text = inspect.getdoc(cls) or ""
    _, _, listed = text.partition("Attributes:\n")
    # What Python calls None, a person writes as null.
    return {
        name: re.sub(r"\bNone\b", "null", " ".join(about.split()))
        for name, about in _ENTRY.findall(listed)
    }


def _values(hint: object) -> tuple[str, ...]:
    if get_origin(hint) is Annotated:
        hint, *rules = get_args(hint)
        if names := [rule.names for rule in rules if isinstance(rule, Pattern)]:
            return names[0]
    if hint is bool:
        return ("true", "false")
    return tuple(map(str, get_args(hint))) if get_origin(hint) is Literal else ()


def _default(item: Field[object]) -> str:
    """A default as a person writes it; empty for none, for a text of nothing and for a list."""
    value = item.default
    if value is MISSING or value in (None, "", ()):
        return ""
    if isinstance(value, bool | str):
        return str(value).lower()
    if isinstance(value, tuple):
        items = (each if isinstance(each, str) else f"{each:g}" for each in value)
        return f"[{', '.join(items)}]"
    return f"{value:.10g}"
