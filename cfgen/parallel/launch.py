"""What a launcher, as torchrun or `accelerate launch`, tells a process; loads without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from cfgen.errors import UsageError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launched(NamedTuple):
    """This process among those that were started together.

    Attributes:
        rank: Its number.
        size: How many there are.
        local: Its number on this machine: that of its GPU.
    """

    rank: int
    size: int
    local: int


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """What a launcher tells this process; None where none started it, or it alone.

    Raises:
        UsageError: It tells what is no number.
    """
    if not all(environment.get(name) for name in VARIABLES):
        return None
    numbers = {"LOCAL_RANK": environment.get("LOCAL_RANK", environment["RANK"])}
    numbers |= {name: environment[name] for name in ("RANK", "WORLD_SIZE")}
    for name, text in numbers.items():
        if not text.isdecimal():
            raise UsageError(f"{name}={text} is no number, as a launcher sets it", f"unset {name}")
    rank, size = int(numbers["RANK"]), int(numbers["WORLD_SIZE"])
    return Launched(rank, size, int(numbers["LOCAL_RANK"])) if size > 1 else None


def require_divisible(heads: int, processes: int) -> None:
    """Refuse a number of processes that heads cannot be shared out among.

    Raises:
        UsageError: The number does not divide them.
    """
    if heads % processes:
        allowed = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        raise UsageError(
            f"the {heads} attention heads of this model cannot be shared out among {processes} "
            f"processes; they can be among {', '.join(allowed[:-1])} or {allowed[-1]}",
            f"use --parallel {max(int(n) for n in allowed if int(n) <= processes)}",
        )


def require_one_page_size(sizes: int, processes: int) -> None:
    """Refuse a memory whose pages have several sizes: only whole latent frames are shared out.

    Raises:
        UsageError: There are several, and several processes.
    """
    if processes > 1 and sizes > 1:
        raise UsageError(
            f"--parallel {processes}: this memory keeps older frames as pages of fewer tokens,"
            " which cannot be shared out among processes",
            "render with --parallel 1, or with another --memory",
        )
