"""Contact sheets: frames of films on one picture, evenly spaced, each with its time.

A sheet says in its JPEG comment what it shows, so that it is known for one of ours.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cfgen.errors import OutputRefused
from cfgen.files.reading import read_bytes
from cfgen.files.writing import disk_errors, write_file
from cfgen.units import clock
from cfgen.video.ffmpeg import Ffmpeg, FfmpegRun
from cfgen.video.ffmpeg_graph import argv_of
from cfgen.video.measure import film_input
from cfgen.video.output import beside

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BaseFont

COLUMNS, ROWS = 4, 3
"""Frames of a film's sheet; a film of fewer frames has fewer."""
_CELL_WIDTH = 320
_GAP = 4
_GROUND = (18, 18, 20)
_INK = (244, 244, 245)
_QUALITY = 88
_MARK = "cfgen contact sheet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A film on a sheet.

    Attributes:
        path: The film.
        frames: Frames in it.
        fps: Its rate.
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        label: What stands over its frames, in letters of Latin script; or empty.
    """

    path: Path
    frames: int
    fps: Fraction
    width: int
    height: int
    label: str = ""


def sheet_of(output: Path) -> Path:
    """Where the contact sheet of a video is: ``clip.mp4`` has ``clip.sheet.jpg``."""
    return beside(output, ".sheet.jpg")


def sample_frames(frames: int, count: int) -> list[int]:
    """Numbers of frames, evenly spaced: the middles of as many equal parts of a film.

    Args:
        frames: Frames of the film, at least 1.
        count: How many; a film of fewer frames gives all.
    """
    count = min(frames, count)
    return [(2 * part + 1) * frames // (2 * count) for part in range(count)]


def write_film_sheet(ffmpeg: Ffmpeg, film: Shown, sheet: Path, *, sha256: str = "") -> None:
    """Write the contact sheet of one film, twelve frames in rows of four.

    Args:
        ffmpeg: The ffmpeg to read it with.
        film: The film.
        sheet: The picture.
        sha256: Digest of the film's file, which the sheet tells.

    Raises:
        OutputRefused: A file that is no sheet of cfgen has its place.
        WriterError: ffmpeg cannot read the film, or the disk refused.
    """
    numbers = sample_frames(film.frames, COLUMNS * ROWS)
    cells = _cells(ffmpeg, film, numbers)
    rows = [cells[at : at + COLUMNS] for at in range(0, len(cells), COLUMNS)]
    _write(rows, [film.label, *("" for _ in rows[1:])], sheet, f"{film.path.name} {sha256}")


def write_comparison_sheet(ffmpeg: Ffmpeg, films: Sequence[Shown], sheet: Path) -> None:
    """Write one sheet of several films, a row each, with their labels.

    Raises: as `write_film_sheet`.
    """
    rows = []
    for film in films:
        rows.append(_cells(ffmpeg, film, sample_frames(film.frames, COLUMNS + 2)))
    names = ", ".join(film.path.name for film in films)
    _write(rows, [film.label for film in films], sheet, names)


def is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet of cfgen's."""
    return sheet_text(path) is not None


def sheet_text(path: Path) -> str | None:
    """What a contact sheet says that it shows; None if the file is none of cfgen's."""
    import PIL.Image

    try:
        comment = PIL.Image.open(io.BytesIO(read_bytes(path))).info.get("comment", b"")
    except (OSError, ValueError, SyntaxError):
        return None
    text = comment.decode(errors="replace") if isinstance(comment, bytes) else str(comment)
    return text.removeprefix(f"{_MARK}: ") if text.startswith(_MARK) else None


def _cells(ffmpeg: Ffmpeg, film: Shown, numbers: Sequence[int]) -> list[Image]:
    """Frames of a film, small, each with its time."""
    import PIL.Image

    width = min(film.width, _CELL_WIDTH)
    height = max(1, round(film.height * width / film.width))
    chosen = "+".join(f"eq(n,{number})" for number in numbers)
    output = (
        film_input(film.path, film.fps)
        .filter("select", chosen)
        .filter("scale", width, height, flags="area+accurate_rnd+full_chroma_int")
        .output("pipe:1", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough")
    )
    argv = argv_of(output, ffmpeg.prefix())
    with FfmpegRun(argv, purpose=f"reading {film.path.name}", read=True) as run:
        frames = list(run.blocks(width * height * 3))
        run.finish()
    cells = []
    for number, frame in zip(numbers, frames, strict=False):
        pixels = np.frombuffer(frame, np.uint8).reshape(height, width, 3)
        cell = PIL.Image.fromarray(pixels.copy())
        _stamp(cell, _time(number, film))
        cells.append(cell)
    return cells


def _time(number: int, film: Shown) -> str:
    """When a frame plays; with tenths of a second where that tells frames of a sheet apart."""
    seconds = number / film.fps
    if film.frames / film.fps >= 2 * COLUMNS * ROWS:
        return clock(math.floor(seconds))
    return f"{float(seconds):.1f} s"


def _stamp(cell: Image, text: str) -> None:
    """Write on the lower left of a frame, on a dark ground."""
    from PIL import ImageDraw

    draw, font = ImageDraw.Draw(cell), _font(max(9, min(14, cell.width // 14)))
    box = draw.textbbox((0, 0), text, font=font)
    wide, high = box[2] - box[0] + 8, box[3] - box[1] + 6
    draw.rectangle((0, cell.height - high, wide, cell.height), fill=_GROUND)
    draw.text((4 - box[0], cell.height - high + 3 - box[1]), text, font=font, fill=_INK)


def _write(rows: Sequence[Sequence[Image]], labels: Sequence[str], sheet: Path, text: str) -> None:
    """Lay rows of pictures out, and write them as one."""
    import PIL.Image
    from PIL import ImageDraw

    if (sheet.exists() or sheet.is_symlink()) and not is_sheet(sheet):
        raise OutputRefused(
            f"{sheet} is no contact sheet of cfgen, and is not replaced",
            "move it away, or leave the sheet out with --set contact_sheet=false",
        )
    line = 24
    heads = [line if label else 0 for label in labels]
    heights = [max(cell.height for cell in row) for row in rows]
    width = max(sum(cell.width + _GAP for cell in row) for row in rows) + _GAP
    height = sum(heights) + sum(heads) + _GAP * (len(rows) + 1)
    page = PIL.Image.new("RGB", (width, height), _GROUND)
    draw, top = ImageDraw.Draw(page), _GAP
    for row, label, head, high in zip(rows, labels, heads, heights, strict=True):
        if label:
            draw.text((_GAP + 2, top + line // 2), label, font=_font(15), fill=_INK, anchor="lm")
        left = _GAP
        for cell in row:
            page.paste(cell, (left, top + head))
            left += cell.width + _GAP
        top += head + high + _GAP
    made = io.BytesIO()
    comment = f"{_MARK}: {text}".encode(errors="replace")
    page.save(made, "JPEG", quality=_QUALITY, subsampling=0, comment=comment)
    with disk_errors(sheet):
        write_file(sheet, made.getvalue())


def _font(size: int) -> FreeTypeFont | BaseFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
