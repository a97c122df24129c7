"""What a report tells of films: read from run folders, sidecars and the state of a batch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import cast
from urllib.parse import quote

from cfgen.config.loader import leaves
from cfgen.config.schema import RenderConfig, to_mapping
from cfgen.errors import CfgenError
from cfgen.fields import CHANGES_NO_FRAME
from cfgen.files.reading import read_text
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.run_status import Job, job_of
from cfgen.pipeline.runs import config_of
from cfgen.report import commands
from cfgen.runs.folder import RunFolder, is_run
from cfgen.runs.journal import ChunkLine, SessionLine
from cfgen.scoring.record import read_score
from cfgen.timeline import Plan
from cfgen.video.contact_sheet import sheet_of, sheet_text
from cfgen.video.formats import FRAME_NAME, GIF_FILE
from cfgen.video.output import (
    beside,
    format_of,
    is_film,
    pasted,
    recorded_digest,
    run_of,
    sidecar_of,
)
from cfgen.video.preview import FILM

OPEN = ("running", "interrupted", "next", "waiting")
"""States of films that are not finished, and may be."""
_NOT_COMPARED = ("prompt", "shots", "duration", "seed", "device", "threads")


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """A film as the page shows it. Links and commands are as seen from the page's folder.

    Attributes:
        name: The name of its video, without ending.
        state: done, running, interrupted, failed, next, waiting, removed, video lost or damaged.
        detail: Why, where there is something to say.
        hint: What to do about it, or empty.
        link: The video, or its preview while there is none; empty if there is neither. Of a folder
            of frames it is the first.
        shown_as: How a page shows that: video, picture (it moves by itself), frames (a folder of
            them), or file, which no browser plays.
        sheet: Its contact sheet, or empty.
        prompt: What it shows, if that is known.
        seed: Its seed.
        shots: Its shots, if there are several: when each begins, in seconds, and its words.
        size: Width and height of a frame, or None.
        fps: Its rate, 0 if that is not known.
        seconds: Its playing time.
        chunks_done: Chunks that are made.
        starts_s: When each chunk begins to play, in seconds.
        picks_s: A moment within the first frame of each, for `--at`.
        chunk_costs_s: Seconds that each chunk took that is shown, up to the first not made yet.
        elapsed_s: Seconds spent on it.
        sessions: How often it was begun or gone on with.
        created: When it was begun, in ISO 8601, or empty.
        settings: Its settings, by dotted key.
        changed: Those that its preset has otherwise.
        score: What stands in its `score.json`, or None.
        again: The command that renders it again, or empty.
        resume: The command that goes on with it, or empty.
        branch: What stands before and after the moment in the command that branches off.
        score_command: The command that scores it, or empty.
        note: A sentence on how it was made, or empty.
    """

    name: str
    state: str
    detail: str = ""
    hint: str = ""
    link: str = ""
    shown_as: str = "video"
    sheet: str = ""
    prompt: str = ""
    seed: int | None = None
    shots: Sequence[tuple[float, str]] = ()
    size: tuple[int, int] | None = None
    fps: float = 0.0
    seconds: float = 0.0
    chunks_done: int = 0
    starts_s: Sequence[float] = ()
    picks_s: Sequence[float] = ()
    chunk_costs_s: Sequence[float] = ()
    elapsed_s: float = 0.0
    sessions: int = 0
    created: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    score: Mapping[str, object] | None = None
    again: str = ""
    resume: str = ""
    branch: tuple[str, str] | None = None
    score_command: str = ""
    note: str = ""

    @property
    def last_pick(self) -> int:
        """Number of the last chunk, among those that are shown, that it can branch off at."""
        return max(0, min(len(self.picks_s) - 1, len(self.chunk_costs_s)))

    @property
    def frames_per_s(self) -> float:
        """Frames that were made a second, 0 if that is not known."""
        whole = self.state == "done" and self.elapsed_s > 0
        return self.seconds * self.fps / self.elapsed_s if whole else 0.0


def differing_settings(films: Sequence[Film]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all films, each with its value in every film."""
    known = [film.settings for film in films]
    keys = dict.fromkeys(key for settings in known for key in settings)
    rows = [(key, [settings.get(key, "") for settings in known]) for key in keys]
    return [(key, values) for key, values in rows if len({v for v in values if v}) > 1]


def film_of(video: Path, page: Path, row: Mapping[str, object]) -> Film:
    """One film, from its run folder, else its sidecar, else what its batch says.

    Args:
        video: The film, which may not be there.
        page: The folder of the page.
        row: What its batch says of it, if it is of one.
    """
    if is_run(run_of(video)):
        return _from_run(video, page, row)
    if (facts := _sidecar(video)) is not None and is_film(video):
        return _from_sidecar(video, page, facts)
    state = str(row.get("state", "video lost"))
    seed = row.get("seed")
    return Film(
        name=_name(video),
        state="interrupted" if state == "started" else state,
        detail=str(row.get("error", "")),
        hint=str(row.get("hint", "")),
        seed=seed if isinstance(seed, int) else None,
    )


def _sidecar(video: Path) -> Mapping[str, object] | None:
    try:
        found = json.loads(read_text(sidecar_of(video)))
        return found if isinstance(found["facts"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _from_sidecar(video: Path, page: Path, sidecar: Mapping[str, object]) -> Film:
    """A film whose run folder is gone."""
    facts = cast("Mapping[str, object]", sidecar["facts"])
    texts = sidecar.get("metadata")
    metadata: Mapping[str, object] = texts if isinstance(texts, dict) else {}
    number = {
        name: value
        for name in ("width", "height", "fps", "duration_s")
        if isinstance(value := facts.get(name), int | float)
    }
    seed = str(metadata.get("seed", ""))
    size = (int(number.get("width", 0)), int(number.get("height", 0)))
    return Film(
        name=_name(video),
        state="done",
        link=_url(_opened(video), page),
        shown_as=_shown_as(video, str(facts.get("encoder"))),
        sheet=_sheet(video, page),
        prompt=str(metadata.get("prompt", "")),
        seed=int(seed) if seed.isdigit() else None,
        size=size if all(size) else None,
        fps=float(number.get("fps", 0)),
        seconds=float(number.get("duration_s", 0)),
        score=read_score(video),
        score_command=f"cfgen score {pasted(_relative(video, page))}",
        note="Its run folder was cleared away: it cannot be branched or gone on with.",
    )


def _from_run(video: Path, page: Path, row: Mapping[str, object]) -> Film:
    job = job_of(run_of(video))
    try:
        folder = RunFolder(run_of(video))
        config = config_of(folder)
        plan = RenderJob(config).plan
        codec = format_of(video).coded(config.encode.codec_key, config.encode.bits)[0]
    except CfgenError as error:
        return Film(name=_name(video), state="damaged", detail=str(error), hint=error.hint or "")
    state, detail, hint = _state(job, row)
    name, done = _relative(video, page), state == "done"
    lines = folder.journal.of(ChunkLine)
    fps = plan.geometry.fps
    shown = [plan.chunk(index) for index in range(plan.hidden_chunks, plan.chunks)]
    link = _opened(video) if done else job.path / FILM
    settings = dict(leaves(to_mapping(config)))
    parts = folder.record.parts
    return Film(
        name=_name(video),
        state=state,
        detail=detail,
        hint=hint,
        link=_url(link, page) if link.is_file() else "",
        shown_as=_shown_as(video, codec.encoder) if done else "video",
        sheet=_sheet(video, page) if done else "",
        prompt=config.prompt,
        seed=config.seed,
        shots=_shots(plan) if config.shots else (),
        size=(plan.geometry.width, plan.geometry.height),
        fps=fps,
        seconds=plan.seconds,
        chunks_done=min(len(lines), plan.chunks),
        starts_s=[round(chunk.frame_start / fps, 3) for chunk in shown],
        picks_s=[round((chunk.frame_start + 0.5) / fps, 3) for chunk in shown],
        chunk_costs_s=_costs(lines, [chunk.index for chunk in shown]),
        elapsed_s=job.elapsed_s,
        sessions=len(folder.journal.of(SessionLine)),
        created=folder.record.created,
        settings=_compared(settings),
        changed={k: _shown(v) for k, v in commands.changed_settings(config).items()},
        score=read_score(video) if done else None,
        again="" if parts else commands.render_command(config, _again(name)),
        resume="" if done or state == "running" else commands.resume_command(name),
        branch=commands.branch_command(name) if lines and not plan.inverted else None,
        score_command=f"cfgen score {pasted(name)}" if done else "",
        note=_note(config, parts, fps),
    )


def _state(job: Job, row: Mapping[str, object]) -> tuple[str, str, str]:
    """State, detail and hint of a film, by its run folder and by its batch."""
    if job.state == "finished":
        return "done", "", ""
    if job.state == "interrupted" and row.get("state") == "failed":
        return "failed", str(row.get("error", "")), str(row.get("hint", ""))
    return job.state, job.detail, ""


def _name(video: Path) -> str:
    """What a page calls a film: ``clip.mp4`` is clip, and ``clip.mov`` is clip.mov."""
    return beside(video, "").name


def _opened(video: Path) -> Path:
    """What a page opens to show a film."""
    return video / (FRAME_NAME % 1) if video.is_dir() else video


def _shown_as(video: Path, encoder: str) -> str:
    """How a page shows a film; see `Film`."""
    made = format_of(video)
    if made.is_folder:
        return "frames"
    if made is GIF_FILE:
        return "picture"
    codecs = [codec for codec in made.codecs if codec.encoder == encoder]
    return "video" if all(codec.in_browsers for codec in codecs) else "file"


def _note(config: RenderConfig, parts: Sequence[Mapping[str, object]], fps: float) -> str:
    if not parts:
        return ""
    until = float(str(parts[-1]["until_frame"])) / fps
    seeds = ", ".join(str(part["seed"]) for part in parts)
    return (
        f"Its first {until:.1f} s come from another film, with seed {seeds}: one command cannot "
        f"render it again. Branch that film at {until:.1f} s with --seed {config.seed}."
    )


def _costs(lines: Sequence[ChunkLine], shown: Sequence[int]) -> list[float]:
    """Seconds that chunks took, as they play, up to the first that is not made yet."""
    ends = [0.0, *(line.elapsed_s for line in lines)]
    took = {
        line.index: round(max(0.0, line.elapsed_s - before), 3)
        for line, before in zip(lines, ends, strict=False)
    }
    return [took[chunk] for chunk in takewhile(took.__contains__, shown)]


def _shots(plan: Plan) -> list[tuple[float, str]]:
    """When each shot begins, in seconds, and what it is."""
    found = []
    for number, span in enumerate(plan.spans):
        begins = plan.chunk(plan.first_of(number)).frame_start / plan.geometry.fps
        found.append((begins, f"{span.prompt}{f' ({span.transition})' if number else ''}"))
    return found


def _compared(settings: Mapping[str, object]) -> dict[str, str]:
    """Settings that may tell films apart, as text."""
    return {
        key: _shown(value)
        for key, value in settings.items()
        if key not in _NOT_COMPARED and key.split(".")[0] not in CHANGES_NO_FRAME
    }


def _shown(value: object) -> str:
    """A value in a table."""
    return "none" if value is None else commands.text_of(value)


def _sheet(video: Path, page: Path) -> str:
    """The link to a film's contact sheet, unless that shows another film of its name."""
    sheet, digest = sheet_of(video), recorded_digest(video)
    shows_it = digest is not None and sheet_text(sheet) == f"{video.name} {digest}"
    return _url(sheet, page) if shows_it else ""


def _relative(path: Path, page: Path) -> str:
    try:
        return os.path.relpath(path, page)
    except ValueError:  # another drive of Windows
        return str(path.absolute())


def _url(path: Path, page: Path) -> str:
    """A link to a file, relative, so that page and films may move together."""
    return quote(_relative(path, page).replace(os.sep, "/"), errors="surrogateescape")


def _again(name: str) -> str:
    path = Path(name)
    return str(path.with_name(f"{path.stem}-again{path.suffix}"))
