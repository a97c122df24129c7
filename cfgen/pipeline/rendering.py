"""A render that is ready to begin; iterating over it renders the film and yields events."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol

from cfgen.config.schema import RenderConfig
from cfgen.errors import LockHeld
from cfgen.out_of_memory import memory_errors
from cfgen.parallel.launch import launched
from cfgen.pipeline.build import ModelCache, build_render
from cfgen.pipeline.contact_sheets import with_sheet
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.limits import what_fits
from cfgen.pipeline.parallel import Peers
from cfgen.pipeline.plan_text import order_lines
from cfgen.pipeline.preflight import check_place
from cfgen.pipeline.runs import config_to_resume, with_parallel
from cfgen.renderer.events import Event, Finished, Noted
from cfgen.renderer.place import try_place
from cfgen.runs.contents import LOCK
from cfgen.runs.folder import RunFolder, require_harmless
from cfgen.runs.lock import look
from cfgen.video.output import sidecar_of


class Work(Protocol):
    """What makes a video once everything is loaded."""

    def run(self) -> Generator[Event, None, None]:
        """Make it, yielding what happens."""

    def stop(self, why: str, *, exit_code: int) -> None:
        """Stop after the chunk that is being made."""


class Rendering:
    """One render of a job, from loading its model to the finished video.

    Iterating over it yields what happens and raises a CfgenError where it cannot go on; nothing
    that is finished is lost, and `cfgen.resume` goes on from there.

    Args:
        job: What is rendered.
        overwrite: Whether the video may replace a file.
        resume: Whether what is in the run folder is gone on with.
        allow_changed: Names in the fingerprint that may differ then.
        models: Where loaded models are kept from one render to the next; without it, this render
            loads its own.
        peers: Processes that render with this one and end with this render; without them, it takes
            those that a launcher started, or starts them.
        tried: Whether the file system of its place was tried out already.
        opening: What is told first.
    """

    def __init__(
        self,
        job: RenderJob,
        *,
        overwrite: bool = False,
        resume: bool = False,
        allow_changed: frozenset[str] = frozenset(),
        models: ModelCache | None = None,
        peers: Peers | None = None,
        tried: bool = False,
        opening: tuple[Event, ...] = (),
    ) -> None:
        self._peers = None if models is not None else peers or Peers(launched())
        config = job.config if self._peers is None else self._peers.joined(job.config)
        self.job = job if config is job.config else RenderJob(config, job.model)
        self._opening = opening
        self.resumes = resume
        self._overwrite, self._allow_changed = overwrite, allow_changed
        self._models = models or ModelCache(peers=self._peers or Peers())
        self._render: Work | None = None
        self._tried = tried
        self._stopped: tuple[str, int] | None = None
        self._video: Finished | None = None

    @classmethod
    def finished(cls, job: RenderJob, video: Finished, *opening: Event) -> Rendering:
        """One of which nothing is left to do, as its video is in its place and whole."""
        done = cls(job, resume=True, opening=opening)
        done._video = video
        return done

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._video is not None

    loads = "the model"
    """What is loaded, in words."""

    def load(self) -> Work:
        """Try out the place and load the model; iterating does so too.

        Raises:
            CfgenError: It is missing, damaged or does not fit.
        """
        if self._render is None:
            if not self._tried:
                self._opening += try_place(self.job.output.absolute().parent)
            with memory_errors(what_fits(self.job.config)), contextlib.ExitStack() as failed:
                failed.callback(self._leave_peers)
                if self.resumes:
                    self.job.model.hash_anew()
                self._render = self._built()
                failed.pop_all()
            if self._stopped is not None:
                self._render.stop(self._stopped[0], exit_code=self._stopped[1])
        return self._render

    def _leave_peers(self) -> None:
        """Let processes go that rendered with this one, if no other render needs them."""
        if self._peers is not None:
            self._peers.close()

    def _built(self) -> Work:
        render = build_render(self.job, overwrite=self._overwrite, models=self._models)
        if self.resumes:
            render.resume(self._allow_changed)
        return render

    def stop(self, why: str, *, exit_code: int = 130) -> None:
        """Stop after the chunk that is being made; `Interrupted` is raised then."""
        self._stopped = (why, exit_code)
        if self._render is not None:
            self._render.stop(why, exit_code=exit_code)

    def __iter__(self) -> Iterator[Event]:
        """Render, yielding what happens; `Finished` comes last."""
        if self._video is not None:
            yield from self._opening
            yield from with_sheet(self.job, self._video)
            return
        render = self.load()
        yield from self._opening
        with (
            contextlib.ExitStack() as left,
            memory_errors(what_fits(self.job.config)),
            contextlib.closing(render.run()) as work,  # it ends when this does, not some time later
        ):
            left.callback(self._leave_peers)
            for event in work:
                if isinstance(event, Finished):
                    yield from with_sheet(self.job, event)
                else:
                    yield event


def notes_of(job: RenderJob) -> tuple[Event, ...]:
    """What becomes of what a new render is given, and what follows from its order of chunks.

    Raises:
        UsageError: The video cannot have the sound, or would take the place of what is given.
        InputRefused, CheckpointError: Something that is given cannot be used.
    """
    lines = (*job.require_beginning(), *job.require_sound(), *order_lines(job.plan))
    return tuple(Noted(message=line) for line in lines)


def begin(job: RenderJob, *, overwrite: bool = False) -> Rendering:
    """A new render, once its place is found good.

    Raises:
        UsageError, OutputRefused, BudgetError: The video cannot or must not be written there.
        InputRefused, CheckpointError: It cannot begin with the picture or film that is given.
    """
    opening = notes_of(job)
    check_place(job, overwrite=overwrite)
    return Rendering(job, overwrite=overwrite, opening=opening)


def go_on(
    path: Path,
    *,
    asked: RenderConfig | None = None,
    parallel: str | None = None,
    allow_changed: frozenset[str] = frozenset(),
) -> Rendering:
    """Go on with the render in a run folder.

    Args:
        path: The run folder.
        asked: What a command line asks for, if it may differ from what the run is.
        parallel: Processes, if others than before, as a person writes them.
        allow_changed: Names in the fingerprint that may differ.

    Raises:
        SnapshotMismatch: `asked` is another render; tells every difference.
        LockHeld: Another process is at work on it.
        SnapshotError: Its record is damaged.
    """
    require_harmless(allow_changed)
    folder = RunFolder(path)
    job = RenderJob(with_parallel(config_to_resume(folder, asked), parallel))
    owner, lives = look(path / LOCK)
    if lives:
        who = owner or "another process"
        raise LockHeld(f"{path} is in use by {who}", "wait until it is done, or stop it")
    what = Noted(message=f"{path} renders {job.config.prompt!r}, seed {job.config.seed}")
    if (video := whole_video(folder, job)) is not None:
        whole = f"{folder.output} is finished, and whole: {video.frames} frames"
        return Rendering.finished(job, video, what, Noted(message=whole))
    return Rendering(job, resume=True, allow_changed=allow_changed, opening=(what,))


def whole_video(folder: RunFolder, job: RenderJob) -> Finished | None:
    """What there is to tell of a run whose video is in its place and whole; None if it is not."""
    line = folder.finished
    if line is None:
        return None
    return Finished(
        output=folder.output,
        frames=line.frames,
        seconds=job.plan.seconds,
        elapsed_s=0.0,
        sidecar=sidecar_of(folder.output),
    )
