"""What of a memory a commit pass may attend to.

Far history that a commit pass reads is where drift enters the cache, while in denoising passes it
anchors. Source: Commit Forcing (github.com/Dwell-Jing/commit-forcing @ 5ed6592).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated

from cfgen.errors import Problem
from cfgen.fields import Pattern
from cfgen.memory.protocols import VisibleSlot

NEWEST = "newest:"

CommitReads = Annotated[
    str,
    Pattern(
        pattern=rf"all|fast|{NEWEST}[1-9][0-9]{{0,5}}",
        words=f"all, fast or {NEWEST}K",
        names=("all", "fast", f"{NEWEST}K"),
    ),
]
"""All of the memory; `fast` memory and the chunk itself; or `newest:K`, the newest K latent frames,
the chunk's own included, and no key frames, which are copies."""


def newest_of(reads: str) -> int:
    """K of `newest:K`, 0 for the others."""
    return int(reads.removeprefix(NEWEST)) if reads.startswith(NEWEST) else 0


def narrowed(
    placed: list[VisibleSlot],
    reads: str,
    *,
    fast: int,
    current: int,
    copies: Collection[int] = (),
) -> list[VisibleSlot]:
    """Those of a table's slots that a commit pass reads, where they stand.

    Args:
        placed: All of them, the chunk last.
        reads: `all`, `fast` or `newest:K`.
        fast: Slots of fast memory, at the end.
        current: Slots of the chunk itself.
        copies: Places of key frames among `placed`.
    """
    if reads == "all":
        return placed
    if reads == "fast":
        return placed[-max(fast, current) :]
    oldest = max(p.slot.frame for p in placed) - max(newest_of(reads), current) + 1
    return [p for i, p in enumerate(placed) if p.slot.frame >= oldest and i not in copies]


def commit_problems(reads: str, *, chunk: int) -> Iterable[Problem]:
    """What of `commit_reads` does not go together with chunks of `chunk` latent frames."""
    if 0 < newest_of(reads) < chunk:
        reason = f"must be {NEWEST}{chunk} at least, which is the chunk itself, got {reads!r}"
        yield Problem(key="memory.commit_reads", reason=reason)
