"""A film of the tiny model in eight chunks, and what has been made of it once for all tests.

Renders are pure functions of their settings, so that tests copy an undisturbed film, or a run
folder that a killed render left, instead of making each again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cfgen.config.loader import load
from cfgen.config.schema import RenderConfig
from cfgen.files.writing import files_of
from cfgen.pipeline.build import ModelCache, build_render
from cfgen.pipeline.job import RenderJob
from cfgen.renderer.events import ChunkDone, Event
from cfgen.runs.folder import RunFolder
from cfgen.video.output import run_of
from tests.render.crash import Crash, dying

PROMPT = "a red balloon drifts over snowy hills at sunset, the camera pans right"
EIGHT_CHUNKS = "5.8s"

FOUR_SHOTS = (
    "shots=1.4s: a red balloon drifts over snowy hills | 1.5s recache: a blue kite at night | "
    "1.4s cut: a green cube on sand | 1.5s fresh: a yellow star by day"
)
"""Eight chunks in four shots: two, two, two, two."""

MEMORIES = {
    "full": ["memory.policy=full"],
    "window-absolute": ["memory.policy=window", "memory.size=9", "memory.positions=absolute"],
    "window-relative": ["memory.policy=window", "memory.size=9"],
    "window-commit-fast": ["memory.policy=window", "memory.size=9", "memory.commit_reads=fast"],
    "window-top": [
        "memory.policy=window",
        "memory.sink=2",
        "memory.size=9",
        "memory.positions=top",
        "memory.trained=11",
        "memory.commit_reads=newest:4",
    ],
    "window-first-steps": [
        "memory.policy=window",
        "memory.size=9",
        "schedule.timesteps=[1000]",
        "schedule.first_timesteps=[1000, 500]",
    ],
    "recency": [
        "memory.policy=recency",
        "memory.sink=2",
        "memory.size=11",
        "memory.reads=7",
        "memory.commit_reads=newest:8",
    ],
    "relax": ["memory.policy=relax", "memory.sink=2", "memory.size=11", "memory.candidates=3"],
    "far": ["memory.policy=compressed", "memory.levels=4:1,all:4"],
    "framepack": [
        "memory.policy=compressed",
        "memory.sink=1",
        "memory.levels=1:1,2:2,8:4",
        "memory.page=cube",
        "memory.rotary=pooled",
        "memory.layout=reordered",
    ],
    "release": [
        "memory.variant=release",
        "memory.admission_layers=[]",
        "memory.admits=first",
        "memory.slow=2",
        "memory.tau=1",
    ],
    "paper": ["memory.variant=paper", "memory.admits=first", "memory.slow=2", "memory.tau=1"],
    "cfgen": ["memory.variant=cfgen", "memory.admits=first", "memory.slow=2", "memory.tau=1"],
    "whole-chunks": ["memory.admits=chunk", "memory.slow=3", "memory.tau=1"],
    "cfgen-commit-fast": [
        "memory.variant=cfgen",
        "memory.admits=first",
        "memory.slow=2",
        "memory.tau=1",
        "memory.commit_reads=fast",
    ],
}
"""Every policy and variant, so small that a clip of six chunks is more than it keeps; with tau = 1
every chunk that may be admitted is."""


@dataclass
class Film:
    """A render of the tiny model in a folder of its own.

    Attributes:
        models: What was loaded for one film is there for the next, as in a batch.
    """

    folder: Path
    settings: list[str]
    models: ModelCache = field(default_factory=ModelCache)

    @property
    def run(self) -> Path:
        return run_of(self.output)

    @property
    def output(self) -> Path:
        formats = [each for each in self.settings if each.startswith("encode.format=")]
        return self.folder / f"clip.{formats[-1].partition('=')[2] if formats else 'mp4'}"

    @property
    def config(self) -> RenderConfig:
        """What is rendered: `PROMPT`, unless the settings hold shots."""
        shots = any(setting.startswith("shots=") for setting in self.settings)
        values = {} if shots else {"prompt": PROMPT, "duration": EIGHT_CHUNKS}
        values |= {"seed": "3", "output": str(self.output)}
        return load(values, assignments=self.settings).config

    def events(self, *, resume: bool) -> Iterator[Event]:
        self.folder.mkdir(exist_ok=True)
        render = build_render(RenderJob(self.config), models=self.models)
        if resume:
            render.resume()
        yield from render.run()

    def whole(self) -> bytes:
        """Render without a break; the video."""
        for _ in self.events(resume=False):
            pass
        return self.video

    def until(self, chunks: int) -> None:
        """Render, and leave like a killed process after some chunks."""
        self.killed(self.events(resume=False), lambda event: event.index + 1 == chunks)

    def killed(self, events: Iterator[Event], at: Callable[[ChunkDone], bool]) -> None:
        with dying(self.folder, None) as disk:
            for event in events:
                if isinstance(event, ChunkDone) and at(event):
                    break
            disk.dead = True
            with suppress(Crash):
                events.close()
        self.bury()

    def bury(self) -> None:
        """Make the lock that of a dead process, not of this one."""
        lock = self.run / "lock"
        if lock.exists():
            text = lock.read_text()
            lock.unlink()
            if text:  # else it died while it wrote that
                lock.write_text(json.dumps(json.loads(text) | {"born": "long ago"}))

    def go_on(self) -> list[Event]:
        return list(self.events(resume=True))

    def gone_on_with(self) -> bytes:
        """Go on, or begin again where nothing was kept; the video."""
        if not (self.run / "run.json").exists():
            return self.whole()
        if RunFolder(self.run).finished is None:
            self.go_on()
        return self.video

    @property
    def video(self) -> bytes:
        """What the video holds; of a folder, all files."""
        return b"".join(file.read_bytes() for file in files_of(self.output))


@dataclass
class Undisturbed:
    """A film that nothing disturbs, and how often its render changed the disk.

    Attributes:
        changes: What was done to the disk, a word each, in order.
    """

    film: Film
    video: bytes
    changes: list[str]


@dataclass
class Filmed:
    """Films of a session: each is rendered once, when it is asked for first.

    Attributes:
        folder: Where they are kept; nobody writes to them.
    """

    folder: Path
    models: ModelCache = field(default_factory=ModelCache)
    _undisturbed: dict[tuple[str, ...], Undisturbed] = field(default_factory=dict)
    _killed: dict[tuple[object, ...], Film] = field(default_factory=dict)

    def undisturbed(self, settings: list[str]) -> Undisturbed:
        """The film of these settings, rendered without a break."""
        key = tuple(settings)
        if key not in self._undisturbed:
            film = Film(self.folder / f"whole-{len(self._undisturbed)}", settings, self.models)
            with dying(film.folder, None) as disk:
                video = film.whole()
            self._undisturbed[key] = Undisturbed(film, video, disk.changes)
        return self._undisturbed[key]

    def killed(self, settings: list[str], chunks: int) -> Film:
        """What a render of these settings leaves that is killed after some chunks."""
        key = (*settings, chunks)
        if key not in self._killed:
            film = Film(self.folder / f"killed-{len(self._killed)}", settings, self.models)
            film.until(chunks)
            self._killed[key] = film
        return self._killed[key]


@dataclass
class MakeFilm:
    """Makes films of a test in folders of their own.

    Attributes:
        folder: The folder of the test.
        settings: What every film of it is made with, besides what is asked for.
    """

    filmed: Filmed
    folder: Path
    settings: list[str]
    _made: int = 0

    def __call__(self, *settings: str) -> Film:
        """A film that is still to be rendered."""
        self._made += 1
        own = [*self.settings, *settings]
        return Film(self.folder / f"film-{self._made}", own, self.filmed.models)

    def whole(self, *settings: str) -> Film:
        """A film that is finished."""
        return self._copy(self.filmed.undisturbed([*self.settings, *settings]).film, settings)

    def killed(self, chunks: int, *settings: str) -> Film:
        """What a render leaves that is killed after some chunks."""
        return self._copy(self.filmed.killed([*self.settings, *settings], chunks), settings)

    def undisturbed(self, *settings: str) -> Undisturbed:
        """The film of these settings that nothing disturbs, to compare with."""
        return self.filmed.undisturbed([*self.settings, *settings])

    def expected(self, *settings: str) -> bytes:
        """The video of `undisturbed`."""
        return self.undisturbed(*settings).video

    def _copy(self, kept: Film, settings: tuple[str, ...]) -> Film:
        film = self(*settings)
        shutil.copytree(kept.folder, film.folder, symlinks=True)
        return film
