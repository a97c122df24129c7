"""A list of clips, rendered one after another: each is begun, resumed or skipped."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from cfgen.config.batch_list import Clip, read_list
from cfgen.config.schema import ModelConfig, RenderConfig, digest
from cfgen.errors import (
    BudgetError,
    CfgenError,
    OutputRefused,
    SetupError,
    SnapshotError,
    UsageError,
)
from cfgen.files.reading import read_stream, read_text
from cfgen.files.writing import disk_errors, json_bytes, sha256_of, write_file
from cfgen.pipeline.build import ModelCache
from cfgen.pipeline.chunk_source import prompts_of
from cfgen.pipeline.device import Runtime
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.memory_estimate import check
from cfgen.pipeline.model_preset import recipe_of
from cfgen.pipeline.models import OpenedModel
from cfgen.pipeline.naming import slug
from cfgen.pipeline.preflight import check_encoder, check_place
from cfgen.pipeline.rendering import Rendering, notes_of, whole_video
from cfgen.pipeline.runs import config_to_resume
from cfgen.renderer.batch import Batch, BatchEvent, Item
from cfgen.renderer.events import Event
from cfgen.renderer.place import try_place
from cfgen.runs.folder import RunFolder, is_run
from cfgen.runs.journal import ChunkLine
from cfgen.timeline import Plan
from cfgen.video.output import check_kind, recorded_digest, refuse_existing, run_of

REPORT_VERSION = 1
PLACE_HINT = (
    "give the clip another output in the list, or move away what is there; then try again with "
    "--retry-failed"
)


@dataclasses.dataclass(frozen=True, slots=True)
class ClipList:
    """The clips of a list, and where their status is stored.

    Attributes:
        clips: Each with its configuration, seed and output.
        state: Folder of their statuses and locks.
        report: File with their statuses, written when the list ends or stops.
    """

    clips: list[Clip]
    state: Path
    report: Path

    @classmethod
    def read(cls, path: Path) -> ClipList:
        """Read a list from a file, or from stdin if it is ``-``; videos go beside it.

        Raises:
            UsageError, PresetError: It cannot be read, or is no list.
        """
        text, label, folder = _read(path)
        clips = read_list(
            text, label=label, folder=folder, environ=os.environ, slug=slug, recipe=recipe_of
        )
        stem = path.name
        if str(path) == "-":
            whole = text.encode(errors="surrogateescape")
            stem = f"stdin-{hashlib.sha256(whole).hexdigest()[:8]}"
        return cls(clips, folder / f"{stem}.cfgen-batch", folder / f"{stem}.report.json")


class BatchRunner:
    """Renders the clips of a list; iterating over it does so and yields events.

    Args:
        listed: The list.
        overwrite: Whether videos may replace files.
        attempts: Most tries in a row that make no new chunk of a clip; a crash counts.
        fail_fast: Whether the first clip that fails ends the list.
    """

    def __init__(
        self,
        listed: ClipList,
        *,
        overwrite: bool = False,
        attempts: int = 2,
        fail_fast: bool = False,
    ) -> None:
        self.listed, self.overwrite = listed, overwrite
        self.attempts, self.fail_fast = attempts, fail_fast
        self.configs = {clip.name: clip.config for clip in listed.clips}
        self._rendering: Rendering | None = None
        self._stopped: tuple[str, int] | None = None
        self._tried: set[Path] = set()
        self._models = ModelCache()
        self._plans: dict[str, Plan | None] = {}
        items = [
            Item(name=clip.name, output=RenderJob(clip.config).output, digest=digest(clip.config))
            for clip in listed.clips
        ]
        self.batch = Batch(
            items,
            listed.state,
            make=self._make,
            progress=self.progress,
            verified=_verified,
            attempts=attempts,
            fail_fast=fail_fast,
        )

    def __iter__(self) -> Iterator[BatchEvent]:
        """Make every clip that is not made, yielding what happens.

        Raises:
            Interrupted: It was stopped; everything can be resumed.
            BudgetError, WriterError: The disk refused to keep the state.
        """
        self._encode_prompts()
        try:
            yield from self.batch.run()
        finally:
            self._models.peers.close()

    def stop(self, why: str, *, exit_code: int = 130) -> None:
        """Stop after the chunk that is being made."""
        self._stopped = (why, exit_code)
        self.batch.stop(why, exit_code=exit_code)
        if self._rendering is not None:
            self._rendering.stop(why, exit_code=exit_code)

    def take_place(self, threads: int | None) -> None:
        """Render on what a scheduler gave to this process.

        Args:
            threads: CPU threads of clips that are new and name no number themselves.
        """
        for item in self.batch.items:
            config = self.configs[item.name]
            if config.threads is None and not is_run(run_of(item.output)):
                config = dataclasses.replace(config, threads=threads)
            # A process sees its own GPUs only, whatever the others are called.
            device = config.device.partition(":")[0]
            self.configs[item.name] = dataclasses.replace(config, device=device)

    def progress(self, item: Item) -> int:
        """Chunks that are made of a clip."""
        try:
            return len(RunFolder(run_of(item.output)).journal.of(ChunkLine))
        except CfgenError:
            return 0

    def later_frames(self, item: Item) -> float:
        """Frames that are to be made once a clip is, counted in frames of that clip's size."""
        later, size = 0.0, self.configs[item.name].frame_size
        for other in self.batch.items:
            if other == item or self.batch.fate(other).state not in ("waiting", "started"):
                continue
            plan, (width, height) = self.plan(other), self.configs[other.name].frame_size
            if plan is not None:
                left = plan.frames - self.made_frames(other)
                later += left * width * height / (size[0] * size[1])
        return later

    def made_frames(self, item: Item) -> int:
        """Frames that are made of a clip, without those of its last chunk until it is done."""
        plan = self.plan(item)
        if plan is None:
            return 0
        if self.batch.fate(item).state == "done":
            return plan.frames
        return plan.chunk(min(self.progress(item), plan.chunks - 1)).frame_start

    def plan(self, item: Item) -> Plan | None:
        """The plan of a clip; None if it cannot be made, as its render will say."""
        if item.name not in self._plans:
            try:
                self._plans[item.name] = RenderJob(self.configs[item.name]).plan
            except CfgenError:
                self._plans[item.name] = None
        return self._plans[item.name]

    def obstacle(self, item: Item) -> str:
        """Why a clip cannot be begun or gone on with, as far as can be told beforehand."""
        run, config = run_of(item.output), self.configs[item.name]
        try:
            begun = self._begun(run, config)
            if begun is None:
                there = next(path for path in item.output.absolute().parents if path.exists())
                if not there.is_dir():
                    raise OutputRefused(f"{there} is in the way")
                check_kind(item.output)
                if not self.overwrite:
                    refuse_existing(item.output, run)
            job = RenderJob(begun or config)
            check_encoder(job)
            if begun is None:
                job.require_beginning()
                job.require_sound()
            check(job)
        except CfgenError as error:
            return str(error)
        return ""

    def report(self) -> dict[str, object]:
        """Write what became of the clips, and return it.

        Raises:
            BudgetError, WriterError: The disk refused.
        """
        rows = []
        for clip, item in zip(self.listed.clips, self.batch.items, strict=True):
            named = {"name": clip.name, "seed": clip.config.seed, "output": str(item.output)}
            facts = dataclasses.asdict(self.batch.fate(item))
            rows.append({**named, **facts, "chunks": self.progress(item)})
        done = sum(row["state"] == "done" for row in rows)
        report: dict[str, object] = {"version": REPORT_VERSION, "done": done, "clips": rows}
        file = self.listed.report
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Another process may end the list at the same moment.
            write_file(file, [json_bytes(report, indent=1), b"\n"], shared=True)
        return report

    def _encode_prompts(self) -> None:
        """Embed all prompts before anything else, so that each text encoder is loaded once."""
        by_model: dict[tuple[ModelConfig, int], list[str]] = {}
        for config in self.configs.values():
            key = (config.model, Runtime.of(config).threads)
            by_model.setdefault(key, []).extend(prompts_of(config))
        for (model, threads), prompts in by_model.items():
            if self._stopped is not None:
                return  # before the first clip, as the batch will tell
            torch.set_num_threads(threads)  # as in the render: they may change the last bits
            try:
                OpenedModel(model).embed(prompts)
            except CfgenError:
                continue  # the clip that it belongs to will say so

    def _make(self, item: Item) -> Rendering:
        """Load the render of a clip; one that was begun goes on."""
        config = _on_own_gpu(self.configs[item.name])
        path, folder = run_of(item.output), item.output.absolute().parent
        with disk_errors(item.output):
            item.output.parent.mkdir(parents=True, exist_ok=True)
        self._rendering = None  # its memory goes before the next is made
        begun = self._begun(path, config)
        try:
            warnings: tuple[Event, ...] = () if folder in self._tried else try_place(folder)
            self._tried.add(folder)
            rendering = self._rendering_of(RenderJob(begun or config), begun is not None, warnings)
            if not rendering.is_finished:
                rendering.load()
        except BudgetError as error:  # this clip is too large, which says nothing of the others
            raise SetupError(error.message, "make it shorter or smaller in the list") from None
        except OutputRefused as error:
            raise OutputRefused(error.message, PLACE_HINT) from None
        if self._stopped is not None:
            rendering.stop(self._stopped[0], exit_code=self._stopped[1])
        self._rendering = rendering
        return rendering

    def _rendering_of(self, job: RenderJob, begun: bool, warnings: tuple[Event, ...]) -> Rendering:
        if begun:
            if (video := whole_video(RunFolder(run_of(job.output)), job)) is not None:
                return Rendering.finished(job, video, *warnings)
        else:
            warnings = (*warnings, *notes_of(job))
            check_place(job, overwrite=self.overwrite)
        return Rendering(
            job,
            overwrite=self.overwrite and not begun,
            resume=begun,
            models=self._models,
            tried=True,
            opening=warnings,
        )

    def _begun(self, path: Path, config: RenderConfig) -> RenderConfig | None:
        """The configuration that a clip was begun with, or None if it is to be begun.

        Raises:
            SnapshotError: What is there is another render, or damaged, and may not be overwritten.
        """
        if not is_run(path):
            return None
        try:
            return config_to_resume(RunFolder(path), config)
        except SnapshotError:
            if self.overwrite:
                return None
            raise


def _verified(item: Item) -> bool:
    """Whether a clip's video is there and whole."""
    try:
        return recorded_digest(item.output) == sha256_of(item.output)
    except OSError:
        return False


def _read(path: Path) -> tuple[str, str, Path]:
    """Text, label and output folder of a list."""
    if str(path) == "-":
        return read_stream(sys.stdin), "stdin", Path()
    try:
        return read_text(path), str(path), path.parent
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read the list {path}: {reason}") from None


def _on_own_gpu(config: RenderConfig) -> RenderConfig:
    """Where a launcher started one process a GPU, take this process's own."""
    rank = os.environ.get("LOCAL_RANK", "")
    if config.device != "auto" or not rank.isdigit() or not torch.cuda.is_available():
        return config
    return dataclasses.replace(config, device=f"cuda:{int(rank) % torch.cuda.device_count()}")
