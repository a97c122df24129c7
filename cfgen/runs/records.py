"""Small JSON records that can be trusted: sealed by a checksum, and of the types that were written.

Whatever stands in a file, reading it gives a record or a ValueError, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

_T = TypeVar("_T")

_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "dict": (dict,),
    "list": (list,),
    "Mapping": (dict,),
}
"""What JSON may hold for a field, by the outer part of its annotation."""


def with_checksum(facts: Mapping[str, object], *, before: str = "") -> dict[str, object]:
    """Return `facts` with a checksum over them, as ``check``, and over a record before them.

    Args:
        facts: Plain values, without ``check``.
        before: The checksum of a record that this one is chained to, or empty.
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return {**facts, "check": hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:32]}


def verify(text: str | bytes, *, before: str = "") -> tuple[dict[str, Any], str]:
    """Return the facts of a sealed record, and their checksum.

    Raises:
        ValueError: It is no such record, or was changed.
    """
    facts = read_mapping(text)
    check = facts.pop("check", None)
    if with_checksum(facts, before=before)["check"] != check:
        raise ValueError("its checksum does not match")
    return facts, str(check)


def restricted(values: object, keys: object) -> object:
    """Of nested mappings what has a key in others of the same form; of all else itself.

    An older cfgen knew fewer keys: those that came later are no difference to what it wrote.
    """
    if not (isinstance(values, Mapping) and isinstance(keys, Mapping)):
        return values
    return {k: restricted(values[k], keys[k]) for k in keys if k in values}


def read_mapping(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: It is none.
    """
    try:
        facts = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise ValueError("it is not JSON") from None
    if not isinstance(facts, dict):
        raise ValueError("it is no mapping")
    return facts


def parse_as(cls: type[_T], facts: object) -> _T:
    """Build a dataclass of plain values; what is missing has its default.

    Raises:
        ValueError: It is no mapping, a name is missing or unknown, or a value of another type.
    """
    if not isinstance(facts, dict):
        raise ValueError("it is no mapping")
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for name in facts:
        if name not in known:
            raise ValueError(f"it has {name!r}, which is unknown")
    for name, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        if name not in facts and required:
            raise ValueError(f"it has no {name!r}")
        allowed = _TYPES[str(field.type).partition("[")[0]]
        value = facts.get(name)
        if name in facts and type(value) not in allowed:
            raise ValueError(f"its {name!r} is of another type")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"its {name!r} is {value}")
    return cls(**facts)
