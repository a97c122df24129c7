"""Numbers as people write them: sizes, counts, and frame rates such as 29.97 or 30000/1001."""

from __future__ import annotations

import re
from fractions import Fraction

_BASES = (12, 15, 24, 25, 30, 48, 50, 60, 72, 90, 100, 120, 144, 240)
"""Whole rates that have a slower twin, 1000/1001 of them."""
_NEAR = Fraction(1, 200)
"""How far a rounded rate such as 23.98 may lie from what it means."""


def ntsc(fps: float | Fraction) -> Fraction | None:
    """The rate N * 1000/1001 that a decimal such as 29.97, 23.976 or 59.94 means, or None.

    Whole rates mean themselves, and so do those that lie anywhere else.
    """
    given = Fraction(fps)
    if given.denominator == 1:
        return None
    for base in _BASES:
        exact = Fraction(base * 1000, 1001)
        if abs(given - exact) <= min(_NEAR, abs(base - exact) / 3):
            return exact
    return None


def parse_rate(text: str) -> float:
    """Read a frame rate such as ``24``, ``29.97`` or ``30000/1001``; its range is not judged.

    Raises:
        ValueError: The text is no rate; the message is one sentence.
    """
    match = re.fullmatch(
        r"([+-]?[0-9]{1,7}(?:\.[0-9]{1,17})?)(?:\s*[/:]\s*([0-9]{1,7}))?", text.strip()
    )
    if match is None or (match[2] is not None and int(match[2]) == 0):
        raise ValueError(f"{text!r} is not a frame rate: write 24, 29.97 or 30000/1001")
    rate = Fraction(match[1]) / int(match[2] or 1)
    return float(ntsc(rate) or rate)


def bytes_words(nbytes: float) -> str:
    """Return ``812 B``, ``1.4 MB`` and so on, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def count(number: int, noun: str) -> str:
    """Return ``1 frame``, ``2 frames`` and so on."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def clock(seconds: float) -> str:
    """Return ``0:07``, ``12:30`` or ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def plain(value: float) -> str:
    """A number with three digits behind the point at most, as ``1.5`` or ``12``."""
    return f"{value:.3f}".rstrip("0").rstrip(".")
