"""How far a download is, in words: every tenth of it, but neither too often nor too seldom."""

from __future__ import annotations

import time
from collections.abc import Callable

from cfgen.hub.listing import Listing
from cfgen.hub.pull import Step
from cfgen.units import bytes_words, clock

_PARTS = 10
_SOONEST_S, _LATEST_S = 2.0, 30.0
_LONG_TO_CHECK_NBYTES = 1_000_000_000


class Fetching:
    """Follows the steps of a download.

    Args:
        listing: What is fetched.
        now: Tells the time in seconds.
    """

    def __init__(self, listing: Listing, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._there = {file.path: file.nbytes - listing.missing(file) for file in listing.files}
        self._total = sum(map(listing.missing, listing.files))
        self._done = 0
        self._begun = now()
        self._told = (0, self._begun)

    def words(self, step: Step) -> str:
        """Take in a step; return what to tell of it now, or nothing."""
        path = step.file.path
        if step.what == "retry":
            return f"the connection broke at {bytes_words(step.nbytes)} of {path}; trying again"
        if step.what == "check" and step.nbytes >= _LONG_TO_CHECK_NBYTES:
            return f"checking {path}, {bytes_words(step.nbytes)}"
        if step.what == "damaged":
            self._total += self._there[path]
            self._there[path] = 0
        if step.what == "fetch":
            self._done += step.nbytes - self._there[path]
            self._there[path] = step.nbytes
            return self._progress()
        return ""

    def data(self) -> dict[str, object]:
        """How far it is, for programs."""
        rate = self._rate()
        return {"nbytes": self._done, "nbytes_total": self._total, "nbytes_per_s": rate}

    def _progress(self) -> str:
        done, at = self._told
        wait_s = _SOONEST_S if self._done - done >= self._total / _PARTS else _LATEST_S
        now = self._now()
        if now - at < wait_s and self._done != self._total:
            return ""
        self._told = (self._done, now)
        parts = [f"{bytes_words(self._done)} of {bytes_words(self._total)}"]
        if rate := self._rate():
            left_s = (self._total - self._done) / rate
            parts += [f"{bytes_words(rate)}/s", f"ETA {clock(left_s)}"]
        return ", ".join(parts)

    def _rate(self) -> float | None:
        """Bytes a second since the start, or None if that cannot be told yet."""
        seconds = self._now() - self._begun
        return self._done / seconds if self._done > 0 and seconds > 0 else None
