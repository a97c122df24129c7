"""A render at work in a terminal: its events are shown, and signals stop it without loss."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

from cfgen import out_of_memory as exhaustion
from cfgen.cli import signals
from cfgen.cli.console import Console
from cfgen.cli.plan import estimate_disk, plan_data, replay_words
from cfgen.config.schema import RenderConfig
from cfgen.config.values import size_text
from cfgen.errors import Halt, Interrupted
from cfgen.render.events import Finished
from cfgen.render.place import try_place
from cfgen.timeline import Plan
from cfgen.video.output import resume_command, run_of


def run_render(
    console: Console,
    config: RenderConfig,
    plan: Plan,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_changed: frozenset[str] = frozenset(),
) -> Finished:
    """Build and run a render, showing its events.

    The first Ctrl-C or SIGTERM stops it after the chunk that is being made, the second at once;
    SIGHUP, as when a terminal is closed, is as SIGTERM, and SIGUSR1 shows how far it is.

    Raises:
        CfgenError: It could not be finished; `Interrupted` after a signal.
    """
    from cfgen.checkpoint.identify.digests import read_anew
    from cfgen.pipeline.build import build_render

    for line in plan.lines():
        console.detail(line)
    console.event("plan", {**plan_data(plan, estimate_disk(config, plan)), "seed": config.seed})
    if config.snapshot.mode == "latents" and not resume:
        console.note(f"to resume {replay_words(config)}")
    if config.snapshot.mode == "off":
        console.note("nothing is kept to resume with: --snapshot off")
    assert config.output is not None
    for warning in try_place(config.output.absolute().parent):
        console.show(warning)
    console.note(f"{plan.frames} frames in {plan.chunks} chunks; loading the model")
    console.start(fps=plan.geometry.fps)
    finished: Finished | None = None
    go_on = f"`{resume_command(run_of(config.output))}`"
    if resume:
        read_anew()
    with exhaustion.told(what_fits(config)):
        render = build_render(config, plan, overwrite=overwrite)
        if resume:
            render.resume(allow_changed)
        with graceful_signals(console, render.stop, again=f"{go_on} goes on with it"):
            for event in render.run():
                console.show(event)
                if isinstance(event, Finished):
                    finished = event
    if finished is None:
        raise RuntimeError("the render ended without a result")
    return finished


def what_fits(config: RenderConfig) -> str:
    """What a render takes less memory with, of what it does not do already, as a hint."""
    ways = []
    if config.device != "cpu" and config.placement.offload in ("auto", "none"):
        ways.append("--offload all (on a GPU)")
    if config.memory.policy == "full":
        ways.append("--memory slow_fast, whose cache does not grow")
    if config.memory.kv_cache == "auto":
        ways.append("--kv-cache int8")
    smallest = min(config.model.sizes, key=math.prod)
    if math.prod(smallest) < math.prod(config.frame_size):
        ways.append(f"--size {size_text(smallest)}")
    return f"close other programs, or choose {', '.join(ways) or 'smaller weights'}"


class Stop(Protocol):
    """Stops what is at work when it comes to a good place; see `Render.stop`."""

    def __call__(self, why: str, *, exit_code: int) -> None:
        """Stop."""


@contextlib.contextmanager
def graceful_signals(console: Console, stop_work: Stop, *, again: str) -> Iterator[None]:
    """Let the first signal stop the work in the block gently, and the second at once.

    Args:
        console: Where to tell.
        stop_work: Stops it gently.
        again: How to go on after the second.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if halt := signals.heard():  # a library swallowed it
        raise halt
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        halt = Halt(number)
        if stopped:
            raise halt
        stopped = True
        stop_work(halt.why, exit_code=halt.exit_code)
        console.note(f"{halt.why}: finishing the chunk; once more stops at once")

    def tell(number: int, frame: FrameType | None) -> None:
        console.status()

    handlers: dict[int, signals.Handler] = dict.fromkeys(signals.stopping(), stop)
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = tell
    before, done = signals.install(handlers), False
    try:
        yield
        done = True
    except Halt as halt:
        raise Interrupted("stopped at once", again, exit_code=halt.exit_code) from None
    finally:
        signals.restore(before, done=done)


def tell_result(console: Console, finished: Finished, config: RenderConfig) -> None:
    """Show the video, by the name that it was given, as the result of a command."""
    facts = {
        "output": str(finished.output.absolute()),
        "sidecar": str(finished.sidecar.absolute()),
        "frames": finished.frames,
        "seconds": finished.seconds,
        "elapsed_s": finished.elapsed_s,
        "seed": config.seed,
    }
    console.made(str(config.output or finished.output), facts)
