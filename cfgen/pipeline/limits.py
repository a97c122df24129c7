"""What of the machine this process may use: CPU affinity, and the limits of its control group.

Containers and job schedulers give a process fewer cores and less memory than the machine has.
Source: Linux, Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/{memory,cpu}.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from cfgen.config.schema import RenderConfig
from cfgen.config.values import size_text
from cfgen.files.reading import read_text

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process may use, at least 1."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    for group in _groups("cpu"):
        quota, period = _words(group / "cpu.max", 2)
        if quota is None:
            (quota,), (period,) = (
                _words(group / f"cpu.cfs_{name}_us", 1) for name in ("quota", "period")
            )
        if quota and period and quota > 0 and period > 0:
            cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def free_memory() -> int:
    """Bytes of main memory that this process may still take."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for group in _groups("memory"):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            (most,), (now,) = _words(group / limit, 1), _words(group / used, 1)
            if most is not None and now is not None:
                free = min(free, max(0, most - now + _reclaimable(group)))
    return free


def _reclaimable(group: Path) -> int:
    """Bytes of files in memory, which a group counts as used and the system gives up if need be."""
    try:
        rows = (line.split() for line in read_text(group / "memory.stat").splitlines())
        facts = {row[0]: int(row[1]) for row in rows if len(row) == 2}
    except (OSError, ValueError):
        return 0
    return facts.get("inactive_file", 0)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those around it, of either version."""
    try:
        lines = read_text(MEMBERSHIP, errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, names, place = (line.split(":", 2) + ["", ""])[:3]
        if names and controller not in names.split(","):
            continue
        root = CGROUPS / controller if names else CGROUPS
        inner = root / place.strip("/")
        yield inner
        yield from (each for each in inner.parents if each.is_relative_to(root))


def _words(file: Path, count: int) -> list[int | None]:
    """The numbers in a file, None for each that is not there or says `max`."""
    try:
        words = read_text(file, encoding="ascii", errors="replace").split()
    except OSError:
        words = []
    found = [int(word) if word.lstrip("-").isdigit() else None for word in words[:count]]
    return found + [None] * (count - len(found))


def what_fits(config: RenderConfig) -> str:
    """What a render takes less memory with, of what it does not do already, as a hint."""
    ways = []
    if config.device != "cpu" and config.placement.offload in ("auto", "none"):
        ways.append("--offload all (on a GPU)")
    if config.memory.grows:
        ways.append("--memory slow_fast, whose cache does not grow")
    if config.memory.kv_cache == "auto":
        ways.append("--kv-cache int8")
    smallest = min(config.model.sizes, key=math.prod)
    if math.prod(smallest) < math.prod(config.frame_size):
        ways.append(f"--size {size_text(smallest)}")
    return f"close other programs, or choose {', '.join(ways) or 'smaller weights'}"
