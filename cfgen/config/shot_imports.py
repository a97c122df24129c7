"""Films of several prompts as other tools write them, as shots."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cfgen.config.values import RawValue

LONGLIVE_S = 10
"""Seconds of each prompt: LongLive v1.0 @ e52d9ef changes it at latents 40, 80 and so on, at four a
second (configs/longlive_interactive_inference.yaml)."""

INFINITY_CUT = (
    "a segment with # cuts at its own start, as Infinity-RoPE's README says; its code cuts at the "
    "start of the next one"
)

_SEGMENT = re.compile(r"\s*(\S.*?)\s*\[\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*s\s*(#?)\s*\]\s*")
_CHUNK_S = 12 / 16


def longlive_shots(prompts: Sequence[str]) -> list[RawValue]:
    """The shots of a line ``{"prompts_list": [...]}`` of LongLive's interactive mode."""
    return [
        {"duration": str(LONGLIVE_S), "prompt": prompt, "transition": "recache" if n else ""}
        for n, prompt in enumerate(prompts)
    ]


def infinity_shots(line: str) -> tuple[list[RawValue], str] | None:
    """The shots of a prompt ``A[3s#] | B[4.5s]`` of Infinity-RoPE, and what is to be told of it.

    Seconds are whole chunks of 3 latents, at least one, as its code counts them. What begins
    without ``#`` is flushed.

    Returns:
        None if it is no such prompt.

    Raises:
        ValueError: Only some of its segments have a time; the message is one sentence.
    """
    found = [_SEGMENT.fullmatch(part) for part in line.split("|")]
    if not any(found):
        return None
    shots: list[RawValue] = []
    for number, match in enumerate(found, start=1):
        if match is None:
            raise ValueError(
                f"segment {number} has no time, such as [3s], and another of the line has one"
            )
        chunks = max(1, int(float(match[2]) / _CHUNK_S))
        begins = "cut" if match[3] else "flush"
        shots.append(
            {
                "duration": f"{chunks * _CHUNK_S:g}",
                "prompt": match[1],
                "transition": begins if number > 1 else "",
            }
        )
    return shots, INFINITY_CUT if any(match and match[3] for match in found) else ""
