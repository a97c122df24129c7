"""`cfgen batch`: a list of clips, left alone overnight."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfgen.cli import options
from cfgen.cli.columns import cells, padded
from cfgen.cli.command import RESUME
from cfgen.cli.console import Console
from cfgen.cli.naming import slug
from cfgen.cli.plan import plan_of
from cfgen.cli.progress import clock
from cfgen.cli.render import check_place
from cfgen.cli.run_render import graceful_signals
from cfgen.config.batch_list import Clip, read_list
from cfgen.config.schema import ModelConfig, RenderConfig, digest
from cfgen.errors import (
    BudgetError,
    CfgenError,
    Interrupted,
    OutputRefused,
    SetupError,
    SnapshotError,
    UsageError,
)
from cfgen.files.reading import read_stream, read_text
from cfgen.files.writing import disk_errors, sha256_of, write_file
from cfgen.pipeline.model_preset import recipe_of
from cfgen.pipeline.run_configs import config_of, go_on_with
from cfgen.render.batch import Batch, ClipBegun, ClipEnded, Item, Rendering, Waiting
from cfgen.render.events import Event, Finished
from cfgen.render.place import try_place
from cfgen.runs.folder import RunFolder, is_run
from cfgen.runs.journal import ChunkLine
from cfgen.video.output import described, refuse_existing, run_of, sidecar_of

if TYPE_CHECKING:
    from cfgen.pipeline.build import Models
    from cfgen.render.run import Render
from cfgen.files.writing import json_bytes
from cfgen.timeline import Plan

app = options.command_app()

REPORT_VERSION = 1
_AGAIN = "the same command goes on with the list"
_PLACE_HINT = (
    "give the clip another output in the list, or move away what is there; then try again with "
    "--retry-failed"
)

List = Annotated[
    Path,
    typer.Argument(
        metavar="LIST",
        help="A YAML list, a text with one prompt per line, JSON or CSV; - reads it from stdin.",
        allow_dash=True,
    ),
]
FailFast = Annotated[
    bool,
    typer.Option("--fail-fast", help="Stop at the first clip that fails.", rich_help_panel=RESUME),
]
Attempts = Annotated[
    int,
    typer.Option(
        "--attempts",
        metavar="N",
        min=1,
        help="How often cfgen tries a clip that gets no further; a crash counts as a try.",
        rich_help_panel=RESUME,
    ),
]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Try clips again that failed in an earlier run.",
        rich_help_panel=RESUME,
    ),
]


@app.command()
def batch(
    ctx: typer.Context,
    clips: List,
    fail_fast: FailFast = False,
    attempts: Attempts = 2,
    retry_failed: RetryFailed = False,
    overwrite: options.Yes = False,
    dry_run: options.DryRun = False,
    json_lines: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Render a list of clips.

    The videos go beside the list. After any interruption, the same command goes on: it verifies
    and skips finished clips, resumes interrupted ones, and leaves failed ones alone unless you give
    --retry-failed. Any number of processes may work on one list, on one machine or on several that
    share the folder.

    \b
    A list:
      version: 1
      defaults: {duration: 20s, seed: 7}
      clips:
        - a red balloon drifts over snowy hills
        - {name: kite, prompt: a yellow kite bobs by day, seed: 12, duration: 1m}

    \b
    Examples:
      cfgen batch tonight.yaml
      cfgen batch prompts.txt --dry-run
    """
    console = options.console_of(ctx)
    console.configure(json=json_lines, quiet=quiet, verbose=verbose, debug=debug)
    text, label, folder = _read(clips)
    listed = read_list(
        text, label=label, folder=folder, environ=os.environ, slug=slug, recipe=recipe_of
    )
    state = folder / f"{_stem(clips, text)}.cfgen-batch"
    night = BatchRunner(console, listed, overwrite=overwrite)
    work = night.batch = Batch(
        night.items,
        state,
        make=night.make,
        progress=night.progress,
        verified=night.verified,
        attempts=attempts,
        fail_fast=fail_fast,
    )
    if dry_run:
        _show_plan(console, listed, night)
        return
    if retry_failed:
        work.reset_failed()
    report = folder / f"{_stem(clips, text)}.report.json"
    try:
        with graceful_signals(console, night.stop, again=_AGAIN):
            night.encode_prompts()
            for event in work.run():
                night.show(event)
    except CfgenError as error:
        for line in _report(work, listed, report, night)[0]:
            console.note(line)
        if isinstance(error, Interrupted):
            error.hint = _AGAIN
        raise
    lines, facts = _report(work, listed, report, night)
    all_done = facts["done"] == len(listed)
    console.result("\n".join(lines), facts, ok=all_done)
    if not all_done:
        raise typer.Exit(1)


class BatchRunner:
    """The clips of a list, and the render that is at work."""

    def __init__(self, console: Console, clips: list[Clip], *, overwrite: bool) -> None:
        self._console, self._overwrite = console, overwrite
        self._configs = {clip.name: clip.config for clip in clips}
        self._render: Render | None = None
        self._stopped: tuple[str, int] | None = None
        self._tried: set[Path] = set()
        self._models: Models | None = None
        self.batch: Batch | None = None
        self.items = [
            Item(name=clip.name, output=_output_of(clip.config), digest=digest(clip.config))
            for clip in clips
        ]

    def encode_prompts(self) -> None:
        """Embed all prompts before anything else, so that each text encoder is loaded once."""
        import torch

        from cfgen.pipeline.build import Models, prompts_of
        from cfgen.pipeline.device import threads_of
        from cfgen.pipeline.models import encoded

        self._models = Models()
        by_model: dict[tuple[ModelConfig, int], list[str]] = {}
        for config in self._configs.values():
            key = (config.model, threads_of(config))
            by_model.setdefault(key, []).extend(prompts_of(config))
        for (model, threads), prompts in by_model.items():
            if self._stopped is not None:
                return  # before the first clip, as the batch will tell
            torch.set_num_threads(threads)  # as in the render: they may change the last bits
            try:
                encoded(model, prompts)
            except CfgenError:
                continue  # the clip that it belongs to will say so

    def make(self, item: Item) -> Rendering:
        """Build the render of a clip; one that was begun goes on."""
        from cfgen.checkpoint.identify.digests import read_anew
        from cfgen.pipeline.build import build_render

        config = _on_own_gpu(self._configs[item.name])
        path = run_of(item.output)
        with disk_errors(item.output):
            item.output.parent.mkdir(parents=True, exist_ok=True)
        self._render = None  # its memory goes before the next is made
        begun = self._begun(path, config)
        try:
            self._try_place(item.output.absolute().parent)
            if begun is not None and (whole := _whole(path)) is not None:
                return whole
            if begun is not None:
                read_anew()
                render = build_render(begun, plan_of(begun), models=self._models)
                render.resume()
            else:
                plan = plan_of(config)
                check_place(config, plan, overwrite=self._overwrite)
                render = build_render(config, plan, overwrite=self._overwrite, models=self._models)
        except BudgetError as error:  # this clip is too large, which says nothing of the others
            raise SetupError(error.message, "make it shorter or smaller in the list") from None
        except OutputRefused as error:
            raise OutputRefused(error.message, _PLACE_HINT) from None
        if self._stopped is not None:
            render.stop(self._stopped[0], exit_code=self._stopped[1])
        self._render = render
        self._console.start(fps=config.playback_fps)
        return render

    def _try_place(self, folder: Path) -> None:
        """Try out a folder, once a night."""
        if folder not in self._tried:
            for warning in try_place(folder):
                self._console.show(warning)
            self._tried.add(folder)

    def _begun(self, path: Path, config: RenderConfig) -> RenderConfig | None:
        """The configuration that a clip was begun with, or None if it is to be begun.

        Raises:
            SnapshotError: What is there is another render, or damaged, and may not be overwritten.
        """
        if not is_run(path):
            return None
        try:
            return go_on_with(RunFolder(path), config)
        except SnapshotError:
            if self._overwrite:
                return None
            raise

    def obstacle(self, item: Item) -> str:
        """Why a clip cannot be begun or gone on with, as far as can be told beforehand."""
        run = run_of(item.output)
        try:
            if self._begun(run, self._configs[item.name]) is None:
                there = next(path for path in item.output.absolute().parents if path.exists())
                if not there.is_dir() or item.output.is_dir():
                    odd = item.output if there.is_dir() else there
                    raise OutputRefused(f"{odd} is in the way")
                if not self._overwrite:
                    refuse_existing(item.output, run)
        except CfgenError as error:
            return str(error)
        return ""

    def progress(self, item: Item) -> int:
        """Chunks that are made of a clip."""
        try:
            return len(RunFolder(run_of(item.output)).journal.of(ChunkLine))
        except CfgenError:
            return 0

    def verified(self, item: Item) -> bool:
        """Whether a clip's video is there and whole."""
        try:
            return described(item.output) == sha256_of(item.output)
        except OSError:
            return False

    def stop(self, why: str, *, exit_code: int) -> None:
        """Stop after the chunk that is being made."""
        self._stopped = (why, exit_code)
        if self.batch is not None:
            self.batch.stop(why, exit_code=exit_code)
        if self._render is not None:
            self._render.stop(why, exit_code=exit_code)

    def show(self, event: object) -> None:
        """Show one event of the batch."""
        console = self._console
        match event:
            case ClipBegun(item=item, attempt=attempt):
                again = f", attempt {attempt}" if attempt > 1 else ""
                place = self.items.index(item) + 1
                seed = self._configs[item.name].seed
                console.note(f"clip {place} of {len(self.items)}: {item.name}, seed {seed}{again}")
                console.event("clip", {"name": item.name, "attempt": attempt, "seed": seed})
            case ClipEnded(item=item, fate=fate, again=again):
                console.close()
                if fate.state != "done":
                    later = "; it will be tried again" if again else ""
                    console.warn(f"{item.name} failed: {fate.error}{later}", fate.hint or None)
                console.event("clip-end", {"name": item.name, **dataclasses.asdict(fate)})
            case Waiting(names=names):
                console.note(f"waiting for other processes: {', '.join(names)}")
            case _:
                console.show(event)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class _Whole:
    """A clip that is finished already, whatever cfgen, ffmpeg or a machine it was made with."""

    finished: Finished

    def run(self) -> Iterator[Event]:
        """Tell that it is finished."""
        yield self.finished


def _whole(path: Path) -> _Whole | None:
    """What there is to tell of a run whose video is in its place and whole."""
    folder = RunFolder(path)
    video = folder.finished
    if video is None:
        return None
    plan = plan_of(config_of(folder))
    return _Whole(
        Finished(
            output=folder.output,
            frames=video.frames,
            seconds=plan.seconds,
            elapsed_s=0.0,
            sidecar=sidecar_of(folder.output),
        )
    )


def _read(path: Path) -> tuple[str, str, Path]:
    """Text, label and output folder of a list."""
    if str(path) == "-":
        return read_stream(sys.stdin), "stdin", Path()
    try:
        return read_text(path), str(path), path.parent
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read the list {path}: {reason}") from None


def _stem(path: Path, text: str) -> str:
    if str(path) == "-":
        whole = text.encode(errors="surrogateescape")
        return f"stdin-{hashlib.sha256(whole).hexdigest()[:8]}"
    return path.name


def _output_of(config: RenderConfig) -> Path:
    assert config.output is not None
    return config.output


def _on_own_gpu(config: RenderConfig) -> RenderConfig:
    """Where a launcher started one process a GPU, take this process's own."""
    import torch

    rank = os.environ.get("LOCAL_RANK", "")
    if config.device != "auto" or not rank.isdigit() or not torch.cuda.is_available():
        return config
    return dataclasses.replace(config, device=f"cuda:{int(rank) % torch.cuda.device_count()}")


def _show_plan(console: Console, clips: list[Clip], night: BatchRunner) -> None:
    """Show what is to be made, what is done, and what stands in the way.

    Raises:
        Exit: With 1, if something does.
    """
    from cfgen.pipeline.preflight import warnings_of

    assert night.batch is not None
    lines, listed, seconds = [], [], 0.0
    width = max(cells(clip.name) for clip in clips)
    digits = max(len(str(clip.config.seed)) for clip in clips)
    for clip, item in zip(clips, night.items, strict=True):
        plan, fate = plan_of(clip.config), night.batch.fate(item)
        state = fate.state
        open_ = state in ("waiting", "started")
        obstacle = night.obstacle(item) or _missing(clip, plan) if open_ else fate.error
        facts: dict[str, object] = {"name": clip.name, "seed": clip.config.seed}
        facts |= {"frames": plan.frames, "output": str(item.output)}
        facts |= {"state": state, "obstacle": obstacle, "warnings": []}
        listed.append(facts)
        made = night.progress(item) if state != "done" else plan.chunks
        lines.append(
            f"{padded(clip.name, width)}  seed {clip.config.seed:<{digits}} "
            f"{clock(plan.seconds):>8}  "
            f"{made:5} of {plan.chunks} chunks  {item.output}"
        )
        if obstacle:
            lines.append(f"  {'failed' if state == 'failed' else 'will fail'}: {_line(obstacle)}")
        elif open_:
            told = [warning.message for warning in warnings_of(clip.config)]
            facts["warnings"] = told
            lines += [f"  warning: {message}" for message in told]
        seconds += plan.seconds
    ok = not any(facts["obstacle"] for facts in listed)
    lines.append(f"{len(clips)} clips, {clock(seconds)} of video")
    console.result("\n".join(lines), {"clips": listed, "seconds": seconds}, ok=ok)
    if not ok:
        raise typer.Exit(1)


def _missing(clip: Clip, plan: Plan) -> str | None:
    """What of its model stands in the way of a clip."""
    from cfgen.pipeline.memory_estimate import check

    try:
        check(clip.config, plan)
    except CfgenError as error:
        return str(error)
    return None


def _line(text: str) -> str:
    """The first of several lines; nothing of none."""
    first, *more = text.splitlines() or [""]
    return f"{first} ..." if more else first


def _report(
    work: Batch, clips: list[Clip], file: Path, night: BatchRunner
) -> tuple[list[str], dict[str, object]]:
    """Write the report; return the lines of a summary and what the report holds."""
    rows = []
    for clip, item in zip(clips, work.items, strict=True):
        fate = work.fate(item)
        named = {"name": clip.name, "seed": clip.config.seed, "output": str(item.output)}
        chunks = night.progress(item)
        rows.append({**named, **dataclasses.asdict(fate), "chunks": chunks})
    done = sum(row["state"] == "done" for row in rows)
    facts: dict[str, object] = {"version": REPORT_VERSION, "done": done, "clips": rows}
    with disk_errors(file):
        # Another process may end the list at the same moment.
        write_file(file, [json_bytes(facts, indent=1), b"\n"], shared=True)
    width = max(cells(str(row["name"])) for row in rows)
    lines = []
    for row in rows:
        state = str(row["state"])
        made = f"{row['chunks']} chunks are made" if row["chunks"] else "not begun"
        detail = row["output"] if state == "done" else _line(str(row["error"])) or made
        lines.append(f"{state:8} {padded(str(row['name']), width)}  {detail}")
    failed = sum(row["state"] == "failed" for row in rows)
    again = "; --retry-failed tries the failed ones again" if failed else ""
    lines.append(f"{done} of {len(rows)} clips done; the report is {file}{again}")
    return lines, facts
