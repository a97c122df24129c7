"""Rules for the fields of a settings dataclass, checked all at once when it is made."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from cfgen.errors import PresetError, Problem

CHANGES_NO_FRAME = frozenset(
    ("output", "snapshot", "placement", "cuda_graph", "preview", "contact_sheet")
)
"""Keys, and sections of keys, that may differ between two renders of the same frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A number must lie in this range; the ends belong to it unless `above` is used."""

    low: float | None = None
    above: float | None = None
    high: float | None = None

    def problem(self, value: object) -> str | None:
        """Say what is wrong with `value`, or return None."""
        if value is None or not isinstance(value, int | float):
            return None
        inside = (
            math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
        )
        return None if inside else f"must be {self._words()}, got {value}"

    def _words(self) -> str:
        words = []
        if self.low is not None:
            words.append(f"at least {self.low}")
        if self.above is not None:
            words.append(f"greater than {self.above}")
        if self.high is not None:
            words.append(f"at most {self.high}")
        return " and ".join(words) or "a finite number"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """A text must match `pattern`; `words` say what that means, `names` list its forms if few."""

    pattern: str
    words: str
    names: tuple[str, ...] = ()

    def problem(self, value: object) -> str | None:
        """Say what is wrong with `value`, or return None."""
        if isinstance(value, str) and re.fullmatch(self.pattern, value) is None:
            return f"must be {self.words}, got {value!r}"
        return None


Natural = Annotated[int, Range(low=0)]
Positive = Annotated[int, Range(low=1)]


def check(config: object, *more: Problem, key_of: Callable[[str], str] = str) -> None:
    """Raise one error with every rule that `config` breaks, `more` included.

    Args:
        config: A dataclass whose fields are annotated with `Range`, `Pattern` or `Literal`.
        more: Problems that were found otherwise.
        key_of: The name of a field as a person writes it.

    Raises:
        PresetError: A rule is broken.
    """
    problems = []
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        for rule in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
            if isinstance(rule, Range | Pattern) and (reason := rule.problem(value)):
                problems.append(Problem(key=key_of(name), reason=reason))
        if get_origin(hint) is Literal and value not in get_args(hint):
            allowed = ", ".join(map(str, get_args(hint)))
            problems.append(
                Problem(key=key_of(name), reason=f"must be one of {allowed}, got {value!r}")
            )
    problems.extend(more)
    if problems:
        raise PresetError(problems)
