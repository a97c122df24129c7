"""Many clips, one after another, by one process or by several that share a folder.

What became of each clip stands in a small file of its own, and a lock says who works on it. A clip
that fails or brings the process down is tried again, but not for ever, and never keeps the others
from being made. A clip that a dead process left is taken over and resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from cfgen.errors import BudgetError, CfgenError, Halt, Interrupted, LockHeld, WriterError
from cfgen.files.reading import read_bytes
from cfgen.files.writing import disk_errors, json_bytes, write_file
from cfgen.out_of_memory import exhausted, is_out_of_memory
from cfgen.renderer.events import Event, Finished
from cfgen.runs.contents import LOCK
from cfgen.runs.lock import PATIENCE_S, Lock, Owner, look, read_owner
from cfgen.runs.records import parse_as, read_mapping
from cfgen.video.output import run_of

POLL_S = 1.0
"""Seconds between two looks at clips that other processes work on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One clip of a batch.

    Attributes:
        name: What tells it from the others, fit for a file name.
        output: The video.
        digest: What fixes the video; another one is another clip.
    """

    name: str
    output: Path
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemStatus:
    """What became of a clip so far.

    Attributes:
        state: waiting, started, done or failed.
        digest: The digest of the clip that this is about.
        attempts: How often it was begun since it last got any further.
        chunk: How far it was when it was begun last.
        error: Why it failed last, or empty.
        hint: What to do about it, or empty.
        frames: Frames of the finished video.
        seconds: Seconds that the last attempt took.
    """

    state: str = "waiting"
    digest: str = ""
    attempts: int = 0
    chunk: int = 0
    error: str = ""
    hint: str = ""
    frames: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipBegun:
    """Work on a clip begins.

    Attributes:
        item: The clip.
        attempt: Which try it is.
        host: The machine, where the batch is spread over several.
    """

    item: Item
    attempt: int
    host: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipEnded:
    """Work on a clip ended: it is done, failed for good, or will be tried again."""

    item: Item
    fate: ItemStatus
    again: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """Nothing is left but clips that other processes work on."""

    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OfClip:
    """What happens while a clip is made, where several are made at once."""

    item: Item
    event: Event


BatchEvent = Event | ClipBegun | ClipEnded | Waiting | OfClip


class Batch:
    """The clips of one list.

    Args:
        items: The clips, in order.
        folder: Where their fates and locks stand; it is made if need be.
        make: Makes a clip, resuming what is there of it, and yields what happens.
        progress: Tells how many chunks of a clip are made.
        verified: Tells whether a clip's video is there and what was written.
        attempts: How often a clip is begun without getting any further; one that is refused before
            any work is not begun again.
        fail_fast: Whether the first failed clip ends the batch.
    """

    def __init__(
        self,
        items: Sequence[Item],
        folder: Path,
        *,
        make: Callable[[Item], Iterable[Event]],
        progress: Callable[[Item], int],
        verified: Callable[[Item], bool],
        attempts: int = 2,
        fail_fast: bool = False,
    ) -> None:
        self.items = tuple(items)
        self._folder = folder
        self._make, self._progress, self._verified = make, progress, verified
        self._attempts, self._fail_fast = attempts, fail_fast
        self._seen: dict[Path, tuple[Owner | None, float]] = {}
        self._stopped: Interrupted | None = None

    def fate(self, item: Item) -> ItemStatus:
        """What the disk says of a clip; an unreadable file counts as none."""
        try:
            fate = parse_as(ItemStatus, read_mapping(read_bytes(self._file(item))))
        except (OSError, ValueError):
            return ItemStatus(digest=item.digest)
        return fate if fate.digest == item.digest else ItemStatus(digest=item.digest)

    def reset_failed(self) -> None:
        """Let clips that failed be tried again.

        Raises:
            BudgetError, WriterError: The disk refused.
        """
        for item in self.items:
            fate = self.fate(item)
            if fate.state == "failed":
                self._write(item, replace(fate, state="waiting", attempts=0))

    def settled(self, item: Item) -> bool:
        """Whether nothing is left to do for a clip; a finished one is verified."""
        return self._settled(item, set())

    def lost(self, item: Item, why: str) -> ClipEnded | None:
        """Count a try that ended with the death of its process on another machine.

        Args:
            item: The clip.
            why: What became of the process.

        Returns:
            What it came to; None if somebody is at work on the clip, or nothing is left to do.

        Raises:
            BudgetError, WriterError: The disk refused.
        """
        lock = self._claim(item)
        if lock is None:
            return None
        with lock:
            fate, chunk = self.fate(item), self._progress(item)
            if fate.state in ("done", "failed"):
                return None
            if fate.state == "waiting":  # the process did not come to begin it
                again = fate.attempts + 1 if chunk <= fate.chunk else 1
                fate = replace(fate, attempts=again, chunk=max(chunk, fate.chunk))
            stuck = fate.attempts >= self._attempts and chunk <= fate.chunk
            fate = replace(fate, state="failed" if stuck else "waiting", error=why)
            self._write(item, fate)
        return ClipEnded(item=item, fate=fate, again=fate.state == "waiting")

    def run(self) -> Iterator[BatchEvent]:
        """Make every clip that is not made, yielding what happens.

        Raises:
            Interrupted: A signal came; everything can be resumed.
            BudgetError, WriterError: The disk refused to keep the state.
        """
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        checked: set[str] = set()
        waiting: list[str] = []
        while open_items := [item for item in self.items if not self._settled(item, checked)]:
            taken: list[str] = []
            for item in open_items:
                if self._stopped is not None:
                    raise self._stopped
                end = yield from self._turn(item, checked)
                if end == "taken":
                    taken.append(item.name)
                if end == "failed" and self._fail_fast:
                    return
            if len(taken) == len(open_items):
                if taken != waiting:
                    yield Waiting(names=tuple(taken))
                waiting = taken
                self._sleep()

    def stop(self, why: str, *, exit_code: int) -> None:
        """Stop before the next clip. The render that is at work is stopped by itself."""
        self._stopped = Interrupted(
            why, "the same command goes on with the list", exit_code=exit_code
        )

    def _sleep(self) -> None:
        ends = time.monotonic() + POLL_S
        while time.monotonic() < ends:
            if self._stopped is not None:
                raise self._stopped
            time.sleep(min(POLL_S, 0.1))

    def _settled(self, item: Item, checked: set[str]) -> bool:
        """Whether nothing is left to do for a clip; a finished one is verified once."""
        fate = self.fate(item)
        if fate.state == "done" and item.name not in checked and self._verified(item):
            checked.add(item.name)
        return fate.state == "failed" or item.name in checked

    def _claim(self, item: Item) -> Lock | None:
        """The lock of a clip, or None while another process works on it."""
        path = self._folder / f"{item.name}.lock"
        # Somebody may also work on the clip's run itself, without the list.
        if self._lives(path) or self._lives(run_of(item.output) / LOCK):
            return None
        lock = Lock(path, patience_s=0.0)
        try:
            lock.acquire(watched=(read_owner(path),))
        except LockHeld:
            return None
        return lock

    def _lives(self, path: Path) -> bool:
        """Whether the owner of a lock may be alive: it is not seen to be dead or silent."""
        owner, alive = look(path)
        if path not in self._seen or self._seen[path][0] != owner:
            self._seen[path] = (owner, time.monotonic())
        silent_s = time.monotonic() - self._seen[path][1]
        return silent_s < PATIENCE_S if alive is None else alive

    def _turn(
        self, item: Item, checked: set[str]
    ) -> Generator[Event | ClipBegun | ClipEnded, None, Literal["taken", "failed", "went on"]]:
        """Try a clip once, unless another process works on it."""
        lock = self._claim(item)
        if lock is None:
            return "taken"
        with lock:
            if self._settled(item, checked):
                return "went on"
            try:
                return (yield from self._try(item, lock))
            except LockHeld:  # somebody was quicker to resume it by hand
                return "taken"

    def _try(
        self, item: Item, lock: Lock
    ) -> Generator[Event | ClipBegun | ClipEnded, None, Literal["failed", "went on"]]:
        before = self.fate(item)
        if before.state == "done":  # and its video is lost or damaged
            before = ItemStatus(digest=item.digest)
        chunk = self._progress(item)
        attempts = before.attempts + 1 if chunk <= before.chunk else 1
        if attempts > self._attempts:
            why = before.error or "the process died every time it was tried"
            fate = replace(before, state="failed", error=why)
            self._write(item, fate)
            yield ClipEnded(item=item, fate=fate, again=False)
            return "failed"
        furthest = max(chunk, before.chunk)
        started = ItemStatus(state="started", digest=item.digest, attempts=attempts, chunk=furthest)
        self._write(item, started)
        yield ClipBegun(item=item, attempt=attempts)
        began = time.monotonic()
        try:
            fate = yield from self._made(item, started)
        except (Halt, KeyboardInterrupt, Interrupted, LockHeld, BudgetError) as error:
            if lock.held:
                why = str(error) if isinstance(error, BudgetError) else before.error
                self._write(item, replace(before, state="waiting", error=why))
            raise
        except Exception as error:  # whatever one clip does, the night goes on
            refused = isinstance(error, CfgenError) and error.exit_code in (2, 3)
            stuck = attempts >= self._attempts and self._progress(item) <= chunk
            fate = _failed(started, error, for_good=refused or stuck or self._fail_fast)
        fate = replace(fate, seconds=round(time.monotonic() - began, 3))
        if not lock.held:
            raise LockHeld(f"{item.name} was taken over by another process while this one slept")
        self._write(item, fate)
        yield ClipEnded(item=item, fate=fate, again=fate.state == "waiting")
        return "failed" if fate.state == "failed" else "went on"

    def _made(self, item: Item, started: ItemStatus) -> Generator[Event, None, ItemStatus]:
        """Render a clip; what it raises is what stopped it."""
        fate = started
        render = self._make(item)
        if self._stopped is not None:
            raise self._stopped
        for event in render:
            if isinstance(event, Finished):
                # At once: what follows may clear away the run folder, the other proof of it.
                fate = replace(started, state="done", frames=event.frames)
                self._write(item, fate)
            yield event
        if not self._verified(item):
            changed = WriterError(f"{item.output} is not what was written", "check the disk")
            fate = _failed(started, changed, for_good=True)
        return fate

    def _file(self, item: Item) -> Path:
        return self._folder / f"{item.name}.json"

    def _write(self, item: Item, fate: ItemStatus) -> None:
        with disk_errors(self._file(item)):
            write_file(self._file(item), [json_bytes(asdict(fate)), b"\n"])


def _failed(fate: ItemStatus, error: Exception, *, for_good: bool) -> ItemStatus:
    error = exhausted(error) if is_out_of_memory(error) else error
    said = str(error) if isinstance(error, CfgenError) else f"{type(error).__name__}: {error}"
    hint = (error.hint or "") if isinstance(error, CfgenError) else ""
    return replace(fate, state="failed" if for_good else "waiting", error=said, hint=hint)
