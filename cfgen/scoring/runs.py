"""What a run folder says of its film: where chunks begin, and the latents that it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cfgen.errors import CfgenError, InputRefused, SnapshotCorrupt
from cfgen.files.reading import read_bytes
from cfgen.metrics.change import ChunkGrid
from cfgen.metrics.latents import LatentDrift, latent_drift
from cfgen.runs.folder import RunFolder, is_run
from cfgen.runs.journal import ChunkLine
from cfgen.video.output import is_film, resume_command, run_of

if TYPE_CHECKING:
    from cfgen.metrics.latents import Latents
    from cfgen.timeline import Plan

_LIMIT = 1 << 32
"""Bytes that a file of latents may have."""
_BETWEEN = "frames were worked out between those that were made, so chunks are not told apart"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What a run folder says of its film.

    Attributes:
        path: The run folder.
        grid: Where chunks begin; None if that cannot be told.
        at_s: Where each chunk that has latents begins to play, in seconds.
        latents: How the latents drift, a figure a chunk; None if they cannot be told.
        notes: What could not be told, and why.
    """

    path: Path
    grid: ChunkGrid | None = None
    at_s: tuple[float, ...] = ()
    latents: LatentDrift | None = None
    notes: tuple[str, ...] = field(default=())


def film_of(given: Path) -> Path:
    """The film that a person means by its own name or by that of its run folder.

    Raises:
        InputRefused: There is none, or it is not finished.
        SnapshotError, SnapshotCorrupt: The run folder is damaged.
    """
    if not given.is_dir() or is_film(given):
        return given
    if not is_run(given):
        raise InputRefused(
            f"{given} is a folder and no run folder", "give its films, or compare folders: --paired"
        )
    film = RunFolder(given).output
    if not is_film(film):
        raise InputRefused(
            f"{film} is not there: {given} is not finished", f"`{resume_command(given)}`"
        )
    return film


def facts_of_run(film: Path) -> RunFacts | None:
    """What the run folder of a film says; None without one, or if the film is not its own."""
    path = run_of(film)
    if not is_run(path):
        return None
    try:
        folder = RunFolder(path)
        if folder.output.name != film.name or folder.finished is None:
            return None
        plan, is_between = _planned(folder)
    except CfgenError as error:
        return RunFacts(
            path=path, notes=(f"{path.name} does not tell where chunks begin: {error}",)
        )
    notes = (_BETWEEN,) if is_between else ()
    facts = RunFacts(path=path, grid=None if is_between else grid_of(plan), notes=notes)
    lines = [line for line in folder.journal.of(ChunkLine) if _is_whole(plan, line.index)]
    lines.sort(key=lambda line: line.index)
    try:
        drift = latent_drift(_kept(folder, lines))
    except (InputRefused, SnapshotCorrupt) as error:
        note = f"the latents of {path.name} are not scored: {error}"
        return replace(facts, notes=(*notes, note))
    at_s = tuple(plan.chunk(line.index).frame_start / plan.geometry.fps for line in lines)
    return replace(facts, at_s=at_s, latents=drift)


def grid_of(plan: Plan) -> ChunkGrid:
    """Where the chunks of a plan begin; a shot is meant to look like no frame before it."""
    geometry = plan.geometry
    size = geometry.chunk_latent_frames * geometry.temporal_stride
    shown = geometry.frames_of(plan.latent_start(plan.hidden_chunks + 1))
    return ChunkGrid(
        first=shown - plan.hidden_frames,
        size=size,
        scenes=tuple(
            plan.chunk(plan.first_of(number)).frame_start for number in range(1, len(plan.spans))
        ),
    )


def _planned(folder: RunFolder) -> tuple[Plan, bool]:
    """The plan of a run, and whether its film has frames between those of the plan."""
    from cfgen.pipeline.job import RenderJob
    from cfgen.pipeline.runs import config_of

    config = config_of(folder)
    return RenderJob(config).plan, config.encode.interpolate is not None


def _is_whole(plan: Plan, index: int) -> bool:
    """Whether a chunk is shown and has as many latent frames as others."""
    whole = plan.geometry.chunk_latent_frames
    return plan.hidden_chunks <= index < plan.chunks and plan.chunk(index).latent_frames == whole


def _kept(folder: RunFolder, lines: list[ChunkLine]) -> Iterator[Latents]:
    """The latents of chunks, float32 [frames, channels, height, width] each."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    for line in lines:
        path = folder.latents(line.index)
        try:
            latents = load(read_bytes(path, limit=_LIMIT))["latents"]
        except (OSError, SafetensorError, KeyError) as error:
            raise SnapshotCorrupt(f"cannot read {path}: {error}") from None
        if latents.ndim != 5 or latents.shape[0] != 1 or not latents.is_floating_point():
            raise SnapshotCorrupt(f"{path} holds no latents")
        yield latents[0].float().numpy()
