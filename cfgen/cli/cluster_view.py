"""Several clips of a batch at once on one terminal: lines name their clip, one bar is for all."""

from __future__ import annotations

import dataclasses
import time

from cfgen.cli.console import EVENT_TYPES, Console
from cfgen.cli.progress import Pace
from cfgen.renderer.events import ChunkDone, Event, Finished, Noted, Resumed, Warned
from cfgen.units import clock, count


class ClusterView:
    """Shows clips that are made at once, and how far all of them together are.

    Args:
        console: Where to.
        frames: Frames of each clip, by its name.
        made: Frames that are made already, of those that have some.
        fps: Playback rate of each clip.
    """

    def __init__(
        self,
        console: Console,
        *,
        frames: dict[str, int],
        made: dict[str, int],
        fps: dict[str, float],
    ) -> None:
        self._console, self._frames, self._fps = console, frames, fps
        self._made = dict.fromkeys(frames, 0) | made
        self._working: dict[str, str] = {}
        self._pace, self._began = Pace(), time.monotonic()

    def end(self, clip: str, *, done: bool) -> None:
        """A clip is at work no more.

        Args:
            clip: Its name.
            done: Whether it is finished.
        """
        self._working.pop(clip, None)
        if done:
            self._made[clip] = self._frames[clip]

    def show(self, clip: str, event: Event) -> None:
        """Show what happens to one clip."""
        match event:
            case Warned(message=message, hint=hint):
                self._console.warn(f"{clip}: {message}", hint)
            case Noted(message=message):
                self._console.note(f"{clip}: {message}")
                return
            case Resumed():
                self._made[clip] = event.frames_done
                self._console.note(f"{clip}: resuming at chunk {event.chunk + 1} of {event.chunks}")
            case ChunkDone():
                self._chunk(clip, event)
            case Finished():
                self._made[clip] = self._frames[clip]
                speed = f" in {event.elapsed_s:.1f} s" if event.elapsed_s else ""
                self._console.note(
                    f"{clip}: {event.frames} frames, {event.seconds:.1f} s of video{speed}"
                )
        fields = {each.name: getattr(event, each.name) for each in dataclasses.fields(event)}
        self._console.event(EVENT_TYPES[type(event)], {"clip": clip, **fields})

    def _chunk(self, clip: str, event: ChunkDone) -> None:
        self._made[clip] = event.frames_done
        self._working[clip] = f"{event.index + 1}/{event.chunks}"
        done, total = sum(self._made.values()), sum(self._frames.values())
        self._pace.add(done, time.monotonic() - self._began)
        rate, eta_s = self._pace.frames_per_s, self._pace.eta_s(total)
        whole = sum(self._made[name] == frames for name, frames in self._frames.items())
        parts = [f"{whole} of {count(len(self._frames), 'clip')}"]
        parts += [f"{name} {chunk}" for name, chunk in self._working.items()]
        words = ", ".join(parts[:6] + ["..."] * (len(parts) > 6))
        paced = "" if rate is None else f", {rate:.1f} frames/s"
        paced += "" if eta_s is None else f", batch {clock(eta_s)}"
        seconds = event.frames_done / self._fps[clip], event.frames_total / self._fps[clip]
        line = (
            f"{clip}: chunk {event.index + 1} of {event.chunks}, "
            f"{seconds[0]:.1f} of {seconds[1]:.1f} s"
        )
        self._console.progress(done, total, words + paced, line + paced)
