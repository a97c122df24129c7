"""Each row of the table of formats: a film in it is made and read back, with sound too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cfgen.config.keys import keys
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.formats import FORMATS, OutputFormat
from cfgen.video.measure import measure
from tests.render.test_writer import ask, decoded, moving, render

each_format = pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)


@each_format
def test_a_format_joins_segments_of_any_length_exactly(
    made: OutputFormat, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    assert made.codec.exact_joins
    film = tmp_path / f"a{made.ending.upper()}"
    facts = render(film, ffmpeg, [5, 1, 16])
    assert facts.encoder == made.codec.encoder
    assert all(measure(ffmpeg, film, decode=way).fps == 16 for way in (False, True))
    error = decoded(ffmpeg, film).astype(int) - moving(22)
    assert np.sqrt(np.square(error).mean()) < 12  # PSNR of 26 dB: colour has half the rows
    assert made.codec.pixel_format in ask(ffmpeg, film, "-f", "null", "-")[1]


@each_format
def test_a_format_carries_the_sound_that_it_says(
    made: OutputFormat, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    film = tmp_path / f"a{made.ending}"
    render(film, ffmpeg, [16])
    for encoder in made.audio:
        heard = tmp_path / f"{encoder}{made.ending}"
        tone = ("-f", "lavfi", "-i", "sine=duration=1:sample_rate=48000")
        ask(ffmpeg, film, *tone, "-c:v", "copy", "-c:a", encoder, str(heard))
        assert "Audio:" in ask(ffmpeg, heard, "-f", "null", "-")[1]


def test_codecs_have_the_qualities_that_can_be_set() -> None:
    for made in FORMATS.values():
        for codec in made.codecs:
            assert tuple(codec.qualities) == keys()["encode.quality"].values
