"""Variations: one prompt with several seeds, rendered as a batch, and the choice of some of them.

They lie in a folder of their own: ``kite.mp4`` with seeds 7 and 9 is ``kite-seeds/kite-7.mp4`` and
``kite-seeds/kite-9.mp4``, beside one contact sheet with a row each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from cfgen.config.batch_list import Clip
from cfgen.config.schema import RenderConfig
from cfgen.errors import OutputRefused, UsageError
from cfgen.files.reading import read_text
from cfgen.files.writing import discard, disk_errors, json_bytes, sha256_of, write_file
from cfgen.pipeline.batch import ClipList
from cfgen.pipeline.contact_sheets import compare
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.naming import slug
from cfgen.runs.contents import LOCK, remove, require_own
from cfgen.runs.folder import is_run
from cfgen.runs.lock import Lock
from cfgen.video.contact_sheet import is_sheet, sheet_of
from cfgen.video.formats import MP4
from cfgen.video.output import beside, format_of, recorded_digest, run_of, sidecar_of

REPORT = "variations.json"
MOST = 64
"""Most seeds of one command."""
_LARGEST = (1 << 64) - 1


def parse_seeds(text: str, first: int | None) -> tuple[int, ...]:
    """Read ``4`` (so many seeds, counted up from `first`, or 1) or ``1,7,9`` (these).

    Raises:
        UsageError: It is neither, a seed occurs twice, or there are too many.
    """
    hint = "write how many, such as --seeds 4, or which, such as --seeds 1,7,9"
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,20}", part) for part in parts if part or len(parts) == 1):
        raise UsageError(f"--seeds {text!r} is no number of seeds and no list of them", hint)
    numbers = [int(part) for part in parts if part]
    if len(parts) == 1:
        begin = 1 if first is None else first
        numbers = list(range(begin, begin + min(numbers[0], MOST + 1)))
    elif first is not None:
        raise UsageError("--seeds lists the seeds, and --seed gives another", "leave one out")
    if not 1 <= len(numbers) <= MOST:
        raise UsageError(f"--seeds takes 1 to {MOST} seeds, got {text}", hint)
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise UsageError(f"seed {twice[0]} stands twice in --seeds {text}", hint)
    if max(numbers) > _LARGEST:
        raise UsageError(f"a seed is at most 2^64-1, got {max(numbers)}", hint)
    return tuple(numbers)


def variations(config: RenderConfig, seeds: Sequence[int]) -> ClipList:
    """One render with several seeds, as a batch.

    Args:
        config: The render; its output names the folder, without one its prompt does.
        seeds: The seeds, in order.

    Raises:
        UsageError: There is no prompt, or the output has the ending of no format.
    """
    if not config.prompt.strip():
        raise UsageError("the prompt is empty", "say what the videos show")
    ending = config.encode.ending or MP4.ending
    output = config.output or Path(f"{slug(config.prompt)}{ending}")
    format_of(output)
    folder = beside(output, "-seeds")
    clips = []
    for seed in seeds:
        name = f"{output.stem}-{seed}"
        own = dataclasses.replace(config, seed=seed, output=folder / f"{name}{output.suffix}")
        clips.append(Clip(name=name, where=f"--seeds, {seed}", config=own))
    report = folder / REPORT
    return ClipList(clips, report.with_suffix(".cfgen-batch"), report)


def write_sheet(listed: ClipList, done: Collection[str]) -> Path:
    """Write the contact sheet to choose from: a row for each variation, with its number.

    Args:
        listed: The variations.
        done: Names of those that are finished.

    Raises:
        CfgenError: A film cannot be read, or the sheet not written.
    """
    rows = [
        (RenderJob(clip.config), f"{number}    seed {clip.config.seed}")
        for number, clip in enumerate(listed.clips, start=1)
        if clip.name in done
    ]
    sheet = listed.report.parent / "sheet.jpg"
    compare(rows, sheet)
    return sheet


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """Variations of which some are kept.

    Attributes:
        report: The file that lists them.
        rows: What it says of each, in order.
        kept: The videos that stay.
        removed: The videos that go, with all that belongs to them.
    """

    report: Path
    rows: list[dict[str, object]]
    kept: tuple[Path, ...]
    removed: tuple[Path, ...]

    def carry_out(self) -> None:
        """Remove what is not kept. If anything stands in the way, nothing is removed.

        Raises:
            LockHeld: A process is at work on one of them.
            OutputRefused: A file that would go is not of cfgen, or was changed.
            BudgetError, WriterError: The disk refused.
        """
        with contextlib.ExitStack() as locks:
            runs = [run_of(video) for video in self.removed if is_run(run_of(video))]
            for run in runs:
                locks.enter_context(Lock(run / LOCK, patience_s=0.0))
                require_own(run)
            for video in self.removed:
                _require_ours(video)
            for video in self.removed:
                with disk_errors(video):
                    for path in (video, sidecar_of(video), sheet_of(video)):
                        discard(path)
            for run in runs:
                remove(run)
        gone = {video.name for video in self.removed}
        rows = [
            {**row, "state": "removed"} if Path(str(row["output"])).name in gone else row
            for row in self.rows
        ]
        facts = json.loads(read_text(self.report)) | {"clips": rows}
        with disk_errors(self.report):
            write_file(self.report, [json_bytes(facts, indent=1), b"\n"])


def choose(folder: Path, numbers: Collection[int]) -> Choice:
    """Look at the variations in a folder, of which those with these numbers are to be kept.

    Args:
        folder: The folder that `cfgen render --seeds` made.
        numbers: As on the contact sheet, from 1.

    Raises:
        UsageError: The folder holds no variations, or a number is none of theirs.
        OutputRefused: One that is to be kept is not finished, or its video is not whole.
    """
    report = folder / REPORT
    try:
        rows = json.loads(read_text(report))["clips"]
        names = [Path(str(row["output"])).name for row in rows]
        states = [str(row["state"]) for row in rows]
    except FileNotFoundError:
        raise UsageError(
            f"{folder} holds no variations", "name the folder that `cfgen render --seeds` made"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{report} cannot be read: {error}") from None
    if odd := sorted(set(numbers) - set(range(1, len(rows) + 1))):
        raise UsageError(f"there is no variation {odd[0]}: {folder} has 1 to {len(rows)}")
    videos = [folder / name for name in names]
    kept = tuple(videos[number - 1] for number in sorted(set(numbers)))
    for video in kept:
        if not _is_whole(video):
            raise OutputRefused(
                f"{video} is to be kept, and is not finished or not whole",
                "the command that began the variations goes on with them",
            )
    others = [
        video
        for video, state in zip(videos, states, strict=True)
        if video not in kept and state != "removed"
    ]
    return Choice(report, rows, kept, tuple(others))


def _is_whole(video: Path) -> bool:
    try:
        return recorded_digest(video) == sha256_of(video)
    except OSError:
        return False


def _require_ours(video: Path) -> None:
    """Refuse to remove a video, or what lies beside it, that is not as cfgen wrote it.

    Raises:
        OutputRefused: It is not.
    """
    hint = "move it away, or remove it yourself; nothing was removed"
    if (video.exists() or video.is_symlink()) and not _is_whole(video):
        raise OutputRefused(f"{video} is not as cfgen wrote it", hint)
    sheet = sheet_of(video)
    if sheet.exists() and not is_sheet(sheet):
        raise OutputRefused(f"{sheet} is no contact sheet of cfgen", hint)
    run = run_of(video)
    if run.exists() and not is_run(run):
        raise OutputRefused(f"{run} is no run folder", hint)
