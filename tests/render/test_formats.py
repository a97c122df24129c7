"""Each row of the table of formats: a film in it is made and read back, with sound too."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cfgen.config.keys import keys
from cfgen.errors import FfmpegMissing, UsageError
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.formats import FORMATS, Codec, OutputFormat
from cfgen.video.measure import measure
from tests.render.test_writer import SIZE, ask, moving, writer

SEGMENTS = (5, 1, 16)
CASES = [
    (made, codec, bits)
    for made in FORMATS.values()
    for codec in made.codecs
    for bits in codec.pixel_formats
]
each_format = pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)
each_case = pytest.mark.parametrize(
    ("made", "codec", "bits"), CASES, ids=[f"{m.ending}-{c.key}-{b}" for m, c, b in CASES]
)


def deep(count: int, start: int = 0) -> npt.NDArray[np.uint16]:
    """`moving` in 16 bits, with a ramp over it that 8 bits cannot hold."""
    fine = np.arange(SIZE, dtype=np.uint16) * 32
    return np.ascontiguousarray(moving(count, start).astype(np.uint16) * 256 + fine[:, None])


def make(film: Path, ffmpeg: Ffmpeg, codec: Codec, bits: int, **changes: object) -> None:
    frames, start = moving if bits == 8 else deep, 0
    with writer(film, ffmpeg, codec=codec.key, bits=bits, **changes) as video:
        for count in SEGMENTS:
            video.write(frames(count, start))
            video.end_segment()
            start += count
        assert video.join().encoder == codec.encoder
        video.publish()


def psnr(ffmpeg: Ffmpeg, film: Path, bits: int) -> float:
    """PSNR in dB of the film's frames against those that were written."""
    layout, depth = ("rgb24", np.uint8) if bits == 8 else ("rgb48le", np.uint16)
    raw, _ = ask(ffmpeg, film, "-f", "rawvideo", "-pix_fmt", layout, "-")
    frames = np.frombuffer(raw, depth).reshape(-1, SIZE, SIZE, 3)
    error = frames.astype(float) - (moving if bits == 8 else deep)(sum(SEGMENTS))
    mean = float(np.square(error).mean())
    return math.inf if mean == 0 else 20 * math.log10(np.iinfo(depth).max / math.sqrt(mean))


@each_case
def test_a_format_joins_segments_of_any_length_exactly(
    made: OutputFormat, codec: Codec, bits: int, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    assert codec.exact_joins
    film = tmp_path / f"a{made.ending.upper()}"
    make(film, ffmpeg, codec, bits, fps=24000 / 1001)
    told = ask(ffmpeg, film, "-f", "null", "-")[1]
    assert codec.pixel_formats[bits] in told
    assert ("gbr" if codec.rgb else "bt709") in told
    assert "23.98 fps" in told
    assert not (codec.tag and made.takes_tags) or codec.tag in told
    # Colour has half the rows, which costs most at the edges of the square.
    floor = math.inf if codec.rgb and bits == 8 else 50 if codec.rgb else 26
    assert psnr(ffmpeg, film, bits) >= floor


@each_format
def test_a_format_carries_the_sound_that_it_says(
    made: OutputFormat, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    film = tmp_path / f"a{made.ending}"
    make(film, ffmpeg, made.codec, made.codec.bits)
    for encoder in made.audio:
        heard = tmp_path / f"{encoder}{made.ending}"
        tone = ("-f", "lavfi", "-i", "sine=duration=1:sample_rate=48000")
        ask(ffmpeg, film, *tone, "-c:v", "copy", "-c:a", encoder, str(heard))
        assert "Audio:" in ask(ffmpeg, heard, "-f", "null", "-")[1]


@pytest.mark.parametrize(
    ("name", "codec", "bits", "says"),
    [
        ("a.webm", "h264", None, r"\.webm files do not carry h264; they carry vp9, av1"),
        ("a.mp4", "ffv1", None, r"\.mp4 files do not carry ffv1"),
        ("a.mp4", "h266", None, "the codec 'h266' is unknown; the codecs of .mp4 are h264, h265"),
        ("a.mp4", "h264", 10, "H.264 is written with 8 bits, not 10"),
        ("a.mov", "prores", 8, "ProRes 422 is written with 10 bits, not 8"),
    ],
)
def test_what_a_format_does_not_carry_is_refused_by_name(
    name: str, codec: str, bits: int | None, says: str, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    with pytest.raises(UsageError, match=says):
        writer(tmp_path / name, ffmpeg, codec=codec, bits=bits)


@each_case
def test_an_encoder_that_ffmpeg_lacks_is_named(
    made: OutputFormat, codec: Codec, bits: int, tmp_path: Path
) -> None:
    bare = Ffmpeg(Path("/opt/ffmpeg"), "7.0", frozenset())
    with pytest.raises(FfmpegMissing, match=f"without the encoder {codec.encoder}"):
        writer(tmp_path / f"a{made.ending}", bare, codec=codec.key, bits=bits)


def test_times_that_a_file_rounds_are_within_a_tick(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    film = tmp_path / "a.mkv"
    made = FORMATS[".mkv"]
    make(film, ffmpeg, made.codec, 8, fps=24)
    assert measure(ffmpeg, film, decode=False, near=Fraction(24)).fps == 24
    assert measure(ffmpeg, film, decode=False, near=Fraction(25)).fps is None


def test_codecs_have_the_qualities_that_can_be_set() -> None:
    for made in FORMATS.values():
        for codec in made.codecs:
            assert tuple(codec.qualities) == keys()["encode.quality"].values
