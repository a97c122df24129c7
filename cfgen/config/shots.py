"""Shots: what a film shows one after another, each with its playing time and how it begins.

Written as a text, ``8s: a red balloon`` or ``6s cut: a blue kite``, or in YAML as a mapping of
`duration`, `prompt` and `transition`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, cast, get_args

from cfgen.config.values import Form, RawValue, nearest, parse_duration, shown
from cfgen.memory.transitions import Transition

TRANSITIONS: tuple[str, ...] = get_args(Transition)
BETWEEN = " | "
"""What stands between the prompts of shots where they are told as one text, and between shots."""

_FORM = "write TIME: PROMPT or TIME TRANSITION: PROMPT, such as '6s cut: a blue kite at night'"
_TEXT = re.compile(r"\s*(\d(?:[\w.:]*[\w.])?|\.\d\w*)(?:\s+(\w+))?\s*:\s+(\S.*)", re.DOTALL)
_SPLIT = re.compile(r"\s\|\s")
_KEYS = ("duration", "prompt", "transition")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """A stretch of a film under one prompt.

    Attributes:
        prompt: What it shows.
        duration_s: Playing time in seconds, to a microsecond.
        transition: How it begins, or None for what the render's `transition` says.
    """

    prompt: str
    duration_s: float
    transition: Transition | None = None

    def __str__(self) -> str:
        """As a person writes it, and as a record keeps it."""
        seconds = f"{self.duration_s:.6f}".rstrip("0").rstrip(".")
        begins = "" if self.transition is None else f" {self.transition}"
        return f"{seconds}s{begins}: {self.prompt}"


def parse_shots(tree: RawValue) -> tuple[Shot, ...]:
    """Read shots: a list of texts or mappings, or one text with ``|`` between them.

    Raises:
        ValueError: One of them is none; the message is one sentence.
    """
    if isinstance(tree, str):
        inside = tree.strip()
        tree = list[RawValue](_SPLIT.split(inside)) if inside else []
    if not isinstance(tree, list):
        raise ValueError(f"must be a list of shots, got {shown(tree)}")
    return tuple(_shot(each, number) for number, each in enumerate(tree, start=1))


def _shot(tree: RawValue, number: int) -> Shot:
    which = f"shot {number}"
    if isinstance(tree, dict):
        if unknown := next((key for key in tree if key not in _KEYS), ""):
            raise ValueError(f"{which} has {unknown!r}, which is no key{nearest(unknown, _KEYS)}")
        if missing := next((key for key in _KEYS[:2] if key not in tree), ""):
            raise ValueError(f"{which} has no `{missing}`")
        time, prompt, begins = (tree.get(key, "") for key in _KEYS)
    elif isinstance(tree, str) and (match := _TEXT.fullmatch(tree)):
        time, begins, prompt = match.group(1), match.group(2) or "", match.group(3)
    else:
        got = repr(tree) if isinstance(tree, str) else shown(tree)
        raise ValueError(f"{which} is {got}: {_FORM}")
    if not (isinstance(time, str) and isinstance(prompt, str) and isinstance(begins, str)):
        raise ValueError(f"{which} must hold one value for each key")
    if begins and begins not in TRANSITIONS:
        known = ", ".join(TRANSITIONS)
        guess = nearest(begins, TRANSITIONS)
        raise ValueError(f"{which} begins with {begins!r}; transitions are {known}{guess}")
    words = " ".join(prompt.split())
    if not words:
        raise ValueError(f"{which} has an empty prompt")
    try:
        seconds = round(parse_duration(time), 6)
    except ValueError as error:
        raise ValueError(f"{which}: {error}") from None
    return Shot(prompt=words, duration_s=seconds, transition=cast(Transition, begins) or None)


def total_s(shots: Sequence[Shot]) -> float:
    """Playing time of shots together, in seconds to a microsecond."""
    return round(sum(shot.duration_s for shot in shots), 6)


def told(shots: Sequence[Shot]) -> str:
    """All prompts of shots as one text."""
    return BETWEEN.join(shot.prompt for shot in shots)


Shots = Annotated[tuple[Shot, ...], Form(parse_shots)]
"""What a film shows one after another; none for a film of one prompt."""
