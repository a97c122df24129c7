"""The process that measures: slices in order, case by case, until time runs out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gpu_parts import (
    attention,
    ceilings,
    checkout,
    checks,
    chunks,
    decoders,
    film,
    fused,
    linears,
    meter,
)
from gpu_parts.case import Bench, DeviceLost, Unit
from gpu_parts.kernels import interpret
from gpu_parts.meter import Meter
from gpu_parts.plot import plot
from gpu_parts.report import ceilings_line, report
from gpu_parts.sizes import REAL, TINY
from gpu_parts.store import Store, now

SLICES: dict[str, Callable[[Bench], Sequence[Unit]]] = {
    checks.FIRST: checks.first,
    checks.SLICE: checks.cases,
    attention.SLICE: attention.cases,
    fused.SLICE: fused.cases,
    linears.SLICE: linears.cases,
    decoders.SLICE: decoders.cases,
    chunks.SLICE: chunks.cases,
    film.SLICE: film.cases,
}
"""Slices in order; the ceilings are measured before each run of them."""

CODE = {
    checks.FIRST: ("kernels",),
    checks.SLICE: ("kernels",),
    attention.SLICE: ("kernels",),
    fused.SLICE: ("kernels",),
    linears.SLICE: (),
    decoders.SLICE: ("cfgen/model",),
    chunks.SLICE: ("kernels", "cfgen/ops", "cfgen/memory", "cfgen/model"),
    film.SLICE: ("kernels", "cfgen/ops", "cfgen/memory", "cfgen/model"),
}
"""Folders of the checkout that a slice measures: if they change, it is measured again."""

LOST = 75
"""Exit status that asks for another process."""

RED = 3
"""Exit status where kernels are wrong."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for; see the options of `gpu.py`."""

    slices: tuple[str, ...]
    minutes: float
    folder: Path
    copies: tuple[Path, ...]
    date: str
    only: tuple[str, ...]
    since: str
    rehearse: bool
    chunks: int | None


def run(order: Order) -> int:
    """Measure, and tell what was found and what is left. Returns the exit status."""
    deadline = time.monotonic() + 60 * order.minutes
    if order.rehearse:
        interpret()
    elif not torch.cuda.is_available():
        say("there is no CUDA device; --rehearse runs the same code, tiny, on a CPU")
        return 2
    with Meter(log=order.copies[0] / "dmon.txt" if order.copies else None) as gauge:
        bench = prepared(order, gauge)
        plan = {name: SLICES[name](bench) for name in order.slices if name in SLICES}
        if checks.SLICE in plan:
            bench.store.content["checks"] = [unit.name for unit in plan[checks.SLICE]]
        try:
            left = measure(bench, order, checks.FIRST, plan.pop(checks.FIRST, []), deadline)
            if wrong := wrong_kernels(bench):
                say(f"nothing is timed: {len(wrong)} checks of kernels are red: {wrong[0]}")
                finish(bench, order, left)
                return RED
            if not plan:
                finish(bench, order, left)
                return 0
            ceilings.measure(bench)
            left += [
                key
                for name, units in plan.items()
                for key in measure(bench, order, name, units, deadline)
            ]
        except DeviceLost as lost:
            say(f"lost the device: {lost}")
            return LOST
    finish(bench, order, left)
    return 0


def wrong_kernels(bench: Bench) -> list[str]:
    """Checks of the first slice that these kernels did not pass, with what was wrong."""
    code = checkout.digest(*CODE[checks.FIRST])
    found = [
        (record["name"], record["contestants"][0])
        for record in bench.store.content["cases"].values()
        if record["slice"] == checks.FIRST and record["code"] == code
    ]
    return [
        f"{name}: {entry.get('wrong') or entry.get('refused')}"
        for name, entry in found
        if not entry.get("right")
    ]


def prepared(order: Order, gauge: Meter) -> Bench:
    """The bench of a run, which the results now know of."""
    device = torch.device("cpu" if order.rehearse else "cuda")
    # The truth of decoders is float32, which tf32 is not.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.seed()
    sizes = TINY if order.rehearse else REAL
    facts = meter.facts(device)
    name = "rehearsal" if order.rehearse else "-".join(facts["device"].lower().split())
    store = Store(order.folder / f"{name}-{order.date}.json", order.copies, since=order.since)
    store.begin(
        {
            **facts,
            "started": now(),
            "commit": checkout.commit(),
            "kernels": checkout.digest("kernels"),
            "rehearsal": order.rehearse,
        }
    )
    return Bench(
        device=device,
        dtype=torch.bfloat16,
        sizes=sizes if order.chunks is None else replace(sizes, chunks=order.chunks),
        store=store,
        meter=gauge,
        rehearsal=order.rehearse,
    )


def measure(
    bench: Bench, order: Order, name: str, units: Sequence[Unit], deadline: float
) -> list[str]:
    """Measure what is left of a slice, as far as there is time; names of what then is left."""
    code, longest = checkout.digest(*CODE[name]), 0.0
    wanted = [unit for unit in units if any(each in unit.key for each in order.only)]
    waiting = [unit for unit in wanted if not bench.store.done(unit.key, code)]
    for index, unit in enumerate(waiting):
        expected = min(unit.seconds, 1.5 * longest) if longest else unit.seconds
        if not order.rehearse and time.monotonic() + expected > deadline:
            return [each.key for each in waiting[index:]]
        record = unit.run(bench, code)
        longest = max(longest, record["seconds"])
        say(f"{time.monotonic() - deadline + 60 * order.minutes:6.1f} s  {unit.key}")
    return []


def finish(bench: Bench, order: Order, left: list[str]) -> None:
    """Tables, picture, and what is left."""
    content = bench.store.content
    say(report(content, order.slices))
    if bench.ceilings:
        say(ceilings_line(bench.store.run()))
    for folder in (order.folder, *order.copies):
        plot(content, folder / bench.store.file.with_suffix(".png").name)
    say(f"results: {bench.store.file}")
    if left:
        say(f"{len(left)} left, the same command goes on: {', '.join(left[:4])}"[:99])


def listed(order: Order) -> str:
    """Slices with their cases and expected minutes, at the real sizes."""
    nowhere = Store(order.folder / "none.json")
    bench = Bench(
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        sizes=REAL,
        store=nowhere,
        meter=Meter(),
        rehearsal=False,
    )
    lines = [f"{ceilings.SLICE:<12} measured before anything else is timed, under half a minute"]
    for name, make in SLICES.items():
        units = make(bench)
        minutes = sum(unit.seconds for unit in units) / 60
        lines.append(f"{name:<12} {len(units):3d} cases, {minutes:4.1f} minutes at most expected")
    return "\n".join(lines)


def say(text: str) -> None:
    """Print at once: what is held back is lost with the process."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
