"""A film can be watched while it is rendered, and the preview never stands in the film's way."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from cfgen.config.loader import load
from cfgen.config.schema import to_mapping
from cfgen.errors import FfmpegMissing, SnapshotMismatch
from cfgen.renderer.events import Previewed, Warned
from cfgen.runs.folder import RunFolder, RunRecord
from cfgen.video import preview as module
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.preview import Preview
from tests.render.film import MakeFilm

SIZE = {"width": 32, "height": 16}


def frames(first: int, stop: int) -> npt.NDArray[np.uint8]:
    """Grey frames whose level is 40 and twice their number."""
    return np.stack([np.full((16, 32, 3), 40 + 2 * n, np.uint8) for n in range(first, stop)])


def seen(ffmpeg: Ffmpeg, film: Path) -> list[tuple[float, int]]:
    """Time and level of every frame that a player would show now."""
    argv = [ffmpeg.path, "-hide_banner", "-i", film, "-vf", "format=gray,showinfo", "-f", "null"]
    text = subprocess.run([*argv, "-"], capture_output=True, text=True, check=True).stderr
    found = re.findall(r"pts_time:(\S+).*?mean:\[(\d+)", text)
    return [(float(at), int(level)) for at, level in found]


def expected(fps: Fraction, first: int, stop: int) -> list[tuple[float, int]]:
    return [(float(n / fps), 40 + 2 * n) for n in range(first, stop)]


def matches(found: list[tuple[float, int]], wanted: list[tuple[float, int]]) -> bool:
    return len(found) == len(wanted) and all(
        abs(at - wanted_at) < 1e-4 and abs(level - wanted_level) <= 2
        for (at, level), (wanted_at, wanted_level) in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("fps", [16, 24, Fraction(30000, 1001)], ids=str)
def test_what_is_there_plays_while_more_is_added(
    ffmpeg: Ffmpeg, tmp_path: Path, fps: float | Fraction
) -> None:
    preview = Preview(tmp_path, fps=fps, ffmpeg=ffmpeg, **SIZE)
    preview.write(frames(0, 9), 0)
    preview.write(frames(9, 21), 9)
    for _ in range(200):  # it is written by a process beside this one
        found = seen(ffmpeg, preview.film) if preview.film.stat().st_size > 800 else []
        if len(found) >= 20:
            break
        time.sleep(0.1)
    assert matches(found[:20], expected(Fraction(fps), 0, 20))  # the last waits for the next
    preview.stop()
    assert matches(seen(ffmpeg, preview.film), expected(Fraction(fps), 0, 21))


@pytest.mark.parametrize(("first", "cut_off"), [(9, 0), (12, 0), (12, 5), (0, 0), (21, 0), (30, 0)])
def test_a_session_goes_on_where_the_film_does(
    ffmpeg: Ffmpeg, tmp_path: Path, first: int, cut_off: int
) -> None:
    before = Preview(tmp_path, fps=16, ffmpeg=ffmpeg, **SIZE)
    before.write(frames(0, 21), 0)
    before.stop()
    if cut_off:  # as a killed process leaves it
        before.film.write_bytes(before.film.read_bytes()[:-cut_off])
    after = Preview(tmp_path, fps=16, ffmpeg=ffmpeg, **SIZE)
    deep = frames(first, first + 12).astype(np.uint16) * 257
    after.write(deep, first)
    after.stop()
    kept = expected(Fraction(16), 0, min(first, 21))
    assert matches(seen(ffmpeg, after.film), kept + expected(Fraction(16), first, first + 12))


@pytest.mark.parametrize("content", [b"", b"no film", bytes(4000)])
def test_what_is_no_preview_is_begun_anew(ffmpeg: Ffmpeg, tmp_path: Path, content: bytes) -> None:
    (tmp_path / module.FILM).write_bytes(content)
    preview = Preview(tmp_path, fps=16, ffmpeg=ffmpeg, **SIZE)
    preview.write(frames(3, 5), 3)
    preview.stop()
    assert [level for _, level in seen(ffmpeg, preview.film)] == pytest.approx([46, 48], abs=2)


def test_frames_of_more_bits_are_shown_as_they_are(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    preview = Preview(tmp_path, fps=16, ffmpeg=ffmpeg, **SIZE)
    preview.write(frames(0, 9).astype(np.uint16) * 256 + 255, 0)
    preview.stop()
    assert matches(seen(ffmpeg, preview.film), expected(Fraction(16), 0, 9))


def test_the_picture_is_the_newest_frame(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    preview = Preview(tmp_path, fps=16, ffmpeg=ffmpeg, **SIZE)
    preview.write(frames(0, 9), 0)
    with PIL.Image.open(preview.picture) as image:
        assert image.size == (32, 16)
        assert image.getpixel((5, 5)) == pytest.approx((56, 56, 56), abs=2)
    preview.remove()
    assert not list(tmp_path.iterdir())


def test_without_h264_it_is_refused_before_anything_is_made(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    other = Ffmpeg(ffmpeg.path, ffmpeg.version, frozenset({"ffv1"}))
    with pytest.raises(FfmpegMissing, match="libx264"):
        Preview(tmp_path, fps=16, ffmpeg=other, **SIZE)


def test_a_film_with_a_preview_is_the_same_film(film: MakeFilm, ffmpeg: Ffmpeg) -> None:
    made = film("preview=true")
    shown: list[int] = []
    for event in made.events(resume=False):
        if isinstance(event, Previewed):
            shown.append(len(seen(ffmpeg, event.film)) if event.film.stat().st_size else 0)
            assert event.picture.is_file()
    assert len(shown) == 8
    assert made.output.read_bytes() == film.expected()
    assert not list(made.run.glob("preview*"))


def test_a_resumed_film_has_its_whole_preview(film: MakeFilm, ffmpeg: Ffmpeg) -> None:
    made = film("preview=true")
    made.until(4)
    counts: list[list[float]] = []
    for event in made.events(resume=True):
        if isinstance(event, Previewed):
            counts.append([at for at, _ in seen(ffmpeg, event.film)])
    assert all(times == sorted(set(times)) for times in counts)
    assert len(counts[-1]) > 57
    assert made.output.read_bytes() == film.expected()


def test_a_preview_that_fails_stops_nothing_else(
    film: MakeFilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise module.WriterError("no picture today")

    monkeypatch.setattr(module, "jpeg_bytes", refuse)
    made = film("preview=true")
    told = [event for event in made.events(resume=False) if isinstance(event, Warned)]
    assert [event.message for event in told] == ["the preview ends here: no picture today"]
    assert made.output.read_bytes() == film.expected()


def test_boxes_that_come_in_pieces_are_put_together() -> None:
    whole = b"".join(
        len(body + b"....kind").to_bytes(4, "big") + b"kind" + body for body in (b"a", b"bcd")
    )

    def pieces(nbytes: int) -> Iterator[bytes]:
        return (whole[at : at + nbytes] for at in range(0, len(whole), nbytes))

    for nbytes in range(1, len(whole) + 1):
        assert [box[8:] for _, box in module._boxes(pieces(nbytes))] == [b"a", b"bcd"]
    assert list(module._boxes(pieces(3))) == list(module._boxes(iter([whole, b"\0\0"])))


@pytest.mark.parametrize(
    ("key", "value", "goes_on"),
    [
        ("preview", True, True),
        ("contact_sheet", False, True),
        ("placement", {"offload": "none", "vram": None}, True),
        ("snapshot", {"mode": "latents"}, True),
        ("cuda_graph", False, True),
        ("seed", 4, False),
        ("schedule", {"shift": 1.0}, False),
    ],
)
def test_a_render_goes_on_with_another_value_of_what_changes_no_frame(
    tmp_path: Path, key: str, value: object, goes_on: bool
) -> None:
    config = to_mapping(load({"prompt": "a boat", "seed": "3", "output": "a.mp4"}).config)
    record = RunRecord(
        output="a.mp4", overwrite=False, config=config, fingerprint={}, created="2026-01-01"
    )
    folder = RunFolder.create(tmp_path / "a.cfgen", record)
    now = replace(record, config={**config, key: value})
    if goes_on:
        folder.expect(now, allow_changed=())
    else:
        with pytest.raises(SnapshotMismatch):
            folder.expect(now, allow_changed=())
