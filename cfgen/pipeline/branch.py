"""Another continuation of a render that is there: beside it (branch), or in its place (retry)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from cfgen.config.loader import from_mapping
from cfgen.config.schema import RenderConfig, to_mapping
from cfgen.config.values import parse_duration
from cfgen.errors import UsageError
from cfgen.pipeline.build import build_render, prompts_of, read_prompts
from cfgen.pipeline.fingerprint import prompt_digest
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.naming import random_seed
from cfgen.pipeline.plan import passes_of
from cfgen.pipeline.preflight import check_place
from cfgen.pipeline.rendering import Rendering
from cfgen.pipeline.runs import config_of
from cfgen.renderer.branch import BranchPoint, fork, locate, retry_from
from cfgen.renderer.events import Noted
from cfgen.runs.contents import LOCK
from cfgen.runs.folder import RunFolder, RunRecord
from cfgen.runs.lock import Lock
from cfgen.timeline import Plan
from cfgen.units import clock, count
from cfgen.video.output import run_of


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
        with Lock(self.run / LOCK):
            folder = RunFolder(self.run)
            if not self.beside:
                folder.require_replaceable()
            point, record, words = _at(folder, self.chunk)
            if self.beside:
                assert self.child.output is not None
                record = dataclasses.replace(
                    record, output=self.child.output.name, overwrite=self.overwrite
                )
                record = _with_config(record, self.child, point)
                done = fork(point, run_of(self.child.output), record)
            else:
                done = retry_from(point, _with_config(record, self.child, point))
            for _ in done:
                pass
            del point, done  # and the model with them, before it is loaded for the new render
        opening = (Noted(message=words),)
        return Rendering(RenderJob(self.child), resume=True, opening=opening)


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
        changes: Prompt, seed and duration; None leaves what the run has. With none of them a seed
            is chosen.
        overwrite: Whether the new video may replace a file.

    Raises:
        UsageError: Nothing would be different, or there is no such moment.
        CfgenError: The new video cannot be written there.
    """
    folder = RunFolder(run)
    parent = RenderJob(config_of(folder))
    if all(value is None for value in changes.values()):
        changes = {**changes, "seed": str(random_seed())}
    config = _changed(folder, changes)
    if run_of(output).absolute() == run.absolute():
        raise UsageError("a branch needs an output of its own", "name another with -o")
    child = RenderJob(dataclasses.replace(config, output=output))
    same = (config.prompt, config.seed) == (parent.config.prompt, parent.config.seed)
    if same and child.plan.frames <= parent.plan.frames:
        raise UsageError(
            "nothing would be different: prompt and seed are those of the old video, and the new "
            "one is not longer",
            "give another --prompt or --seed, or a longer --duration; without any of them a seed "
            "is chosen",
        )
    check_place(child, overwrite=overwrite)
    chunk = chunk_of(at, parent.plan, child.plan)
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
    seed = changes.get("seed") or str(random_seed())
    child = dataclasses.replace(_changed(folder, {**changes, "seed": seed}), output=config.output)
    plan = RenderJob(config).plan
    chunk = chunk_of(begin, plan, plan)
    return Branch(run=run, child=child, chunk=chunk, new_seed=True, beside=False)


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
    return parent.chunks - 1 if seconds == parent.seconds else parent.chunk_at(seconds)


def _changed(folder: RunFolder, changes: Mapping[str, str | None]) -> RenderConfig:
    """The configuration of a run with what is said otherwise; None says nothing.

    A seed of -1, as everywhere, means that one is chosen.
    """
    label = str(folder.path / "run.json")
    config = from_mapping(folder.record.config, label=label, flags=dict(changes))
    return config if config.seed is not None else dataclasses.replace(config, seed=random_seed())


def _at(folder: RunFolder, chunk: int) -> tuple[BranchPoint, RunRecord, str]:
    """Load the model of a run and look for the memory before a chunk; tell what that takes."""
    config = config_of(folder)
    job = RenderJob(config)
    job.model.hash_anew()
    render = build_render(job)
    folder.expect(render.record, allow_changed=())
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
    return point, render.record, words


def _with_config(record: RunRecord, config: RenderConfig, point: BranchPoint) -> RunRecord:
    """The record of a render with another configuration of the same model."""
    job = RenderJob(config)
    text = job.model.embed(prompts_of(config, job.plan))
    prompt = prompt_digest(*read_prompts(job, point.source.generator, text))
    fingerprint = {**record.fingerprint, "prompt_sha256": prompt}
    return dataclasses.replace(record, config=to_mapping(config), fingerprint=fingerprint)
