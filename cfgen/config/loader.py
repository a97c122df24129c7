"""All sources → one checked `RenderConfig`, with the origin of every value.

Precedence: flag > environment `CFGEN_*` > run YAML > user configuration > preset > schema default.
Everything that is wrong is reported in one error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

from cfgen.config import sources
from cfgen.config.begin import key_of
from cfgen.config.keys import keys, members_of
from cfgen.config.presets import preset_file, user_config_file
from cfgen.config.schema import (
    RenderConfig,
    digest,
    to_mapping,
)
from cfgen.config.sources import Entries, Entry, Kind, Origin
from cfgen.config.values import RawValue, nearest, parse_value
from cfgen.config.weight_paths import anchored
from cfgen.errors import PresetError, Problem

Recipe = Callable[[str], tuple[str, str]]
"""Tells the preset that a model wants, and what says so."""

_PRESET_ONLY = frozenset({"description", "extends"})
_TAG = "policy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A configuration and how it came about.

    Attributes:
        config: The values.
        origins: Where each value comes from, by dotted key, in schema order.
        digest: SHA-256 of the values without the output path.
    """

    config: RenderConfig
    origins: Mapping[str, Origin]
    digest: str

    def rows(self) -> list[tuple[str, object, str]]:
        """Return (dotted key, value, origin) for every value, in schema order."""
        rows: list[tuple[str, object, str]] = []
        mapping = to_mapping(self.config)
        for key, origin in self.origins.items():
            value: object = mapping
            for part in key.split("."):
                assert isinstance(value, dict)
                value = value[part]
            rows.append((key, value, str(origin)))
        return rows


def known_keys() -> frozenset[str]:
    """Every dotted key that may be set, those of all memory policies included."""
    return frozenset(keys())


def _typed_fields(cls: type) -> list[tuple[Field[object], object]]:
    assert is_dataclass(cls)
    hints = get_type_hints(cls, include_extras=True)
    return [(item, hints[item.name]) for item in fields(cls)]


def load(
    flags: Mapping[str, RawValue | None] | None = None,
    *,
    assignments: Iterable[str] = (),
    run_file: Path | None = None,
    run_entries: Entries | None = None,
    base: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    recipe: Recipe | None = None,
) -> Resolved:
    """Resolve a configuration from all sources.

    Args:
        flags: Text by dotted key, None where not given; the strongest source.
        assignments: `key=value` texts, as strong as flags (a flag wins over them).
        run_file: A YAML file for this run.
        run_entries: What such a file holds, where it was read already.
        base: The folder that paths in `run_entries` start from; None for the current one.
        environ: The environment, for `CFGEN_*` and the user configuration's place.
        recipe: Tells the preset of a model, and why, where a source names a model and none a
            preset; without it that is mini.

    Raises:
        PresetError: Something is wrong; lists everything that is.
        CfgenError: As `recipe` raises.
    """
    problems: list[Problem] = []
    known = known_keys()
    flag_entries = sources.read_flags(flags or {}, assignments, known=known, problems=problems)
    env_entries = sources.read_env(environ, known=known, problems=problems)
    run_entries = anchored(run_entries or {}, base) | anchored(
        _read_file(run_file, "run file", known, problems), run_file and run_file.parent
    )
    user_file = user_config_file(environ)
    user_entries = _read_file(
        user_file if user_file.is_file() else None, "user config", known, problems
    )
    stronger = [
        anchored(user_entries, user_file.parent),
        run_entries,
        anchored(env_entries, None),
        anchored(flag_entries, None),
    ]
    choice = _preset_choice(stronger, recipe)
    preset_layers = _read_preset(choice, known, problems)
    merged: Entries = {} if choice.origin.kind == "default" else {"preset": choice}
    for layer in [*preset_layers, *stronger]:
        _overlay(merged, layer)
    sources.require_one_film(merged, problems)
    origins: dict[str, Origin] = {}
    config = _build(RenderConfig, "", merged, origins, problems)
    if problems:
        unknown = any(problem.reason.startswith(sources.UNKNOWN_KEY) for problem in problems)
        hint = "`cfgen presets show mini` lists every key" if unknown else None
        raise PresetError(problems, hint=hint)
    assert isinstance(config, RenderConfig)
    return Resolved(config=config, origins=origins, digest=digest(config))


def from_mapping(
    mapping: Mapping[str, object], *, label: str, flags: Mapping[str, str | None] | None = None
) -> RenderConfig:
    """Build the configuration that `to_mapping` gave, or another that flags make of it.

    Args:
        mapping: Its plain values.
        label: The file they come from, for messages.
        flags: Text by dotted key, None where not given.

    Raises:
        PresetError: Something is wrong; lists everything that is.
    """
    problems: list[Problem] = []
    known = known_keys()
    entries: Entries = {}
    for key, value in leaves(mapping):
        if key not in known:
            problems.append(Problem(key=key, where=label, reason=sources.UNKNOWN_KEY))
        entries[key] = Entry(
            tree=_tree(value), origin=Origin(kind="run file", where=f"{label}: {key}")
        )
    entries |= anchored(sources.read_flags(flags or {}, (), known=known, problems=problems), None)
    config = _build(RenderConfig, "", entries, {}, problems)
    if problems or not isinstance(config, RenderConfig):
        raise PresetError(problems)
    return config


def leaves(mapping: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    """Yield dotted key and value of everything in nested mappings."""
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _tree(value: object) -> RawValue:
    """A plain value as a source would hold it."""
    if isinstance(value, list):
        return [_tree(item) for item in value]
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _read_file(
    file: Path | None, kind: Kind, known: frozenset[str], problems: list[Problem]
) -> Entries:
    if file is None:
        return {}
    if not file.is_file():
        problems.append(Problem(key="", where=str(file), reason="there is no such file"))
        return {}
    return sources.read_yaml(file, kind, label=str(file), known=known, problems=problems)


def _preset_choice(stronger: list[Entries], recipe: Recipe | None) -> Entry:
    """The preset that is named, else that of the model that is named, else mini."""
    for key in ("preset", "model.path"):
        for layer in reversed(stronger):
            if key not in layer:
                continue
            if key == "preset":
                return layer[key]
            if recipe is not None and isinstance(path := layer[key].tree, str):
                name, reason = recipe(path)
                return Entry(tree=name, origin=Origin(kind="weights", where=f"({reason})"))
    return Entry(tree="mini", origin=Origin(kind="default"))


def _read_preset(choice: Entry, known: frozenset[str], problems: list[Problem]) -> list[Entries]:
    """Read the chosen preset and its parent; the parent comes first, being the weaker.

    Raises:
        PresetError: One of them cannot be taken; without it nothing else can be judged.
    """
    allowed = (known | _PRESET_ONLY) - {"preset"}
    layers: list[Entries] = []
    name, where = str(choice.tree), choice.origin.where
    while True:
        try:
            file = preset_file(name, where=where)
        except PresetError as error:
            raise PresetError([*problems, *error.problems], hint=error.hint) from None
        entries = sources.read_yaml(file, "preset", label=name, known=allowed, problems=problems)
        parent = entries.pop("extends", None)
        entries.pop("description", None)
        layers.insert(0, entries)
        if parent is None:
            return layers
        if len(layers) == 2:
            reason = f"preset {name!r} is extended by another and cannot extend one itself"
            problem = Problem(key="extends", where=parent.origin.where, reason=reason)
            raise PresetError([*problems, problem])
        name, where = str(parent.tree), parent.origin.where


def _overlay(merged: Entries, layer: Entries) -> None:
    """Put a stronger layer on top. Choosing another policy drops the weaker one's settings."""
    tag = f"memory.{_TAG}"
    if tag in layer and tag in merged and layer[tag].tree != merged[tag].tree:
        for key in [key for key in merged if key.startswith("memory.")]:
            del merged[key]
    merged.update(layer)


def _build(
    cls: type, prefix: str, entries: Entries, origins: dict[str, Origin], problems: list[Problem]
) -> object | None:
    """Build one schema class; None, with `problems` longer, if that cannot be done."""
    values: dict[str, object] = {}
    sound = True
    for item, hint in _typed_fields(cls):
        key = prefix + key_of(item.name)
        before = len(problems)
        members = members_of(hint)
        if members:
            value = _build_section(members, key, entries, origins, problems)
        elif key in entries:
            origins[key] = entries[key].origin
            value = _leaf(key, hint, entries[key], problems)
        else:
            origins[key] = Origin(kind="default")
            if not _has_default(item):
                problems.append(Problem(key=key, reason="is not set by any source"))
            continue
        if len(problems) == before:
            values[item.name] = value
        else:
            sound = sound and _has_default(item)
    if not sound:
        return None
    try:
        built: object = cls(**values)
        return built
    except PresetError as error:
        for problem in error.problems:
            key = prefix + problem.key
            where = origins[key].where if key in origins else problem.where
            problems.append(Problem(key=key, reason=problem.reason, where=where))
        return None
    except TypeError:
        # A required value is missing, which has been said already.
        return None


def _has_default(item: Field[object]) -> bool:
    return item.default is not MISSING or item.default_factory is not MISSING


def _leaf(key: str, hint: object, entry: Entry, problems: list[Problem]) -> object:
    try:
        return parse_value(hint, entry.tree)
    except ValueError as error:
        problems.append(Problem(key=key, reason=str(error), where=entry.origin.where))
        return None


def _build_section(
    members: tuple[type, ...],
    key: str,
    entries: Entries,
    origins: dict[str, Origin],
    problems: list[Problem],
) -> object | None:
    """Build a nested class; where there are several, the section's tag chooses among them."""
    cls = members[0]
    if len(members) > 1:
        chosen = _choose(members, key, entries, problems)
        if chosen is None:
            return None
        cls = chosen
        entries = _variant_defaults(cls, key, entries)
    own = {f"{key}.{key_of(item.name)}" for item in fields(cls)}
    for name in sorted(entries):
        if name.startswith(f"{key}.") and name not in own:
            reason = f"does not belong to this policy, which knows {_listed(own, key)}"
            problems.append(Problem(key=name, reason=reason, where=entries[name].origin.where))
    return _build(cls, f"{key}.", entries, origins, problems)


def _choose(
    members: tuple[type, ...], key: str, entries: Entries, problems: list[Problem]
) -> type | None:
    by_name = {str(get_args(get_type_hints(cls)[_TAG])[0]): cls for cls in members}
    entry = entries.get(f"{key}.{_TAG}")
    if entry is None:
        return members[0]
    if isinstance(entry.tree, str) and entry.tree in by_name:
        return by_name[entry.tree]
    named = str(entry.tree)
    reason = f"must be one of {', '.join(by_name)}, got {named!r}{nearest(named, by_name)}"
    problems.append(Problem(key=f"{key}.{_TAG}", reason=reason, where=entry.origin.where))
    return None


def _variant_defaults(cls: type, key: str, entries: Entries) -> Entries:
    """Add the defaults that follow a memory's variant, weaker than anything that was set."""
    variant = entries.get(f"{key}.variant")
    if variant is None or not isinstance(variant.tree, str):
        return entries
    origin = Origin(kind="default", where=f"of variant {variant.tree}")
    extra = {
        f"{key}.{name}": Entry(tree=text, origin=origin)
        for name, text in getattr(cls, "VARIANTS", {}).get(variant.tree, {}).items()
    }
    return extra | entries


def _listed(keys: Iterable[str], section: str) -> str:
    return ", ".join(sorted(name.removeprefix(f"{section}.") for name in keys))
