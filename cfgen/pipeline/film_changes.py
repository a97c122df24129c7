"""What a film shows when something of it is to be another from a moment on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from cfgen.config.schema import RenderConfig
from cfgen.config.shots import Shot, total_s
from cfgen.config.values import nearest
from cfgen.errors import UsageError
from cfgen.memory.transitions import Transition
from cfgen.timeline import Plan


def with_film(config: RenderConfig, film: Sequence[Shot]) -> RenderConfig:
    """A configuration that renders these shots.

    Raises:
        PresetError: Its memory cannot begin one of them as it says.
    """
    if len(film) > 1:
        return replace(config, shots=tuple(film))
    (only,) = film
    return replace(config, shots=(), prompt=only.prompt, duration_s=only.duration_s)


def cut_to(film: Sequence[Shot], duration_s: float) -> tuple[Shot, ...]:
    """The film in another playing time: its last shot is longer, or its end is missing."""
    kept = list(film)
    while len(kept) > 1 and total_s(kept[:-1]) >= duration_s:
        kept.pop()
    rest = duration_s if len(kept) == 1 else round(duration_s - total_s(kept[:-1]), 6)
    return *kept[:-1], replace(kept[-1], duration_s=rest)


def changed_from(
    film: Sequence[Shot],
    plan: Plan,
    chunk: int,
    *,
    prompt: str | None = None,
    transition: str | None = None,
) -> tuple[Shot, ...]:
    """The film with a new shot that begins with a chunk.

    Args:
        film: Its shots.
        plan: Its plan.
        chunk: The chunk.
        prompt: What the film shows from there to its end; None for what it shows there now, after
            which the later shots follow.
        transition: How the new shot begins, or None for what the render's `transition` says.

    Raises:
        UsageError: It is no transition, the prompt is empty, or a film has nothing to go on from.
    """
    number = plan.span_of(chunk)
    old, span = film[number], plan.spans[number]
    words = old.prompt if prompt is None else " ".join(prompt.split())
    if not words:
        raise UsageError("the prompt is empty", "say what the video shows from there on")
    begins = _transition(transition)
    last = number == len(film) - 1
    if begins is None and words == old.prompt and (prompt is None or last):
        return tuple(film)
    if begins is not None and chunk == 0:
        raise UsageError(
            "there is nothing before the first chunk to go on from", "leave --transition out"
        )
    start_s = plan.chunk(chunk).frame_start / plan.geometry.fps
    head = list(film[:number])
    if chunk > plan.first_of(number):
        head.append(replace(old, duration_s=round(start_s - span.asked_s, 6)))
    tail = [] if prompt is not None else list(film[number + 1 :])
    rest = round(total_s(film) - total_s(head) - total_s(tail), 6)
    return *head, Shot(prompt=words, duration_s=rest, transition=begins), *tail


def _transition(text: str | None) -> Transition | None:
    known: tuple[Transition, ...] = get_args(Transition)
    for each in known:
        if each == text:
            return each
    if text is not None:
        raise UsageError(
            f"--transition: must be one of {', '.join(known)}, got {text!r}{nearest(text, known)}"
        )
    return None
