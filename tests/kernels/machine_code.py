"""What a compiled kernel is made of, and whether that is acceptable: no GPU is asked for it.

Source of the opcodes: what Triton 3.6.0 and 3.9.0 emit, read from their machine code.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field

SHARED_KB = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""Targets, and the shared memory that a block may use there.
Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

MAX_REGISTERS = 255
"""Of a thread, on every target."""

DRIFT = 0.05
"""Instructions may differ from what was recorded by this part."""

MMA = {
    "float": {80: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"},
    "int8": {80: "IMMA", 89: "IMMA", 90: "IGMMA", 100: "UTCIMMA|IMMA", 120: "IMMA"},
}
"""The instructions a product of two tiles is made of, by type of the tiles and target.

Tiles of type "scalar" are multiplied number by number. Triton 3.6 has no int8 products of the fifth
generation of tensor cores and takes those of the second on sm_100.
"""

ACCESSES = {"LDG", "STG", "LDGSTS"}
"""Loads and stores of global memory."""

BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
"""What one of them moves for a thread, by a part of its name; 4 without."""

WIDE = 0.75
"""The part of these bytes that must go 16 or more at once."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One compiled kernel.

    Attributes:
        registers: Of a thread.
        spills: Instructions that load from or store to local memory.
        shared: Bytes of shared memory of a block.
        instructions: Instructions, without those that do nothing.
        moved: Bytes that all loads from and stores to global memory in the code move for a thread.
        wide: Those that go 16 or more at once.
        mma: Instructions that multiply matrices, by the first part of their name.
        scalar_dots: Products of tiles that are computed number by number.
    """

    registers: int
    spills: int
    shared: int
    instructions: int
    moved: int = 0
    wide: int = 0
    mma: dict[str, int] = field(default_factory=dict)
    scalar_dots: int = 0


def read(cubin: bytes, ttgir: str, shared: int) -> Figures:
    """Figures of a kernel from its binary, the last IR that has tiles, and its shared memory."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        listing = _run(knobs.nvidia.nvdisasm.path, "-c", file.name)
    found = re.search(r"REG:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump names no registers: {usage!r}")
    return figures(listing, ttgir, registers=int(found[1]), shared=shared)


def figures(listing: str, ttgir: str, *, registers: int, shared: int) -> Figures:
    """Count what is in a listing of machine code and in the IR that it came from."""
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", listing)
    parts = [opcode.split(".") for opcode in opcodes]
    names = Counter(name for name, *_ in parts)
    moved = [
        next((BYTES[each] for each in modifiers if each in BYTES), 4)
        for name, *modifiers in parts
        if name in ACCESSES
    ]
    return Figures(
        registers=registers,
        spills=names["LDL"] + names["STL"],
        shared=shared,
        instructions=len(opcodes) - names["NOP"],
        moved=sum(moved),
        wide=sum(size for size in moved if size >= 16),
        mma={name: names[name] for name in sorted(names) if name.endswith("MMA")},
        scalar_dots=_scalar_dots(ttgir),
    )


def faults(
    found: Figures,
    recorded: Figures | None,
    target: int,
    *,
    dots: tuple[str, ...] = (),
    spills: int = 0,
    narrow: bool = False,
) -> list[str]:
    """What is wrong with a kernel, each as "what was found, what is allowed"; empty if nothing is.

    Args:
        found: The kernel.
        recorded: The same kernel as it was recorded with the same compiler, if it was.
        target: Compute capability, 90 for 9.0.
        dots: Types of the tiles that it multiplies, as in `MMA`, or "scalar".
        spills: Accesses to local memory that are allowed.
        narrow: Whether it may move its bytes in small pieces.
    """
    shared = SHARED_KB[target] * 1024
    wanted = [MMA[kind][target] for kind in dots if kind in MMA]
    missing = [names for names in wanted if not any(n in found.mma for n in names.split("|"))]
    drift = found.instructions / recorded.instructions - 1 if recorded else 0
    checks = (
        (found.spills > spills, f"{found.spills} accesses to local memory, allowed are {spills}"),
        (
            found.registers > MAX_REGISTERS,
            f"{found.registers} registers, allowed are {MAX_REGISTERS}",
        ),
        (found.shared > shared, f"{found.shared} bytes of shared memory, allowed are {shared}"),
        (
            found.scalar_dots > 0 and "scalar" not in dots,
            f"{found.scalar_dots} products of tiles without tensor cores, allowed are 0",
        ),
        (bool(missing), f"multiplies with {found.mma or 'none'}, needed are {missing}"),
        (
            found.wide < WIDE * found.moved and not narrow,
            f"{found.wide} of {found.moved} bytes move 16 at once, needed are {WIDE:.0%}",
        ),
        (
            abs(drift) > DRIFT,
            f"{found.instructions} instructions, recorded are "
            f"{recorded and recorded.instructions}, allowed are {DRIFT:.0%} more or less",
        ),
    )
    return [sentence for wrong, sentence in checks if wrong]


def _scalar_dots(ttgir: str) -> int:
    """Dots whose result lies in a layout that no tensor core writes."""
    blocked = "|".join(re.findall(r"^(#\w+) = #ttg\.(?:blocked|linear)", ttgir, re.MULTILINE))
    return len(re.findall(rf"\btt\.dot .*-> tensor<\w+, (?:{blocked})>", ttgir)) if blocked else 0


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
