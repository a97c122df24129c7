"""`cfgen plan`: what a render will make and need, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cfgen.cli import options
from cfgen.cli.console import Console
from cfgen.config.schema import PlacementConfig, RenderConfig
from cfgen.config.values import size_text
from cfgen.errors import BudgetError, CheckpointError
from cfgen.pipeline.offload_plan import LEVELS, MemoryEstimate, choose, table
from cfgen.pipeline.plan_text import order_lines, rounding_lines
from cfgen.timeline import Plan
from cfgen.units import bytes_words, clock, count

if TYPE_CHECKING:
    from cfgen.pipeline.job import RenderJob
    from cfgen.pipeline.parallel_plan import Shares
    from cfgen.pipeline.plan import Estimate

_ROWS_SHOWN = 12
GROWTH_TOLD = 1.5
"""A last chunk that takes so many times as long as the first is told of."""

app = options.command_app()


@app.command()
@options.takes(*options.PLANNED, *options.SHOWN)
def plan(ctx: typer.Context) -> None:
    """Show what a render will make and need, and every rounding.

    It lists chunks, frames, memory, disk and time. It loads nothing and writes nothing; figures
    that cfgen can only guess are called estimates.

    \b
    Examples:
      cfgen plan --duration 10m
      cfgen plan --duration 10m --memory full
    """
    console = options.console_of(ctx)
    from cfgen.pipeline.job import RenderJob

    show_plan(console, RenderJob(options.resolved_of(ctx).config))


def memory_of(job: RenderJob) -> MemoryEstimate | str:
    """What the parts of a render take of memory, or why that cannot be told."""
    from cfgen.pipeline.memory_estimate import estimate_memory

    try:
        return estimate_memory(job)
    except CheckpointError as error:
        return f"unknown: {error}" + (f"; {error.hint}" if error.hint else "")


def show_plan(console: Console, job: RenderJob) -> None:
    """Show a plan as the result of a command."""
    from cfgen.pipeline.plan import estimate_of, passes_of

    needs, planned = estimate_of(job), job.plan
    if console.json:
        rows = [asdict(chunk) for chunk in planned]
        memory = _memory_data(memory_of(job))
        shares = _shares_of(job)
        memory |= {"parallel": None if shares is None else asdict(shares)}
        schedule = job.config.schedule
        passes = {"first": passes_of(schedule, first=True), "others": passes_of(schedule)}
        begins = list(job.require_beginning())
        sound = list(job.require_sound())
        told = {**plan_data(planned, needs), "begins": begins, "sound": sound, "passes": passes}
        console.result("", {**told, **memory, "table": rows})
    else:
        console.result("\n".join(_text(job, needs, console.verbose)), {})


def plan_data(planned: Plan, needs: Estimate) -> dict[str, object]:
    """Return a plan and its estimate as plain values, without the table of chunks."""
    from cfgen.pipeline.shots import chapters_of

    return {
        "frames": planned.frames,
        "seconds": planned.seconds,
        "fps": planned.geometry.fps,
        "size": [planned.geometry.width, planned.geometry.height],
        "latent_frames": planned.latent_frames,
        "chunks": planned.chunks,
        "segments": planned.segments,
        "roundings": list(rounding_lines(planned)),
        "order": list(order_lines(planned)),
        "shots": [asdict(chapter) for chapter in chapters_of(planned)],
        "estimate": asdict(needs),
    }


def _text(job: RenderJob, needs: Estimate, every_chunk: bool) -> Iterator[str]:
    config, planned = job.config, job.plan
    size = size_text(config.frame_size)
    yield f"preset    {config.preset}, {size}, memory {config.memory.policy}"
    yield f"video     {count(planned.frames, 'frame')}, {planned.seconds:.3f} s"
    longest = config.model.longest_s
    if longest is not None and config.duration_s > longest:
        yield f"{'':10}longer than the {longest:g} s that it was trained for: pictures may drift"
    for number, line in enumerate(job.require_beginning()):
        yield f"{'begins' if number == 0 else '':10}{line}"
    for number, line in enumerate(job.require_sound()):
        yield f"{'sound' if number == 0 else '':10}{line}"
    for number, line in enumerate([*rounding_lines(planned), *_speed(config)]):
        yield f"{'rounding' if number == 0 else '':10}{line}"
    for number, line in enumerate(order_lines(planned)):
        yield f"{'order' if number == 0 else '':10}{line}"
    yield f"passes    {_passes_words(config)}"
    yield from _parallel_words(_shares_of(job))
    yield from _memory_words(memory_of(job), config.placement)
    yield (
        f"disk      {bytes_words(needs.output_nbytes)} for the video, "
        f"{bytes_words(needs.disk_nbytes)} while it is made (estimates):"
    )
    yield f"{'':10}{bytes_words(needs.latents_nbytes)} of latents and {_snapshots_words(needs)}"
    if config.snapshot.mode == "latents":
        yield f"resuming  {replay_words(config)}"
    yield f"time      {_time_words(config, needs)}"
    yield ""
    yield "chunk  frames            seconds             latent frames  segment"
    skipped = 0 if every_chunk else max(0, planned.chunks - _ROWS_SHOWN)
    head = _ROWS_SHOWN - 3
    for index in range(planned.chunks):
        if skipped and index == head:
            yield f"  ...  {count(skipped, 'more chunk')}; -v lists all"
        if not (skipped and head <= index < head + skipped):
            yield _row(planned, index)


def replay_words(config: RenderConfig) -> str:
    """What it costs to resume from latents alone."""
    from cfgen.pipeline.plan import passes_of

    return (
        "without snapshots, every chunk that was made is committed again first: one pass of the "
        f"{passes_of(config.schedule)} that it took"
    )


def _shares_of(job: RenderJob) -> Shares | None:
    """How the render is shared out among processes; None where it is not, or sizes are unknown."""
    from cfgen.pipeline.parallel_plan import shares_of

    try:
        return shares_of(job)
    except CheckpointError:
        return None


def _parallel_words(shares: Shares | None) -> Iterator[str]:
    if shares is None:
        return
    n = shares.processes
    yield (
        f"parallel  {n} processes, each with {shares.heads // n} of {shares.heads} attention heads "
        f"and about {shares.tokens // n} of"
    )
    yield (
        f"{'':10}{shares.tokens} tokens of a chunk: {bytes_words(shares.kv_nbytes // n)} of "
        f"{bytes_words(shares.kv_nbytes)} of KV cache, and all weights;"
    )
    yield (
        f"{'':10}each sends {bytes_words(shares.exchanged_nbytes)} a chunk to the others; the "
        "first decodes and writes"
    )


def _passes_words(config: RenderConfig) -> str:
    """The passes of a chunk, and those of the first where they are others."""
    from cfgen.pipeline.plan import passes_of

    usual, first = passes_of(config.schedule), passes_of(config.schedule, first=True)
    more = "" if first == usual else f"; {first} for the first chunk"
    return f"{usual} for a chunk, the one that commits it included{more}"


def _row(planned: Plan, index: int) -> str:
    chunk = planned.chunk(index)
    end, fps = chunk.frame_start + chunk.frames, planned.geometry.fps
    frames = f"{chunk.frame_start}-{end - 1}"
    seconds = f"{chunk.frame_start / fps:.3f}-{end / fps:.3f}"
    latent = f"{chunk.latent_start}-{chunk.latent_start + chunk.latent_frames - 1}"
    return f"{index + 1:5}  {frames:16}  {seconds:18}  {latent:13}  {chunk.segment + 1:7}"


def _speed(config: RenderConfig) -> list[str]:
    ratio = config.playback_fps / config.model.fps
    if ratio == 1:
        return []
    return [
        f"the model's motion is made for {config.model.fps:g} fps, so it plays {ratio:.3g} times "
        "as fast"
    ]


def _memory_words(sizes: MemoryEstimate | str, placement: PlacementConfig) -> Iterator[str]:
    if isinstance(sizes, str):
        yield f"memory    {sizes}"
        return
    parts = [f"{part.replace('_', ' ')} {bytes_words(n)}" for part, n in table(sizes).items() if n]
    yield f"memory    about {bytes_words(sizes.ram_on_cpu)} on a CPU; the parts are"
    yield f"{'':10}not all there at once:"
    for first in range(0, len(parts), 3):
        yield f"{'':10}{', '.join(parts[first : first + 3])}"
    levels = ", ".join(f"{level} {bytes_words(sizes.vram(level))}" for level in LEVELS)
    yield f"on a GPU  by --offload: {levels} (estimates)"
    if placement.vram is not None:
        try:
            chosen = choose(sizes, asked=placement.offload, budget=placement.vram)
            yield f"{'':10}--vram {bytes_words(placement.vram)}: {chosen.why}"
        except BudgetError as error:
            yield f"{'':10}--vram {bytes_words(placement.vram)}: {error}"


def _memory_data(sizes: MemoryEstimate | str) -> dict[str, object]:
    if isinstance(sizes, str):
        return {"memory": None}
    gpu = {level: sizes.vram(level) for level in LEVELS}
    return {"memory": {"ram_nbytes": sizes.ram_on_cpu, "vram_nbytes": gpu, "parts": table(sizes)}}


def _time_words(config: RenderConfig, needs: Estimate) -> str:
    if needs.render_s is None:
        return "unknown: this model was never timed"
    rate = config.model.cpu_frames_per_s
    assert needs.chunk_s is not None
    first, last = needs.chunk_s
    grows = f"; a chunk takes {first:.2f} s at first and {last:.2f} s in the end"
    return f"about {clock(needs.render_s)} on two CPU cores ({rate:g} frames/s measured there)" + (
        grows if last > GROWTH_TOLD * first else ""
    )


def _snapshots_words(needs: Estimate) -> str:
    if needs.snapshots_nbytes is None:
        return "snapshots to resume with, whose size is unknown"
    return f"{bytes_words(needs.snapshots_nbytes)} of snapshots to resume with"
