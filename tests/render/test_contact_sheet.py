"""Contact sheets show the frames that they say, and take nobody's place."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from cfgen.errors import OutputRefused
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.rendering import Rendering
from cfgen.renderer.events import Finished, Warned
from cfgen.video import contact_sheet as module
from cfgen.video.contact_sheet import (
    Shown,
    sample_frames,
    sheet_of,
    sheet_text,
    write_comparison_sheet,
    write_film_sheet,
)
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.output import recorded_digest
from cfgen.video.writer import VideoWriter
from tests.render.film import Film, MakeFilm


def grey_film(ffmpeg: Ffmpeg, folder: Path, frames: int, *, name: str = "grey") -> Shown:
    """A film whose frames are ever lighter."""
    path = folder / f"{name}.mp4"
    levels = np.linspace(20, 220, frames).astype(np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (frames, 96, 160, 3)).copy()
    parts = folder / f"{name}-parts"
    options = {"width": 160, "height": 96, "fps": 16, "quality": "best", "metadata": {}}
    with VideoWriter(path, ffmpeg=ffmpeg, parts=parts, **options) as writer:  # type: ignore[arg-type]
        writer.write(pixels)
        writer.join()
        writer.publish()
    return Shown(path=path, frames=frames, fps=Fraction(16), width=160, height=96)


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [(1, 12, [0]), (3, 12, [0, 1, 2]), (12, 12, list(range(12))), (100, 4, [12, 37, 62, 87])],
)
def test_frames_are_the_middles_of_equal_parts(
    frames: int, count: int, expected: list[int]
) -> None:
    assert sample_frames(frames, count) == expected


@pytest.mark.parametrize("ending", ["png", "gif", "mkv"])
def test_films_of_every_kind_have_sheets(film: MakeFilm, ending: str) -> None:
    made = film(f"encode.format={ending}")
    made.folder.mkdir()
    *_, finished = Rendering(RenderJob(made.config))
    assert isinstance(finished, Finished)
    assert finished.sheet == made.folder / f"clip.{ending}.sheet.jpg"
    text = sheet_text(sheet_of(made.output))
    assert text == f"{made.output.name} {recorded_digest(made.output)}"


@pytest.mark.parametrize("frames", [1, 5, 48])
def test_a_sheet_shows_these_frames_in_order(ffmpeg: Ffmpeg, tmp_path: Path, frames: int) -> None:
    film = grey_film(ffmpeg, tmp_path, frames)
    sheet = sheet_of(film.path)
    write_film_sheet(ffmpeg, film, sheet, sha256="abc")
    numbers = sample_frames(frames, 12)
    rows = -(-len(numbers) // 4)
    with PIL.Image.open(sheet) as image:
        assert image.size == (min(4, len(numbers)) * 164 + 4, rows * 100 + 4)
        shown = [
            image.getpixel((4 + 80 + 164 * (i % 4), 4 + 30 + 100 * (i // 4)))[0]  # type: ignore[index]
            for i in range(len(numbers))
        ]
    levels = np.linspace(20, 220, frames).astype(np.uint8)
    assert shown == pytest.approx([int(levels[n]) for n in numbers], abs=3)
    assert sheet_text(sheet) == "grey.mp4 abc"


def test_several_films_are_rows_of_one_sheet(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    films = [grey_film(ffmpeg, tmp_path, n, name=f"film-{n}") for n in (3, 48)]
    write_comparison_sheet(ffmpeg, films, tmp_path / "sheet.jpg")
    with PIL.Image.open(tmp_path / "sheet.jpg") as image:
        assert image.size == (6 * 164 + 4, 2 * 100 + 4)


@pytest.mark.parametrize("content", [b"", b"my own", "picture"])
def test_what_is_somebody_elses_is_not_replaced(
    ffmpeg: Ffmpeg, tmp_path: Path, content: bytes | str
) -> None:
    film = grey_film(ffmpeg, tmp_path, 3)
    sheet = sheet_of(film.path)
    if isinstance(content, bytes):
        sheet.write_bytes(content)
    else:
        PIL.Image.new("RGB", (8, 8)).save(sheet)
    before = sheet.read_bytes()
    with pytest.raises(OutputRefused):
        write_film_sheet(ffmpeg, film, sheet)
    assert sheet.read_bytes() == before


def rendered(film: Film) -> list[object]:
    return list(Rendering(RenderJob(film.config), models=film.models))


def test_a_finished_film_has_its_sheet(film: MakeFilm) -> None:
    made = film()
    made.folder.mkdir()
    last = rendered(made)[-1]
    assert isinstance(last, Finished)
    assert last.sheet == sheet_of(made.output)
    assert module.is_sheet(last.sheet)


def test_a_key_turns_it_off(film: MakeFilm) -> None:
    made = film("contact_sheet=false")
    made.folder.mkdir()
    last = rendered(made)[-1]
    assert isinstance(last, Finished)
    assert last.sheet is None
    assert not sheet_of(made.output).exists()


def test_a_sheet_that_cannot_be_written_is_a_warning(film: MakeFilm) -> None:
    made = film()
    made.folder.mkdir()
    sheet_of(made.output).write_bytes(b"mine")
    *_, warned, last = rendered(made)
    assert isinstance(warned, Warned)
    assert "contact sheet" in warned.message
    assert isinstance(last, Finished)
    assert made.output.read_bytes() == film.expected()
