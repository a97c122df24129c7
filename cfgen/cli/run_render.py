"""A render at work in a terminal: its events are shown, and signals stop it without loss."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from cfgen.cli import signals
from cfgen.cli.console import Console
from cfgen.cli.plan import plan_data, replay_words
from cfgen.config.schema import RenderConfig
from cfgen.errors import Halt, Interrupted
from cfgen.pipeline.plan_text import rounding_lines
from cfgen.renderer.events import Finished
from cfgen.video.output import resume_command, run_of

if TYPE_CHECKING:
    from cfgen.pipeline.job import RenderJob
    from cfgen.pipeline.rendering import Rendering


def run_render(console: Console, rendering: Rendering) -> None:
    """Run a render, show its events and its video.

    The first Ctrl-C or SIGTERM stops it after the chunk that is being made, the second at once;
    SIGHUP, as when a terminal is closed, is as SIGTERM, and SIGUSR1 shows how far it is.

    Raises:
        CfgenError: It could not be finished; `Interrupted` after a signal.
    """
    job = rendering.job
    if not rendering.is_finished:
        _announce(console, job, resumes=rendering.resumes, loads=rendering.loads)
        rendering.load()
    go_on = f"`{resume_command(run_of(job.output))}`"
    finished: Finished | None = None
    with graceful_signals(console, rendering.stop, again=f"{go_on} goes on with it"):
        for event in rendering:
            console.show(event)
            if isinstance(event, Finished):
                finished = event
    if finished is None:
        raise RuntimeError("the render ended without a result")
    _tell_result(console, finished, job.config)


def _announce(console: Console, job: RenderJob, *, resumes: bool, loads: str) -> None:
    """Tell what will be made, before anything is loaded."""
    from cfgen.pipeline.plan import estimate_of

    config, plan = job.config, job.plan
    for line in rounding_lines(plan):
        console.detail(line)
    console.event("plan", {**plan_data(plan, estimate_of(job)), "seed": config.seed})
    if config.snapshot.mode == "latents" and not resumes:
        console.note(f"to resume {replay_words(config)}")
    if config.snapshot.mode == "off":
        console.note("nothing is kept to resume with: --snapshot off")
    console.note(f"{plan.frames} frames in {plan.chunks} chunks; loading {loads}")
    console.start(fps=plan.geometry.fps)


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


def _tell_result(console: Console, finished: Finished, config: RenderConfig) -> None:
    """Show the video, by the name that it was given, as the result of a command."""
    facts = {
        "output": str(finished.output.absolute()),
        "sidecar": str(finished.sidecar.absolute()),
        "sheet": None if finished.sheet is None else str(finished.sheet.absolute()),
        "frames": finished.frames,
        "seconds": finished.seconds,
        "elapsed_s": finished.elapsed_s,
        "seed": config.seed,
    }
    console.made(str(config.output or finished.output), facts)
