"""The only printer: results go to stdout; progress, hints, warnings and errors to stderr.

With `--json` stdout carries one JSON object a line, each with `schema` and `type`, and the last one
is an envelope `{ok, data, error}`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import traceback
from collections.abc import Mapping
from pathlib import Path

from cfgen.cli.progress import Pace, chunk_words
from cfgen.cli.progress_bar import ProgressBar
from cfgen.cli.streams import SteadyStderr, print_line, tell
from cfgen.errors import CfgenError, PrintError, UsageError
from cfgen.renderer.events import (
    ChunkDone,
    Encoded,
    Event,
    Finished,
    Loaded,
    Noted,
    Previewed,
    Resumed,
    Saved,
    Warned,
)
from cfgen.units import bytes_words, clock, count

SCHEMA = "cfgen.events/1"
"""Name and version of the lines of `--json`; the number rises when a field changes its meaning."""

EVENT_TYPES: dict[type, str] = {
    Loaded: "load",
    Resumed: "resume",
    Saved: "snapshot",
    ChunkDone: "chunk",
    Previewed: "preview",
    Encoded: "encode",
    Warned: "warning",
    Finished: "done",
}
"""What the lines of `--json` are called."""


class Console:
    """Shows results and progress in the form that the user asked for.

    Attributes:
        json: Whether stdout carries JSON lines.
        debug: Whether errors keep their traceback.
        verbose: Whether more is told than is asked for.
    """

    def __init__(self) -> None:
        self.json = False
        self.debug = False
        self.verbose = False
        self._quiet = False
        self._fps, self._later_frames = 1.0, 0.0
        self._pace = Pace()
        self._bar: ProgressBar | None = None
        self._last_words = ""
        self._told_preview = False
        self._unread = False

    def configure(
        self, *, json: bool = False, quiet: bool = False, verbose: bool = False, debug: bool = False
    ) -> None:
        """Choose the form of everything shown from now on."""
        self.json = json
        self.debug = debug
        self._quiet = quiet
        self.verbose = verbose

    def result(self, text: str, data: Mapping[str, object], *, ok: bool = True) -> None:
        """Show what the command was asked for: `text` for people, `data` with `--json`.

        Args:
            text: For people.
            data: For programs.
            ok: Whether all of it could be had; the exit status says so too.
        """
        self.close()
        if self.json:
            print_line(_line("envelope", {"ok": ok, "data": data, "error": None}))
        else:
            print_line(text)

    def made(self, text: str, data: Mapping[str, object]) -> None:
        """Show, as `result` does, what is on the disk in any case; if it cannot, it warns."""
        try:
            self.result(text, data)
        except (PrintError, BrokenPipeError) as error:
            self.warn(f"{text} is finished, and stdout cannot tell it: {error}")

    def note(self, text: str) -> None:
        """Tell something useful on the way; silent with `--quiet` and `--json`."""
        if not (self._quiet or self.json):
            self._aside(text)

    def detail(self, text: str) -> None:
        """Tell something that only `--verbose` asks for."""
        if self.verbose:
            self.note(text)

    def warn(self, message: str, hint: str | None = None) -> None:
        """Warn on stderr, also with `--quiet`."""
        self._aside(message, label=self._label("warning", "33"))
        if hint:
            self._aside(f"hint: {hint}")

    def event(self, kind: str, data: Mapping[str, object]) -> None:
        """Write one JSON line on the way; silent without `--json` or a reader."""
        if self.json and not self._unread:
            try:
                print_line(_line(kind, data))
            except (PrintError, BrokenPipeError) as error:
                self._unread = True
                self.warn(f"stdout cannot be written to any more, the work goes on: {error}")

    def error(self, error: CfgenError) -> None:
        """Show an error and its hint; with `--debug` where it was raised."""
        self.close()
        if self.debug:
            tell("".join(traceback.format_exception(error)).rstrip())
        tell(str(error), label=self._label("error", "31"))
        if error.hint:
            tell(f"hint: {error.hint}")
        self._failed({"code": error.code, "message": str(error), "hint": error.hint})

    def bug(self, error: BaseException) -> None:
        """Show an error that nobody foresaw, with its traceback."""
        self.close()
        tell("".join(traceback.format_exception(error)).rstrip())
        asked = "this is a defect of cfgen; please report it with the lines above"
        tell(asked, label=self._label("error", "31"))
        self._failed({"code": "internal", "message": repr(error), "hint": asked})

    def wrong_usage(self, message: str) -> None:
        """Tell a wrong argument on stdout with `--json`; its report on stderr is Typer's."""
        self._failed({"code": UsageError.code, "message": message, "hint": None})

    def start(self, *, fps: float, later_frames: float = 0.0) -> None:
        """Prepare for the events of a render.

        Args:
            fps: Its playback rate.
            later_frames: Frames of this size that come after it in a batch.
        """
        self._fps, self._later_frames = fps, later_frames
        self._pace = Pace()
        self._told_preview = False

    def show(self, event: Event) -> None:
        """Show one event of a render."""
        fields = {item.name: getattr(event, item.name) for item in dataclasses.fields(event)}
        match event:
            case Warned(message=message, hint=hint):
                self.warn(message, hint)
            case Noted(message=message):
                self.note(message)
                return
            case Loaded():
                self.note(f"model {event.model} loaded in {event.seconds:.1f} s, {event.backend}")
                for line in event.details:
                    self.note(line)
            case ChunkDone():
                fields |= self._chunk(event)
            case Previewed(film=film, picture=picture):
                self._previewed(film, picture)
            case Resumed():
                self._resumed(event)
            case Saved() | Encoded():
                self._kept(event)
            case Finished():
                self.close()
                speed = f" in {event.elapsed_s:.1f} s" if event.elapsed_s else ""
                self.note(f"{event.frames} frames, {event.seconds:.1f} s of video{speed}")
        self.event(EVENT_TYPES[type(event)], fields)

    def status(self) -> None:
        """Tell how far the render is, also with `--quiet`."""
        self._aside(self._last_words or "no chunk is made yet")

    def close(self) -> None:
        """Take the progress bar down, if one is up."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _resumed(self, event: Resumed) -> None:
        at, of = (clock(n / self._fps) for n in (event.frames_done, event.frames_total))
        if event.chunk == event.chunks:
            self.note(f"all {event.chunks} chunks are made; encoding and joining what is missing")
        else:
            self.note(f"resuming at chunk {event.chunk + 1} of {event.chunks}, {at} of {of}")
        again = [
            (event.replayed, "committed again from latents"),
            (event.made_again, "denoised again"),
        ]
        parts = [f"{count(number, 'chunk')} {what}" for number, what in again if number]
        if event.encoded_again:
            parts.append(f"{count(event.encoded_again, 'frame')} encoded again")
        start = (
            f"from the snapshot after chunk {event.snapshot}"
            if event.snapshot
            else "from the start"
        )
        if parts:
            self.note(f"{start}: {', '.join(parts)}")

    def _kept(self, event: Saved | Encoded) -> None:
        """Tell what is on the disk by now, if that is asked for."""
        if isinstance(event, Encoded):
            self.detail(f"segment {event.segment + 1} encoded: {event.frames} frames")
            return
        size = bytes_words(event.nbytes)
        self.detail(f"snapshot after chunk {event.chunk}: {size} in {event.seconds:.2f} s")

    def _previewed(self, film: Path, picture: Path) -> None:
        """Show the newest frame, and once where the film can be watched."""
        if not self._told_preview:
            self._told_preview = True
            self.note(f"the preview grows with each chunk: {film}")
        if self._bar is not None:
            self._bar.show(picture)

    def _chunk(self, event: ChunkDone) -> dict[str, object]:
        """Show how far the render is; what there is to tell of its pace."""
        self._pace.add(event.frames_done, event.elapsed_s)
        self._show_chunk(event)
        facts: dict[str, object] = {
            "memory": dict(event.memory),
            "frames_per_s": self._pace.frames_per_s,
            "eta_s": self._pace.eta_s(event.frames_total),
        }
        if self._later_frames:
            whole = event.frames_total + self._later_frames
            facts["batch_eta_s"] = self._pace.eta_s(whole)
        return facts

    def _show_chunk(self, event: ChunkDone) -> None:
        words = chunk_words(event, self._fps, self._pace, self._later_frames)
        memory = ", ".join(f"{name} {value:g}" for name, value in event.memory.items())
        line = f"{words}, {memory}" if self.verbose and memory else words
        self.progress(event.frames_done, event.frames_total, words, line)

    def progress(self, frames_done: int, frames_total: int, words: str, line: str) -> None:
        """Show how far the work is.

        Args:
            frames_done: Frames that are made.
            frames_total: Frames that will be.
            words: What a bar says, and `status`.
            line: What is told where no bar can be drawn.
        """
        self._last_words = words
        if self._quiet or self.json:
            return
        if not SteadyStderr().isatty():
            self.note(line)
            return
        if self._bar is None:
            self._bar = ProgressBar(frames_total)
        self._bar.update(frames_done, words)

    def _aside(self, text: str, *, label: str = "") -> None:
        """Write a line to stderr, above the bar if there is one."""
        if self._bar is not None:
            self._bar.tell(f"{label} {text}" if label else text)
        else:
            tell(text, label=label)

    def _failed(self, error: Mapping[str, object]) -> None:
        self.event("envelope", {"ok": False, "data": None, "error": error})

    def _label(self, word: str, colour: str) -> str:
        forced = os.environ.get("FORCE_COLOR")
        plain = os.environ.get("NO_COLOR") or not (forced or SteadyStderr().isatty())
        return f"{word}:" if plain or self._bar is not None else f"\x1b[{colour}m{word}:\x1b[0m"


def _line(kind: str, data: Mapping[str, object]) -> str:
    line = {"schema": SCHEMA, "type": kind, **data}
    text = json.dumps(line, default=str, allow_nan=False)
    return text.replace("\x7f", "\\u007f")  # the one control that JSON leaves as it is
