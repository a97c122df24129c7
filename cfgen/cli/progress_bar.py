"""The progress bar of a render on stderr, and above it the newest frame where a terminal can."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from cfgen.cli.streams import SteadyStderr
from cfgen.plain_text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

THUMBNAIL_ROWS = 10
"""Rows of the terminal that the newest frame takes."""


class ProgressBar:
    """A bar, drawn anew when something changes and gone when it is closed.

    Args:
        frames_total: Frames of the film.
    """

    def __init__(self, frames_total: int) -> None:
        self._picture: Any = None
        self._progress = _progress(lambda: self._picture)
        self._progress.start()
        self._task = self._progress.add_task("", total=frames_total)

    def update(self, frames_done: int, words: str) -> None:
        """Show how many frames are done, and say it."""
        self._progress.update(
            self._task, completed=frames_done, description=printable(words), refresh=True
        )

    def show(self, picture: Path) -> None:
        """Show a picture above the bar, if the terminal can; nothing is said where it cannot."""
        image = thumbnails()
        if image is None:
            return
        with suppress(OSError):  # the picture is being replaced, or the terminal is gone
            before, self._picture = self._picture, image(str(picture), height=THUMBNAIL_ROWS)
            self._progress.refresh()
            if before is not None:
                before.cleanup()

    def tell(self, text: str) -> None:
        """Write a line above the bar."""
        self._progress.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        self._picture = None
        self._progress.stop()


@cache
def thumbnails() -> Callable[..., Any] | None:
    """What draws pictures with the graphics of this terminal, sixel or kitty's.

    None where textual-image is not installed, or the terminal has neither. The terminal is asked,
    so stdin, stdout and stderr must all be it.
    """
    streams = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
    if not all(stream is not None and stream.isatty() for stream in streams):
        return None
    try:
        from textual_image import renderable
    except ImportError:
        return None
    drawn = renderable.Image in (renderable.SixelImage, renderable.TGPImage)
    return renderable.Image if drawn else None


def _progress(picture: Callable[[], RenderableType | None]) -> Progress:
    """A bar of rich with a picture above it, if there is one; it is drawn when it is told to."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    class Pictured(Progress):
        def get_renderables(self) -> Any:
            above = picture()
            if above is not None:
                yield above
            yield self.make_tasks_table(self.tasks)

    return Pictured(
        BarColumn(bar_width=None),
        TextColumn("{task.description}", markup=False),
        console=Console(file=cast(TextIO, SteadyStderr())),
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        transient=True,
        expand=True,
    )
