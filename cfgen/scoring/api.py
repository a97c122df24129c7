"""Scores films: `cfgen.score` for programs, and what `cfgen score` asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cfgen.errors import InputRefused
from cfgen.metrics.change import ChunkGrid
from cfgen.metrics.film import FilmScore, Likeness, compare_films, score_film
from cfgen.metrics.identity import identity
from cfgen.metrics.table import Row, rows_of
from cfgen.scoring.embedder import Embedder
from cfgen.scoring.embedding import Embedding, Watcher
from cfgen.scoring.filters import Information, filters_of, information, vmaf
from cfgen.scoring.runs import RunFacts, facts_of_run, film_of
from cfgen.scoring.source import FilmSource, open_film
from cfgen.video.ffmpeg import find_ffmpeg

_LATENT_FRAMES = 4
"""Frames of a latent frame: the first chunk has so many fewer than others, and one more."""

_NO_CHUNKS = (
    "where chunks begin is not known, so seams are not scored: score a run folder's film, or give"
    " --chunk-frames"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A film against a reference.

    Attributes:
        source: The reference.
        likeness: PSNR and SSIM, frame by frame.
        vmaf: VMAF; None where the ffmpeg at hand has it not.
    """

    source: FilmSource
    likeness: Likeness
    vmaf: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredFilm:
    """All that is said of one film.

    Attributes:
        source: The film.
        score: Its figures.
        run: What its run folder says; None without one.
        information: SI and TI; None where the ffmpeg at hand has them not, or for one frame.
        against: It against a reference, if one was given.
        embedding: What an embedder says, if one was given.
        notes: What a reader has to know, a sentence each.
    """

    source: FilmSource
    score: FilmScore
    run: RunFacts | None
    information: Information | None
    against: Comparison | None
    embedding: Embedding | None
    notes: tuple[str, ...]

    @property
    def alarms(self) -> tuple[str, ...]:
        """What a viewer would find wrong, a sentence each."""
        return self.score.alarms()

    @property
    def rows(self) -> tuple[Row, ...]:
        """Its figures in rows of ten seconds."""
        return rows_of(self.score)


def score(
    film: Path | str,
    *,
    against: Path | str | None = None,
    embedder: Embedder | Path | str | None = None,
    chunk_frames: int | None = None,
) -> ScoredFilm:
    """Score a film; nothing is written.

    Args:
        film: The film, or its run folder.
        against: A reference of the same size and length, or its run folder.
        embedder: A network that tells how alike frames are, or the folder of its weights, DINOv2 or
            CLIP as transformers saves them.
        chunk_frames: Frames of a chunk after the first, for a film that has no run folder; the
            first then has three fewer, as with Wan.

    Raises:
        InputRefused: A film or the embedder cannot be read, or the two cannot be compared.
        FfmpegMissing: There is no ffmpeg.
    """
    ffmpeg = find_ffmpeg()
    source = open_film(ffmpeg, film_of(Path(film)))
    reference = None if against is None else open_film(ffmpeg, film_of(Path(against)))
    run = facts_of_run(source.path)
    grid = _grid(run, chunk_frames)
    network = Embedder(Path(embedder)) if isinstance(embedder, Path | str) else embedder
    watcher = None if network is None else Watcher(network)
    frames = source.frames() if watcher is None else watcher.passing(source.frames())
    found = score_film(frames, source.fps, grid=grid)
    read = len(found.levels.change)
    if not read:
        raise InputRefused(f"{source.path} has no frames")
    filters = filters_of(ffmpeg)
    notes = [*source.notes(read), *(run.notes if run else ()), *([] if grid else [_NO_CHUNKS])]
    if "siti" not in filters:
        notes.append(f"{ffmpeg.path} was built without the filter siti: SI and TI are not told")
    if reference is not None and "libvmaf" not in filters:
        notes.append(f"{ffmpeg.path} was built without the filter libvmaf: VMAF is not told")
    return ScoredFilm(
        source=source,
        score=found,
        run=run,
        information=information(source) if "siti" in filters else None,
        against=(
            None
            if reference is None
            else _compared(source, reference, with_vmaf="libvmaf" in filters)
        ),
        embedding=None if watcher is None else watcher.embedding(found, source.prompt),
        notes=tuple(notes),
    )


def with_identities(films: Sequence[ScoredFilm]) -> list[ScoredFilm]:
    """Films with their identity, where others show the same prompt with another seed."""

    def others(film: ScoredFilm) -> Iterator[ScoredFilm]:
        for other in films:
            alike = other.source.prompt == film.source.prompt and film.source.prompt is not None
            if alike and other.source.seed != film.source.seed and other.embedding:
                yield other

    told = []
    for film in films:
        embedding = film.embedding
        theirs = [o.embedding.moments for o in others(film) if o.embedding and o.embedding.moments]
        if embedding is not None and embedding.moments is not None and theirs:
            embedding = replace(embedding, identity=identity(embedding.moments, theirs))
        told.append(replace(film, embedding=embedding))
    return told


def _grid(run: RunFacts | None, chunk_frames: int | None) -> ChunkGrid | None:
    if chunk_frames is not None:
        first = max(1, chunk_frames - _LATENT_FRAMES + 1)
        return ChunkGrid(first=first, size=chunk_frames)
    return run.grid if run else None


def _compared(film: FilmSource, reference: FilmSource, *, with_vmaf: bool) -> Comparison:
    for name, one, two in (
        ("pixels wide", film.facts.width, reference.facts.width),
        ("pixels high", film.facts.height, reference.facts.height),
        ("frames a second", film.fps, reference.fps),
    ):
        if one != two:
            raise InputRefused(
                f"{film.path} has {one} {name} and {reference.path} has {two}: only films of one"
                " size and rate are compared"
            )
    likeness = compare_films(film.frames(), reference.frames())
    found = vmaf(film, reference) if with_vmaf else None
    return Comparison(source=reference, likeness=likeness, vmaf=found)


def by_second_psnr(comparison: Comparison) -> list[float | None]:
    """PSNR of each second of a film against its reference, dB; None where all frames are equal."""
    from cfgen.metrics.drift import per_second
    from cfgen.metrics.reference import psnr_of

    means = per_second(comparison.likeness.errors, comparison.source.fps)
    told = (psnr_of(float(mean)) for mean in means)
    return [value if np.isfinite(value) else None for value in told]
