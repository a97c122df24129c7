"""Another continuation of a render that is there: beside it (branch), or in its place (retry)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from cfgen.config.loader import from_mapping
from cfgen.config.schema import RenderConfig, to_mapping
from cfgen.config.values import parse_duration
from cfgen.errors import UsageError
from cfgen.parallel.launch import launched
from cfgen.pipeline.build import ModelCache, build_render
from cfgen.pipeline.chunk_source import prompts_of, read_prompts
from cfgen.pipeline.contact_sheets import with_sheet
from cfgen.pipeline.film_changes import changed_from, cut_to, with_film
from cfgen.pipeline.fingerprint import prompt_digest
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.models import OpenedModel
from cfgen.pipeline.naming import random_seed
from cfgen.pipeline.parallel import Peers
from cfgen.pipeline.plan import passes_of
from cfgen.pipeline.preflight import check_place
from cfgen.pipeline.rendering import Rendering, whole_video
from cfgen.pipeline.runs import config_of
from cfgen.renderer.branch import BranchPoint, fork, locate, retry_from
from cfgen.renderer.events import Noted
from cfgen.renderer.takes import keep_take, undo
from cfgen.runs.beginning import believed
from cfgen.runs.contents import LOCK
from cfgen.runs.folder import RunFolder, RunRecord
from cfgen.runs.lock import Lock
from cfgen.timeline import Plan
from cfgen.units import clock, count
from cfgen.video.output import format_of, pasted, run_of


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """A continuation that was asked for and can be made, as far as can be told without loading.

    Attributes:
        run: The run folder that it starts from.
        child: The render that it becomes.
        chunk: The first chunk that will be another.
        new_seed: Whether its seed is another than the old one.
        beside: Whether it becomes a render of its own; otherwise it replaces the old one.
        overwrite: Whether its video may replace a file.
    """

    run: Path
    child: RenderConfig
    chunk: int
    new_seed: bool
    beside: bool
    overwrite: bool = False

    @property
    def notice(self) -> str:
        """What is told before the model is loaded."""
        return f"loading the model to find out how to get to chunk {self.chunk + 1} of {self.run}"

    def make(self) -> Rendering:
        """Load the model, bring the memory to that moment and set up the new run.

        Raises:
            CfgenError: It cannot be done; the old render is as it was.
        """
        models = ModelCache(peers=Peers(launched()))
        with contextlib.ExitStack() as failed:
            failed.callback(models.peers.close)
            words = self._brought(models)
            failed.pop_all()
        opening = (Noted(message=words),)
        return Rendering(RenderJob(self.child), resume=True, opening=opening, peers=models.peers)

    def _brought(self, models: ModelCache) -> str:
        """Set up the new run, and tell from where it goes on."""
        with Lock(self.run / LOCK):
            folder = RunFolder(self.run)
            if not self.beside:
                folder.require_replaceable()
            point, record, words = _at(folder, self.chunk, models)
            if self.beside:
                assert self.child.output is not None
                record = dataclasses.replace(
                    record, output=self.child.output.name, overwrite=self.overwrite
                )
                record = _with_config(record, self.child, point)
                done = fork(point, run_of(self.child.output), record)
            else:
                record = _with_config(record, self.child, point)
                if folder.finished is not None:
                    words = f"{words}; {folder.output.name} stays as {keep_take(folder).name}"
                done = retry_from(point, record)
            for _ in done:
                pass
            point.source.close()
            models.loaded = None
            del point, done  # and the model with them, before it is loaded for the new render
        return words


def plan_branch(
    run: Path,
    *,
    at: str,
    output: Path,
    changes: Mapping[str, str | None],
    overwrite: bool = False,
) -> Branch:
    """What `Branch.make` will make: another continuation as a video of its own.

    Args:
        run: The run folder.
        at: The moment at which it begins, as a person writes it.
        output: The new video.
        changes: Prompt, transition, seed and duration; None leaves what the run has. With none of
            them a seed is chosen.
        overwrite: Whether the new video may replace a file.

    Raises:
        UsageError: Nothing would be different, or there is no such moment.
        CfgenError: The new video cannot be written there.
    """
    folder = RunFolder(run)
    parent = RenderJob(config_of(folder))
    _require_forward(folder, parent.plan)
    if all(value is None for value in changes.values()):
        changes = {**changes, "seed": str(random_seed())}
    config = _changed(folder, changes)
    if run_of(output).absolute() == run.absolute():
        raise UsageError("a branch needs an output of its own", "name another with -o")
    _require_same_kind(folder, output)
    chunk = chunk_of(at, parent.plan, RenderJob(config, parent.model).plan)
    longer = dataclasses.replace(config, output=output)
    child = RenderJob(_shown_from(longer, chunk, changes, parent.model))
    same = (child.config.film, config.seed) == (longer.film, parent.config.seed)
    if same and child.plan.frames <= parent.plan.frames:
        raise UsageError(
            "nothing would be different: prompt and seed are those of the old video, and the new "
            "one is not longer",
            "give another --prompt or --seed, or a longer --duration; without any of them a seed "
            "is chosen",
        )
    check_place(child, overwrite=overwrite)
    new_seed = config.seed != parent.config.seed
    return Branch(
        run=run,
        child=child.config,
        chunk=chunk,
        new_seed=new_seed,
        beside=True,
        overwrite=overwrite,
    )


def plan_retry(run: Path, *, begin: str, changes: Mapping[str, str | None]) -> Branch:
    """What `Branch.make` will make: the video done over from a moment on; as `plan_branch`."""
    folder = RunFolder(run)
    folder.require_replaceable()
    config = config_of(folder)
    _require_forward(folder, RenderJob(config).plan)
    seed = changes.get("seed") or str(random_seed())
    child = dataclasses.replace(_changed(folder, {**changes, "seed": seed}), output=config.output)
    job = RenderJob(config)
    chunk = chunk_of(begin, job.plan, job.plan)
    child = _shown_from(child, chunk, changes, job.model)
    return Branch(run=run, child=child, chunk=chunk, new_seed=True, beside=False)


def take_back(run: Path) -> tuple[Path, Path]:
    """Put the newest take of a film back in its place, with all that is needed to go on from it.

    Args:
        run: The run folder of the film.

    Returns:
        The names of the take that is back, and of the take that the film becomes.

    Raises:
        UsageError: No take is kept.
        CfgenError: It cannot be done.
    """
    with Lock(run / LOCK):
        names = undo(RunFolder(run))
        folder = RunFolder(run)
        job = RenderJob(config_of(folder))
        if (video := whole_video(folder, job)) is not None:
            for _ in with_sheet(job, video):  # a report shows no sheet of another film
                pass
    return names


def chunk_of(at: str, parent: Plan, child: Plan) -> int:
    """The chunk that both plans have at a time; the last one at the end.

    Raises:
        UsageError: `at` is no time, or one of the videos is not that long.
    """
    try:
        seconds = parse_duration(at)
    except ValueError as error:
        raise UsageError(f"--at: {error}") from None
    for plan, what in ((parent, "old"), (child, "new")):
        if seconds > plan.seconds:
            raise UsageError(
                f"the {what} video is {plan.seconds:g} s long, and {seconds:g} s is asked for",
                "choose an earlier moment" + (", or a longer --duration" if what == "new" else ""),
            )
    chunk = parent.chunks - 1 if seconds == parent.seconds else parent.chunk_at(seconds)
    return max(chunk, parent.given_chunks)  # what is given stays


def _require_forward(folder: RunFolder, plan: Plan) -> None:
    """Refuse another continuation of a film whose end was made before what leads to it.

    Raises:
        UsageError: It is such a film.
    """
    if plan.inverted:
        raise UsageError(
            f"{folder.output} was made from its end (order inverted): what plays after a moment "
            "was made before it, so that the film cannot go on otherwise from there",
            "render it again with another --seed or --prompt and -o; or go on from a part of it: "
            f"`cfgen render PROMPT --video {pasted(str(folder.output))}` with a preset of order "
            "forward",
        )


def _require_same_kind(folder: RunFolder, output: Path) -> None:
    """Refuse a branch that is another kind of file, as it takes over how its film is coded.

    Raises:
        UsageError: It is.
    """
    ending = folder.output.suffix
    if format_of(output).ending != ending.lower():
        raise UsageError(
            f"a branch of {folder.output.name} is a {ending} too, and the output is {output}",
            f"use -o {pasted(str(output.with_suffix(ending)))}; `cfgen decode` makes another kind "
            "of file of it",
        )


def _changed(folder: RunFolder, changes: Mapping[str, str | None]) -> RenderConfig:
    """The configuration of a run with another seed or duration; None says nothing.

    A seed of -1, as everywhere, means that one is chosen.
    """
    label = str(folder.path / "run.json")
    film = from_mapping(folder.record.config, label=label).film
    flags = {name: changes.get(name) for name in ("seed", "duration")}
    plain = {key: value for key, value in folder.record.config.items() if key != "shots"}
    config = from_mapping(plain, label=label, flags=flags)
    if len(film) > 1:
        asked = flags["duration"] is not None
        config = with_film(config, cut_to(film, config.duration_s) if asked else film)
    return config if config.seed is not None else dataclasses.replace(config, seed=random_seed())


def _shown_from(
    config: RenderConfig, chunk: int, changes: Mapping[str, str | None], model: OpenedModel
) -> RenderConfig:
    """The configuration with what is to be shown from a chunk on."""
    film = changed_from(
        config.film,
        RenderJob(config, model).plan,
        chunk,
        prompt=changes.get("prompt"),
        transition=changes.get("transition"),
    )
    return config if film == config.film else with_film(config, film)


def _at(folder: RunFolder, chunk: int, models: ModelCache) -> tuple[BranchPoint, RunRecord, str]:
    """Load the model of a run and look for the memory before a chunk; tell what that takes."""
    config = models.peers.joined(config_of(folder))
    job = RenderJob(config)
    job.model.hash_anew()
    render = build_render(job, models=models)
    record = believed(folder, render.record, job.plan)
    folder.expect(record, allow_changed=())
    point = locate(folder, render.source, job.plan, chunk)
    lines, recovery = point.audited.lines, point.recovery
    chunk_s = lines[-1].elapsed_s / len(lines) if lines else 0.0
    cost_s = chunk_s * (point.replayed / passes_of(config.schedule) + len(recovery.recompute))
    start = f"the snapshot after chunk {recovery.snapshot}" if recovery.snapshot else "the start"
    work = [
        f"{count(number, 'chunk')} {what}"
        for number, what in (
            (point.replayed, "to commit again"),
            (len(recovery.recompute), "to denoise again"),
        )
        if number
    ]
    begins = job.plan.chunk(chunk).frame_start / job.plan.geometry.fps
    words = f"going on at chunk {chunk + 1}, which begins at {begins:.2f} s, from {start}" + (
        f": {', '.join(work)}, about {clock(cost_s)}" if work else ""
    )
    return point, record, words


def _with_config(record: RunRecord, config: RenderConfig, point: BranchPoint) -> RunRecord:
    """The record of a render with another configuration of the same model."""
    job = RenderJob(config)
    text = job.model.embed(prompts_of(config, job.plan))
    prompt = prompt_digest(*read_prompts(job, point.source.generator, text))
    fingerprint = {**record.fingerprint, "prompt_sha256": prompt}
    return dataclasses.replace(record, config=to_mapping(config), fingerprint=fingerprint)
