"""A plan of `cfgen train --plan` in words, and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cfgen.errors import UsageError
from cfgen.train.cost import DEVICES, USED, device_tflops
from cfgen.train.plan import Model, Plan, PlanSettings
from cfgen.units import bytes_words


def device_rate(settings: Mapping[str, Any], given: float | None) -> tuple[float, str]:
    """TFLOP/s that time is reckoned at, and where the figure is from.

    Raises:
        UsageError: none is given and the device of the values is not known.
    """
    if given is not None:
        return given, "as given"
    device = settings.get("plan", PlanSettings()).device
    known = device_tflops(device)
    if known is None:
        raise UsageError(
            f"plan.device: how fast {device!r} trains is not known",
            f"give --rate TFLOPS, or one of {', '.join(DEVICES)}",
        )
    return known, f"estimate: {USED:.0%} of what the makers of {device} name"


def facts_of(stage: str, plan: Plan, model: Model, rate: tuple[float, str]) -> dict[str, object]:
    """A plan for programs: bytes of a process, operations of a step, seconds."""
    tflops, source = rate
    seconds = sum(plan.passes.values()) / (1e12 * tflops)
    return {
        "stage": stage,
        "sizes": asdict(model.generator),
        "sizes_from": model.source,
        "weights": plan.network.weights,
        "learnt": plan.network.learnt,
        "processes": plan.processes,
        "share_optimizers": plan.loop.share_optimizers,
        "memory": {**plan.memory, "sum": sum(plan.memory.values())},
        "aside": plan.aside,
        "flops": {**plan.passes, "sum": sum(plan.passes.values())},
        "tflops": tflops,
        "rate_from": source,
        "seconds_per_step": seconds,
        "steps": plan.loop.steps,
        "hours": seconds * plan.loop.steps / 3600,
    }


def text_of(facts: Mapping[str, Any]) -> str:
    """The same for people."""
    g = facts["sizes"]
    shared = ", its share of optimizer states and average" if facts["share_optimizers"] else ""
    lines = [
        f"{facts['stage']}: {facts['weights'] / 1e6:.1f} M weights, {facts['learnt'] / 1e6:.1f} M "
        f"of them or beside them learn",
        f"sizes     {g['num_layers']} layers, {g['dim']} wide, from {facts['sizes_from']}",
        f"processes {facts['processes']}, each with all weights{shared}",
        "",
        "memory of a process (estimates)",
        *(f"  {what:32}{bytes_words(nbytes):>10}" for what, nbytes in facts["memory"].items()),
        *(f"  beside that: {w}, {bytes_words(nbytes)}" for w, nbytes in facts["aside"].items()),
        "",
        "operations of an average step and process",
        *(f"  {what:32}{flops / 1e12:10.4g} TFLOP" for what, flops in facts["flops"].items()),
        "",
        f"rate      {facts['tflops']:.4g} TFLOP/s ({facts['rate_from']})",
        f"time      {facts['seconds_per_step']:.4g} s a step, {facts['hours']:.4g} h for "
        f"{facts['steps']} steps (estimates)",
    ]
    return "\n".join(lines)
