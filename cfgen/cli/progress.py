"""How fast a render goes, and in words: pure arithmetic behind the progress bar."""

from __future__ import annotations

from collections import deque

from cfgen.renderer.events import ChunkDone
from cfgen.units import clock

WINDOW_CHUNKS = 20
"""Chunks that the steady rate looks back over."""


class Pace:
    """The steady rate of a render.

    The first chunk is slower than the rest (caches are cold, the encoder starts), so time is
    counted from its end, and over the latest chunks only.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque(maxlen=WINDOW_CHUNKS + 1)

    def add(self, frames_done: int, elapsed_s: float) -> None:
        """Note that `frames_done` frames were written `elapsed_s` seconds after the start."""
        self._marks.append((frames_done, elapsed_s))

    @property
    def frames_per_s(self) -> float | None:
        """Frames a second in the steady state, or None before the second chunk."""
        if len(self._marks) < 2:
            return None
        (first_frames, first_s), (frames, seconds) = self._marks[0], self._marks[-1]
        return (frames - first_frames) / (seconds - first_s) if seconds > first_s else None

    def eta_s(self, frames_total: float) -> float | None:
        """Seconds until `frames_total` frames of this size are written, or None while unknown."""
        rate = self.frames_per_s
        return None if not rate else (frames_total - self._marks[-1][0]) / rate


def chunk_words(event: ChunkDone, fps: float, pace: Pace, later_frames: float = 0.0) -> str:
    """Return ``chunk 3 of 41, 2.1 of 30.0 s, 24.3 frames/s, ETA 0:19``, and that of a batch.

    Args:
        event: The newest chunk.
        fps: Playback rate of the film.
        pace: The rate of the render.
        later_frames: Frames of the films that come after it in a batch; see `Pace.eta_s`.
    """
    parts = [
        f"chunk {event.index + 1} of {event.chunks}",
        f"{event.frames_done / fps:.1f} of {event.frames_total / fps:.1f} s",
    ]
    rate, eta_s = pace.frames_per_s, pace.eta_s(event.frames_total)
    if rate is not None:
        parts.append(f"{rate:.1f} frames/s")
    if eta_s is not None:
        parts.append(f"ETA {clock(eta_s)}")
    if later_frames and (whole_s := pace.eta_s(event.frames_total + later_frames)) is not None:
        parts.append(f"batch {clock(whole_s)}")
    return ", ".join(parts)
