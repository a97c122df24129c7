"""From the text a person writes to a typed value, or to one sentence on what is wrong with it.

Flags, environment variables and YAML scalars all arrive as text and are read by the same rules.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

from cfgen.errors import UsageError
from cfgen.fields import Pattern, Range
from cfgen.units import parse_rate

RawValue = str | list["RawValue"] | dict[str, "RawValue"]
"""What a source holds before it is typed: text, lists and mappings of it."""

_CLOCK = re.compile(r"(?:([0-9]+):)?([0-9]+):([0-9]{1,2}(?:\.[0-9]+)?)")
_UNITS = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)s)?")
_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_SIZE = re.compile(r"([0-9]{1,6})\s*[xX*]\s*([0-9]{1,6})")
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_BYTES_FORMS = "write 500MB, 2GB or 1.5TB"
_LEAST_BARE = 1000
"""A number without a unit below this was meant in larger units."""
_DURATION_FORMS = "write 12.5 (seconds), 30s, 2m30s, 1h5m or 1:05"
_TRUE = {"true", "yes", "on"}
_FALSE = {"false", "no", "off"}
NONE = frozenset({"null", "none", "~", ""})
"""What stands for no value, in small letters."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Marks a type that is written in a form of its own."""

    name: Literal["duration", "moment", "size", "bytes", "rate", "seed"]


@dataclass(frozen=True, slots=True)
class Form:
    """Marks a type that a function of its own reads; it raises a ValueError of one sentence."""

    read: Callable[[RawValue], object]


Duration = Annotated[float, Unit("duration"), Range(above=0)]
"""Seconds."""

Moment = Annotated[float | None, Unit("moment"), Range(low=0)]
"""Seconds from the start of a film, or None."""

Size = Annotated[tuple[int, int], Unit("size")]
"""Width and height in pixels."""


Rate = Annotated[float | None, Unit("rate"), Range(low=1, high=240)]
"""Frames per second, or None."""

Seed = Annotated[int | None, Unit("seed"), Range(low=0, high=2**64 - 1)]
"""What fixes all noise, or None for one to be chosen."""

ByteCount = Annotated[int, Unit("bytes"), Range(low=0)]
"""Bytes."""


def parse_bytes(text: str) -> int:
    """Read a number of bytes such as ``2GB``, ``500 MB`` or ``1000``, in powers of 1000.

    Raises:
        ValueError: The text is no such number; the message is one sentence.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None or "i" in text.lower():
        raise ValueError(f"{text!r} is not a number of bytes: {_BYTES_FORMS}")
    if len(match.group(1)) > 15:
        raise ValueError(f"{text!r} is more than any disk holds")
    bare = match.group(2) == "" and "b" not in text.lower()
    if bare and 0 < float(match.group(1)) < _LEAST_BARE:
        raise ValueError(f"{text!r} would be bytes: {match.group(1)}G? {_BYTES_FORMS}")
    power = " kmgt".index(match.group(2).lower() or " ")
    return round(float(match.group(1)) * 1000.0**power)


def parse_duration(text: str) -> float:
    """Read a duration such as ``12.5``, ``30s``, ``2m30s``, ``1h5m`` or ``1:05``.

    Returns:
        Seconds, greater than 0.

    Raises:
        ValueError: The text is no duration, or not longer than 0; the message is one sentence.
    """
    stripped = text.strip().lower()
    negative = stripped.startswith("-")
    body = stripped[1:] if negative else stripped
    seconds = _seconds(body)
    if seconds is None or not math.isfinite(seconds):
        raise ValueError(f"{text!r} is not a duration: {_DURATION_FORMS}")
    if negative or seconds <= 0:
        raise ValueError(f"a duration must be longer than 0 seconds, got {text!r}")
    return seconds


def parse_moment(text: str) -> float | None:
    """Read a moment of a film, as a duration is written; 0 is its start.

    Returns:
        Seconds, or None for none.

    Raises:
        ValueError: The text is no moment; the message is one sentence.
    """
    stripped = text.strip().lower()
    if stripped in NONE:
        return None
    seconds = _seconds(stripped)
    if seconds is None or not math.isfinite(seconds):
        raise ValueError(f"{text!r} is not a moment of a film: {_DURATION_FORMS}")
    return seconds


def _seconds(body: str) -> float | None:
    """Seconds meant by an unsigned duration, or None if it is none."""
    if _PLAIN.fullmatch(body):
        return float(body)
    if clock := _CLOCK.fullmatch(body):
        hours, minutes, seconds = (float(part or 0) for part in clock.groups())
        if seconds >= 60 or (clock.group(1) and minutes >= 60):
            return None
        return hours * 3600 + minutes * 60 + seconds
    units = _UNITS.fullmatch(body)
    if units and any(units.groups()):
        hours, minutes, seconds = (float(part or 0) for part in units.groups())
        return hours * 3600 + minutes * 60 + seconds
    return None


def parse_size(text: str) -> tuple[int, int]:
    """Read a size such as ``160x96`` or ``160*96``.

    Returns:
        Width and height in pixels, both at least 1.

    Raises:
        ValueError: The text is no size; the message is one sentence.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write WIDTHxHEIGHT in pixels, such as 160x96")
    width, height = int(match.group(1)), int(match.group(2))
    if width < 1 or height < 1:
        raise ValueError(f"a size must be at least 1x1, got {text!r}")
    return width, height


def parse_lora(text: str) -> tuple[str, float]:
    r"""Read a LoRA such as ``film.safetensors`` or ``film.safetensors:0.8``.

    What follows the last colon is the strength, unless a slash is in it: ``C:\film.safetensors``
    is a path. A path with another colon needs its strength.

    Returns:
        Where it lies, and its strength: 1 if it is not written.

    Raises:
        UsageError: There is no path, or the strength is no finite number other than 0.
    """
    path, colon, tail = text.strip().rpartition(":")
    if not colon or "/" in tail or "\\" in tail:
        path, tail = text.strip(), "1"
    try:
        strength = float(tail)
    except ValueError:
        strength = math.nan
    if not path or not math.isfinite(strength) or strength == 0:
        raise UsageError(
            f"{text!r} is not a LoRA with a strength: what follows the colon must be a finite "
            "number other than 0",
            "write PATH or PATH:0.8; a path with a colon in it needs its strength",
        )
    return path, strength


def size_text(size: tuple[int, int]) -> str:
    """Return a size as a person writes it."""
    return f"{size[0]}x{size[1]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'X'?`` for the closest of `known`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def parse_value(hint: object, tree: RawValue) -> object:
    """Turn text into a value of the annotated type `hint`.

    Args:
        hint: An annotation of a schema field, `Annotated` included.
        tree: What a source holds for it.

    Raises:
        ValueError: It cannot be read as that type or breaks a rule of the annotation.
    """
    rules: tuple[object, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        rules = tuple(extras)
    for rule in rules:
        if isinstance(rule, Unit | Form):
            value: object = _unit(rule, tree) if isinstance(rule, Unit) else rule.read(tree)
            break
    else:
        value = _typed(hint, tree)
    for rule in rules:
        if isinstance(rule, Range | Pattern) and (reason := rule.problem(value)):
            raise ValueError(reason)
    return value


def _unit(unit: Unit, tree: RawValue) -> object:
    if unit.name == "size" and isinstance(tree, list) and len(tree) == 2:
        tree = f"{tree[0]}x{tree[1]}"
    if not isinstance(tree, str):
        kind = "one value" if unit.name in ("rate", "seed", "moment") else f"a {unit.name}"
        raise ValueError(f"must be {kind}, got {shown(tree)}")
    readers: dict[str, Callable[[str], object]] = {
        "duration": parse_duration,
        "moment": parse_moment,
        "size": parse_size,
        "bytes": parse_bytes,
        "rate": _rate,
        "seed": _seed,
    }
    return readers[unit.name](tree)


def _typed(hint: object, tree: RawValue) -> object:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _optional(hint, tree)
    if origin is tuple:
        return _sequence(hint, tree)
    if not isinstance(tree, str):
        raise ValueError(f"must be one value, got {shown(tree)}")
    if origin is Literal:
        return _choice(get_args(hint), tree)
    if hint is Path:
        return Path(tree)
    if hint is bool:
        return _boolean(tree)
    if hint is int:
        return _integer(tree)
    return _number(tree) if hint is float else tree


def _seed(text: str) -> int | None:
    """A seed; -1 means, as in other tools, that one is to be chosen."""
    if text.strip().lower() in NONE:
        return None
    number = _integer(text)
    return None if number == -1 else number


def _rate(text: str) -> float | None:
    return None if text.strip().lower() in NONE else parse_rate(text)


def _optional(hint: object, tree: RawValue) -> object:
    if isinstance(tree, str) and tree.strip().lower() in NONE:
        return None
    (inner,) = (arg for arg in get_args(hint) if arg is not type(None))
    return parse_value(inner, tree)


def _sequence(hint: object, tree: RawValue) -> object:
    if isinstance(tree, str):
        inside = tree.strip().removeprefix("[").removesuffix("]")
        tree = [part.strip() for part in inside.split(",") if part.strip()]
    if not isinstance(tree, list):
        raise ValueError(f"must be a list, got {shown(tree)}")
    item = get_args(hint)[0]
    return tuple(parse_value(item, part) for part in tree)


def _choice(options: tuple[object, ...], text: str) -> str:
    names = [str(option) for option in options]
    if text not in names:
        allowed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
        raise ValueError(f"must be {allowed}, got {text!r}{nearest(text, names)}")
    return text


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(f"must be true or false, got {text!r}")
    return text.lower() in _TRUE


def _integer(text: str) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,20}", text.strip()) is None:
        raise ValueError(f"must be a whole number, got {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"must be a number, got {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {text!r}")
    return value


def raw_value(value: object) -> RawValue:
    """A value of JSON as a source holds it."""
    if isinstance(value, list):
        return [raw_value(each) for each in value]
    if isinstance(value, dict):
        return {str(key): raw_value(each) for key, each in value.items()}
    return value if isinstance(value, str) else json.dumps(value)


def shown(tree: object) -> str:
    """Name the kind of a tree that is not text."""
    if isinstance(tree, list | tuple):
        return "a list"
    return "a mapping" if isinstance(tree, dict) else repr(tree)
