"""`cfgen score`: whether a film holds from its beginning to its end, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfgen.cli import options
from cfgen.cli.console import Console
from cfgen.cli.score_text import lines_on, paired_lines
from cfgen.errors import CfgenError, UsageError

if TYPE_CHECKING:
    from cfgen.scoring.api import ScoredFilm
    from cfgen.scoring.embedder import Embedder

app = options.command_app()

Films = Annotated[
    list[Path],
    typer.Argument(metavar="FILM", help="Films or run folders; with --paired, folders of films."),
]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against", metavar="FILM", help="A reference of the same size, rate and length."
    ),
]
EmbedderFolder = Annotated[
    Path | None,
    typer.Option(
        "--embedder",
        metavar="DIR",
        help="A folder with DINOv2 or CLIP, as transformers saves them: how alike frames are.",
    ),
]
ChunkFrames = Annotated[
    int | None,
    typer.Option(
        "--chunk-frames",
        metavar="N",
        min=1,
        help="Frames of a chunk after the first, for films without a run folder; 12 with Wan.",
    ),
]
PairedFlag = Annotated[
    bool,
    typer.Option(
        "--paired",
        help="Compare folders with the first one, over the prompts and seeds that they share.",
    ),
]
ExportVbench = Annotated[
    Path | None,
    typer.Option(
        "--export-vbench", metavar="DIR", help="Put the films into a folder as VBench reads it."
    ),
]
ScoreFile = Annotated[
    Path | None,
    options.option(
        "-o, --output", "FILE", options.OUTPUT, "Where the score of one film goes as JSON."
    ),
]


@app.command()
@options.takes(options.Json, options.Quiet, options.Debug)
def score(
    ctx: typer.Context,
    films: Films,
    against: Against = None,
    embedder: EmbedderFolder = None,
    chunk_frames: ChunkFrames = None,
    paired: PairedFlag = False,
    export_vbench: ExportVbench = None,
    output: ScoreFile = None,
) -> None:
    """Tell in figures whether a film holds from its beginning to its end.

    For every ten seconds: brightness, contrast, saturation, detail, motion, flicker, how chunks
    meet, cuts, freezes and black. The row `drift` is the last fifth of the film over its seconds 4
    to 8. A still film has no flicker and is all alike: read these figures beside motion.

    All of it goes into score.json in the film's run folder, or beside a film that has none, as
    FILM.score.json.

    \b
    Examples:
      cfgen score clip.mp4
      cfgen score clip.mp4 --against reference.mp4
      cfgen score window/ slow_fast/ --paired --embedder dinov2-small/
    """
    console = options.console_of(ctx)
    _require_together(
        films, against=against, paired=paired, exported=export_vbench is not None, output=output
    )
    network = None if embedder is None else _embedder(embedder)
    if paired:
        _compare(console, films, network, chunk_frames)
        return
    if export_vbench is not None:
        _export(console, films, export_vbench)
        return
    _score(console, films, against, network, chunk_frames, output)


def _require_together(
    films: Sequence[Path],
    *,
    against: Path | None,
    paired: bool,
    exported: bool,
    output: Path | None,
) -> None:
    """Refuse flags that say nothing together."""
    if exported and (paired or against is not None or output is not None):
        raise UsageError("--export-vbench scores nothing, and goes with films alone")
    if paired and len(films) < 2:
        raise UsageError("--paired compares two folders or more", "cfgen score A B --paired")
    if paired and against is not None:
        raise UsageError("--paired compares folders, and --against one film with another")
    if output is not None and (len(films) > 1 or paired):
        raise UsageError("-o names the score of one film", "without it each has its own beside it")


def _embedder(folder: Path) -> Embedder:
    from cfgen.scoring.embedder import Embedder

    return Embedder(folder)


def _score(
    console: Console,
    films: Sequence[Path],
    against: Path | None,
    network: Embedder | None,
    chunk_frames: int | None,
    output: Path | None,
) -> None:
    from cfgen.scoring import api
    from cfgen.scoring.record import score_record, write_score

    found = []
    for film in films:
        console.note(f"scoring {film}")
        found.append(api.score(film, against=against, embedder=network, chunk_frames=chunk_frames))
    told = api.with_identities(found)
    written, lost = [], []
    for scored in told:
        try:
            written.append(write_score(scored, output))
        except CfgenError as error:
            lost.append(error)
    text = "\n\n\n".join("\n".join(lines_on(film)) for film in told)
    places = [f"written   {path}" for path in written]
    data = {"films": [score_record(film) for film in told], "written": [str(p) for p in written]}
    console.result("\n".join([text, *places]), data, ok=not lost)
    for reason in lost:
        console.warn(f"a score is not written: {reason}", reason.hint)
    if lost:
        raise typer.Exit(1)


def _compare(
    console: Console, folders: Sequence[Path], network: Embedder | None, chunk_frames: int | None
) -> None:
    from dataclasses import asdict

    from cfgen.scoring.api import score, with_identities
    from cfgen.scoring.settings import by_key, compare_settings, films_in

    def scored(folder: Path) -> list[ScoredFilm]:
        films = []
        for film in films_in(folder):
            console.note(f"scoring {film}")
            films.append(score(film, embedder=network, chunk_frames=chunk_frames))
        return with_identities(films)

    base, *others = (by_key(scored(folder)) for folder in folders)
    blocks, data = [], []
    for folder, other in zip(folders[1:], others, strict=True):
        found = compare_settings(base, other)
        blocks.append("\n".join(paired_lines(str(folder), str(folders[0]), found)))
        rows = [{**asdict(row), "told_apart": row.paired.told_apart} for row in found]
        data.append({"base": str(folders[0]), "other": str(folder), "figures": rows})
    console.result("\n\n".join(blocks), {"compared": data})


def _export(console: Console, films: Sequence[Path], folder: Path) -> None:
    from cfgen.scoring.runs import film_of
    from cfgen.scoring.settings import films_in
    from cfgen.scoring.vbench import export_vbench
    from cfgen.units import count
    from cfgen.video.output import is_film

    listed: list[Path] = []
    for given in films:
        is_folder = given.is_dir() and given.suffix != ".cfgen" and not is_film(given)
        listed += films_in(given) if is_folder else [film_of(given)]
    found = export_vbench(listed, folder)
    for note in found.notes:
        console.warn(note)
    files = {name: str(film) for name, film in found.files.items()}
    text = f"{count(len(files), 'film')} in {found.folder}, for VBench"
    console.result(text, {"folder": str(found.folder), "files": files})
