"""The places that values come from, each read into flat entries that remember their origin.

YAML is read as a tree of nodes, not of values, so that every entry knows its line and so that text
such as `1:05` stays what was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import yaml

from cfgen.config.keys import flag_of
from cfgen.config.values import RawValue, nearest
from cfgen.errors import Problem
from cfgen.files.reading import read_text

Kind = Literal["default", "weights", "preset", "user config", "run file", "environment", "flag"]
"""Sources, the weakest first."""

ENV_PREFIX = "CFGEN_"

UNKNOWN_KEY = "is not a known key"

NOT_SETTINGS = frozenset({"CFGEN_FFMPEG"})
"""Variables that are read elsewhere: the path of an ffmpeg, which belongs to the machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a value comes from.

    Attributes:
        kind: The source.
        where: The place in it, as shown to a person: `run.yaml:3`, `--seed`, `CFGEN_SEED`.
    """

    kind: Kind
    where: str = ""

    def __str__(self) -> str:
        """Return `flag --seed`, `preset mini:5`, `default` and so on."""
        return f"{self.kind} {self.where}".strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An untyped value and its origin."""

    tree: RawValue
    origin: Origin


MOST_NODES = 1_000_000

EXTENSION = "x-"
"""What keys begin with that hold anchors for others, or notes: they set nothing."""

SHORT = {"audio": "audio.file"}
"""Sections that may hold one value instead of keys, and the key that it is for."""

Entries = dict[str, Entry]
"""Entries by dotted key."""


def read_yaml(
    file: Path, kind: Kind, *, label: str, known: frozenset[str], problems: list[Problem]
) -> Entries:
    """Read a YAML file into entries; whatever is wrong with it is added to `problems`.

    Args:
        file: The file, which must exist.
        kind: The source that it is.
        label: The name shown before line numbers.
        known: All dotted keys that may be set.
        problems: Receives what is wrong.
    """
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(key="", where=label, reason=f"cannot be read: {error}"))
        return {}
    needs = "must hold keys and values, such as `duration: 10s`"
    node = compose(text, label=label, needs=needs, problems=problems)
    return {} if node is None else flatten(node, kind, label=label, known=known, problems=problems)


def compose(
    text: str, *, label: str, needs: str, problems: list[Problem]
) -> yaml.MappingNode | None:
    """Parse a YAML mapping, or return None: it is empty, or wrong, as `problems` then tells.

    Args:
        text: The document.
        label: Its name, shown before line numbers.
        needs: What it must hold, in words.
        problems: Receives what is wrong.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        heavy = weight(node) > MOST_NODES
        if not heavy:
            merge(node, set())
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = label if mark is None else f"{label}:{mark.line + 1}"
        detail = getattr(error, "problem", None) or "it cannot be parsed"
        problems.append(Problem(key="", where=where, reason=f"is not valid YAML: {detail}"))
        return None
    if not isinstance(node, yaml.MappingNode) or heavy:
        reason = "is too large once its aliases are written out" if heavy else needs
        problems.append(Problem(key="", where=label, reason=reason))
        return None
    return node


def weight(node: yaml.Node, known: dict[int, int] | None = None) -> int:
    """How many nodes a YAML document has once every alias is written out."""
    known = {} if known is None else known
    if id(node) not in known:
        children = [node.value] if isinstance(node, yaml.ScalarNode) else node.value
        flat = [each for child in children for each in (child if type(child) is tuple else [child])]
        known[id(node)] = 1 + sum(weight(c, known) for c in flat if isinstance(c, yaml.Node))
    return known[id(node)]


def merge(node: yaml.Node, done: set[int]) -> None:
    """Write out every `<<` of a document; keys of a mapping's own win, then the earlier merged.

    Args:
        node: The document, which is changed.
        done: Nodes that need no look any more.

    Raises:
        yaml.YAMLError: What is merged is no mapping.
    """
    if id(node) in done or isinstance(node, yaml.ScalarNode):
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            merge(item, done)
        return
    own, merged = [], []
    for key, value in node.value:
        merge(value, done)
        if getattr(key, "tag", "") != "tag:yaml.org,2002:merge":
            own.append((key, value))
            continue
        for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(each, yaml.MappingNode):
                raise yaml.MarkedYAMLError(
                    problem="<< must name a mapping", problem_mark=key.start_mark
                )
            merged += each.value
    names = {key.value for key, _ in own if isinstance(key, yaml.ScalarNode)}
    for key, value in merged:
        if isinstance(key, yaml.ScalarNode) and key.value not in names:
            names.add(key.value)
            own.append((key, value))
    node.value = own


def flatten(
    node: yaml.MappingNode,
    kind: Kind,
    *,
    label: str,
    known: frozenset[str],
    problems: list[Problem],
) -> Entries:
    """Read a YAML mapping into entries; arguments as those of `read_yaml`."""
    entries: Entries = {}
    _flatten(node, "", _Reading(kind, label, known, problems), entries)
    return entries


@dataclass(frozen=True, slots=True)
class _Reading:
    kind: Kind
    label: str
    known: frozenset[str]
    problems: list[Problem]

    def where(self, node: yaml.Node) -> str:
        return f"{self.label}:{node.start_mark.line + 1}"

    def wrong(self, node: yaml.Node, key: str, reason: str) -> None:
        self.problems.append(Problem(key=key, where=self.where(node), reason=reason))


def _flatten(node: yaml.MappingNode, prefix: str, reading: _Reading, entries: Entries) -> None:
    sections = {key.rpartition(".")[0] for key in reading.known} - {""}
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}" if isinstance(key_node, yaml.ScalarNode) else prefix
        if not prefix and key.startswith(EXTENSION):
            continue
        if isinstance(value_node, yaml.ScalarNode):
            key = SHORT.get(key, key)
        if key in sections:
            if isinstance(value_node, yaml.MappingNode):
                _flatten(value_node, f"{key}.", reading, entries)
            else:
                example = next(name for name in sorted(reading.known) if name.startswith(key + "."))
                short = example.removeprefix(f"{key}.")
                reading.wrong(value_node, key, f"must hold keys of its own, such as {short!r}")
        elif key not in reading.known:
            reading.wrong(key_node, key, unknown_key(key, reading.known))
        elif key in entries:
            first = entries[key].origin.where
            reading.wrong(key_node, key, f"is given twice, first at {first}")
        else:
            origin = Origin(kind=reading.kind, where=reading.where(key_node))
            entries[key] = Entry(tree=_tree(value_node), origin=origin)


def _tree(node: yaml.Node) -> RawValue:
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _tree(value) for key, value in node.value}
    return str(node.value)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that `key` is not one, and name the nearest, looking into every section."""
    names = list(known)
    if guess := nearest(key, names):
        return UNKNOWN_KEY + guess
    short = key.rpartition(".")[2]
    for name in names:
        if nearest(short, [name.rpartition(".")[2]]):
            return f"{UNKNOWN_KEY}; did you mean {name!r}?"
    return UNKNOWN_KEY


def env_name(key: str) -> str:
    """The environment variable that sets `key`: dots become two underscores."""
    return ENV_PREFIX + key.upper().replace(".", "__")


def read_env(
    environ: Mapping[str, str], *, known: frozenset[str], problems: list[Problem]
) -> Entries:
    """Read every `CFGEN_*` variable; an unknown one is a problem, like an unknown key."""
    names = {env_name(key): key for key in sorted(known)}
    entries: Entries = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in NOT_SETTINGS:
            continue
        if name in names:
            origin = Origin(kind="environment", where=name)
            entries[names[name]] = Entry(tree=environ[name], origin=origin)
        else:
            reason = f"is not a variable that cfgen knows{nearest(name, names)}"
            problems.append(Problem(key=name, where=name, reason=reason))
    return entries


def read_flags(
    flags: Mapping[str, RawValue | None],
    assignments: Iterable[str],
    *,
    known: frozenset[str],
    problems: list[Problem],
) -> Entries:
    """Read flags and `--set key=value` assignments.

    Args:
        flags: Text by dotted key, lists of it where a flag may be repeated; None where it was not
            given.
        assignments: The arguments of `--set`, in order; a later one wins.
        known: All dotted keys that may be set.
        problems: Receives what is wrong.
    """
    entries: Entries = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        key, where = key.strip(), f"--set {text}"
        if not equals:
            reason = "must be written key=value, such as memory.tau=0.9"
            problems.append(Problem(key="", where=where, reason=reason))
        elif key not in known:
            problems.append(Problem(key=key, where="--set", reason=unknown_key(key, known)))
        else:
            origin = Origin(kind="flag", where=f"--set {key}")
            entries[key] = Entry(tree=value.strip(), origin=origin)
    for key, flag_text in flags.items():
        if flag_text is not None and key not in known:
            problems.append(Problem(key=key, reason=unknown_key(key, known)))
        elif flag_text is not None:
            origin = Origin(kind="flag", where=flag_of(key))
            entries[key] = Entry(tree=flag_text, origin=origin)
    return entries


def require_one_film(merged: Entries, problems: list[Problem]) -> None:
    """Shots have prompts and durations of their own: drop weaker ones, refuse the others."""
    if "shots" not in merged or not merged["shots"].tree:
        return
    shots, kinds = merged["shots"].origin, get_args(Kind)
    for key in ("prompt", "duration"):
        if key in merged and kinds.index(merged[key].origin.kind) < kinds.index(shots.kind):
            del merged[key]
        elif key in merged:
            reason = f"does not go with shots (of {shots}), which have a {key} each"
            problems.append(Problem(key=key, reason=reason, where=merged[key].origin.where))
