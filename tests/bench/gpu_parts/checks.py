"""Slice correctness: every kernel against float64 at real sizes, before any speed-up is told.

Inputs are fresh, outputs start as NaN, and pages that are not read hold NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfgen.kernels.pages import Pages
from cfgen.ops import reference
from gpu_parts import attention_data, fused
from gpu_parts.attention import TOLERANCES
from gpu_parts.attention_data import SPARE, Attention, Kind, Size, Storage
from gpu_parts.case import Bench, poisoned, relative
from gpu_parts.kernels import kernel
from gpu_parts.sizes import Frame
from gpu_parts.store import Record

SLICE = "correctness"
FIRST = "first"
SAME = 1e-3
"""Largest difference where the order of work alone changes."""
SPLITS = (1, 2, 4, 7)

Seeded = Callable[[Bench, torch.Generator], float]


@dataclass(frozen=True)
class Check:
    """One property of one kernel: a relative error and the largest that is allowed."""

    name: str
    tolerance: float
    error: Seeded
    seconds: float = 4
    slice: str = SLICE

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.slice}/{self.name}"

    def run(self, bench: Bench, code: str) -> Record:
        """Check and store the outcome."""
        entry: Record = {"name": "ours"}

        def work(seed: int) -> Record:
            error = self.error(bench, bench.generator(seed))
            right = error <= self.tolerance
            told = {"error": error if math.isfinite(error) else None, "right": right}
            return told if right else told | {"wrong": f"error {error:.2g} > {self.tolerance}"}

        def measure(seed: int) -> Record:
            bench.guarded(self, "ours", code, entry, functools.partial(work, seed))
            return {"tolerance": self.tolerance, "contestants": [entry]}

        return bench.record(self, code, measure)


def cases(bench: Bench) -> list[Check]:
    """Every check."""
    return [*_attention(bench), *_ops(bench), *_conditions()]


def first(bench: Bench) -> list[Check]:
    """Whether each kernel is right at all, on few pages: what to know before anything is timed.

    Each is compiled once for each way to store pages, which is most of the time it takes.
    """
    s = bench.sizes
    few = replace(bench, sizes=replace(s, memories=(2 * s.chunk,)))
    attended = [f"attend, plain keys, {storage} pages" for storage in TOLERANCES]
    wanted = {
        *attended,
        "attend, ragged, batch of two",
        "attend, 2 splits",
        "attend, admitted",
        *fused.works(s),
        "write, only if told",
        "admit, surprising",
        "admit, familiar",
    }
    return [replace(check, slice=FIRST, seconds=3) for check in cases(few) if check.name in wanted]


def _attention(bench: Bench) -> list[Check]:
    s = bench.sizes
    full = Size(
        heads=s.heads,
        head_dim=s.head_dim,
        frames=s.chunk,
        tokens=s.frame.tokens,
        context=s.memories[-1] - s.chunk,
    )
    ragged = replace(full, batch=2, tokens=s.frame.tokens - 3, context=4)
    kinds: tuple[Kind, ...] = ("plain", "biased", "peaked")
    found = [
        Check(
            f"attend, {kind} keys, {storage} pages",
            TOLERANCES[storage],
            functools.partial(_attended, full, kind=kind, storage=storage),
        )
        for kind in kinds
        for storage in TOLERANCES
    ]
    sizes = {
        "large frames": replace(full, tokens=s.large_frame.tokens),
        "ragged, batch of two": ragged,
        "no pages": replace(full, context=0),
        "one frame": replace(full, frames=1),
    }
    exact = TOLERANCES["float"]
    found += [
        Check(f"attend, {name}", exact, functools.partial(_attended, size))
        for name, size in sizes.items()
    ]
    found += [
        Check(f"attend, from {first:+}", exact, functools.partial(_attended, full, first=first))
        for first in (20, -20)
    ]
    return [
        *found,
        *(
            Check(f"attend, {splits} splits", SAME, functools.partial(_split, full, splits))
            for splits in SPLITS
        ),
        Check("attend, pages elsewhere", SAME, functools.partial(_moved, full)),
        Check("attend, admitted", exact, functools.partial(_admitted, full)),
        Check("attend, inputs among NaN", SAME, functools.partial(_strided, ragged)),
    ]


def _attend(inputs: Attention, pages: Pages | None = None, **options: int) -> Tensor:
    with poisoned():
        out: Tensor = kernel("attend_pages")(
            inputs.q, inputs.k, inputs.v, pages or inputs.pages, inputs.slots, **options
        )
    return out


def _attended(
    size: Size,
    bench: Bench,
    generator: torch.Generator,
    *,
    kind: Kind = "plain",
    storage: Storage = "float",
    first: int = 0,
) -> float:
    """Against float64 with every key rotated by itself."""
    inputs = attention_data.make(size, generator, bench.dtype, kind=kind, first=first)
    out = _attend(inputs, inputs.stored(storage))
    if not bool(torch.isfinite(out).all()):
        return math.inf
    return relative(out[:, inputs.sample], attention_data.truth(inputs))


def _split(size: Size, splits: int, bench: Bench, generator: torch.Generator) -> float:
    """Against the same without splits, in float32: in 16 bit weights are rounded differently."""
    inputs = attention_data.make(size, generator, torch.float32)
    return relative(_attend(inputs, splits=splits), _attend(inputs, splits=1 + (splits == 1)))


def _moved(size: Size, bench: Bench, generator: torch.Generator) -> float:
    """Against the same pages at other places of the pool."""
    inputs = attention_data.make(size, generator, bench.dtype)
    pool = size.context + SPARE
    places = torch.randperm(pool, generator=generator, device=generator.device)
    moved = Pages(*(torch.empty_like(x).index_copy_(0, places, x) for x in inputs.pages[:2]))
    page = places[inputs.slots.page.long()].to(torch.int32)
    there = replace(inputs, pages=moved, slots=inputs.slots._replace(page=page))
    return relative(_attend(there), _attend(inputs))


def _admitted(size: Size, bench: Bench, generator: torch.Generator) -> float:
    """The other alternative counts: here, one page less."""
    inputs = attention_data.make(size, generator, bench.dtype)
    chosen = inputs.slots._replace(admitted=torch.ones_like(inputs.slots.admitted))
    out = _attend(replace(inputs, slots=chosen))
    rows = torch.arange(size.context + size.frames, device=out.device, dtype=torch.int32)
    less = chosen._replace(row=rows[: size.context].repeat(2, 1))
    short = replace(
        inputs, size=replace(size, context=size.context - 1), order=inputs.order[:-1], slots=less
    )
    return relative(out[:, inputs.sample], attention_data.truth(short))


def _strided(size: Size, bench: Bench, generator: torch.Generator) -> float:
    """Against the same inputs cut out of larger buffers that else hold NaN."""
    inputs = attention_data.make(size, generator, bench.dtype)
    cut = replace(inputs, **{name: _within(getattr(inputs, name)) for name in "qkv"})
    return relative(_attend(cut), _attend(inputs))


def _within(x: Tensor) -> Tensor:
    """[B, L, N, D] as a part of [B, L + 2, 3, N, D]."""
    batch, length, heads, dim = x.shape
    larger = torch.full((batch, length + 2, 3, heads, dim), math.nan, device=x.device).to(x.dtype)
    found = larger[:, 1:-1, 1]
    return found.copy_(x)


def _ops(bench: Bench) -> list[Check]:
    s = bench.sizes
    frames = {"": s.frame, ", large frames": s.large_frame}
    found = [
        Check(name + where, work.tolerance, functools.partial(_worked, work, frame))
        for where, frame in frames.items()
        for name, work in fused.works(s).items()
    ]
    for name in ("modulate", "add_gated"):
        work = fused.works(s)[name]
        run = functools.partial(_worked, work, s.frame, one_for_all=True)
        found.append(Check(f"{name}, one for all frames", work.tolerance, run))
    return found


def _worked(
    work: fused.Work,
    frame: Frame,
    bench: Bench,
    generator: torch.Generator,
    *,
    one_for_all: bool = False,
) -> float:
    """Against the reference in float64."""
    s = bench.sizes
    inputs = fused.make(s, frame, s.chunk, generator, bench.dtype)
    if one_for_all:
        inputs = replace(inputs, shift=inputs.shift[:, :1], scale=inputs.scale[:, :1])
    true = fused.truth(work, fused.doubled(inputs))
    work.reset(inputs)
    with poisoned():
        output = work.call(kernel(work.op), inputs)
    return fused.worst(work.look(inputs, output), true)


def _conditions() -> list[Check]:
    return [
        Check("write, only if told", 0, _not_written),
        *(Check(f"admit, {name}", SAME, functools.partial(_decided, name)) for name in STATES),
    ]


def _not_written(bench: Bench, generator: torch.Generator) -> float:
    """Nothing is stored where `only_if` is 0: the share of poisoned numbers that changed."""
    s = bench.sizes
    inputs = fused.make(s, s.frame, s.chunk, generator, bench.dtype)
    pages = inputs.pages["int8+fp8"]
    before = [x.clone() for x in pages if x is not None]
    never = torch.zeros(1, dtype=torch.int32, device=generator.device)
    kernel("write_pages")(inputs.k, inputs.v, pages, inputs.into, only_if=never)
    after = [x for x in pages if x is not None]
    changed = [
        (x.view(torch.uint8) != y.view(torch.uint8)).double().mean().item()
        for x, y in zip(before, after, strict=True)
    ]
    return max(changed)


STATES = {
    "surprising": ((1, 0, 0, 0), False),
    "familiar": ((1, 0, 0, 0), True),
    "closed": ((0, 0, 0, 0), False),
    "renewed though closed": ((0, 1, 0, 0), False),
    "admitted before": ((1, 0, 1, 1), False),
}
"""Decisions before (CAN_ADMIT, UPDATE_REFERENCE, ADMITTED, ADMITTED_NOW); are the keys familiar?"""


def _decided(name: str, bench: Bench, generator: torch.Generator) -> float:
    """Against the reference: the same decision, and the same keys kept."""
    s, (before, familiar) = bench.sizes, STATES[name]
    inputs = fused.make(s, s.frame, s.chunk, generator, bench.dtype)
    state = inputs.parts.sum(1) / fused.GROUPS if familiar else inputs.state
    found = []
    for admit, exact in ((kernel("admit"), False), (reference.admit, True)):
        kept = state.double() if exact else state.clone()
        parts = inputs.parts.double() if exact else inputs.parts
        decision = torch.tensor(before, device=generator.device, dtype=torch.int32)
        admit(parts, kept, decision, tokens=fused.GROUPS, tau=0.95)
        found.append((kept, decision))
    (kept, decision), (true, right) = found
    return math.inf if decision.tolist() != right.tolist() else relative(kept, true)
