"""Each row of the table of formats: a film in it is made and read back, with sound and texts."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cfgen.config.keys import keys
from cfgen.errors import FfmpegMissing, OutputRefused, UsageError
from cfgen.runs.beginning import SOUND
from cfgen.video.codecs import AV1, H264, H265, PNG, VP9, Codec
from cfgen.video.facts import Chapter, VideoFacts
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.formats import FORMATS, FRAME_NAME, OutputFormat
from cfgen.video.measure import measure
from cfgen.video.output import sidecar_of
from tests.render.inputs import ffmpeg as run_ffmpeg
from tests.render.test_writer import SIZE, ask, moving, render, writer

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


def make(film: Path, ffmpeg: Ffmpeg, codec: Codec, bits: int, **changes: object) -> VideoFacts:
    frames, start = moving if bits == 8 else deep, 0
    sound = changes.pop("sound", None)
    with writer(film, ffmpeg, codec=codec.key, bits=bits, **changes) as video:
        video.sound = sound if isinstance(sound, Path) else None
        for count in SEGMENTS:
            video.write(frames(count, start))
            video.end_segment()
            start += count
        facts = video.join()
        video.publish()
    assert facts.encoder == codec.encoder
    return facts


def tone(folder: Path) -> Path:
    """A sound as a run folder keeps it."""
    source = "sine=duration=1.375:sample_rate=48000"
    run_ffmpeg("-f", "lavfi", "-i", source, "-ac", "2", str(folder / SOUND))
    return folder / SOUND


def opened(film: Path) -> Path:
    """What ffmpeg opens to read a film."""
    return film / FRAME_NAME if film.is_dir() else film


def psnr(ffmpeg: Ffmpeg, film: Path, bits: int, *, step: int = 1) -> float:
    """PSNR in dB of every so many frames of a film against those that were written."""
    layout, depth = ("rgb24", np.uint8) if bits == 8 else ("rgb48le", np.uint16)
    raw, _ = ask(ffmpeg, opened(film), "-f", "rawvideo", "-pix_fmt", layout, "-")
    frames = np.frombuffer(raw, depth).reshape(-1, SIZE, SIZE, 3)[::step]
    error = frames.astype(float) - (moving if bits == 8 else deep)(sum(SEGMENTS))
    mean = float(np.square(error).mean())
    return math.inf if mean == 0 else 20 * math.log10(np.iinfo(depth).max / math.sqrt(mean))


def floor(codec: Codec, bits: int) -> float:
    """The least PSNR that a codec must keep."""
    if codec.key == "gif":
        return 24  # of 256 colours
    if codec.rgb:
        return 50 if bits == 10 else math.inf
    return 26  # colour has half the rows, which costs most at the edges of the square


@each_case
def test_a_format_joins_segments_of_any_length_exactly(
    made: OutputFormat, codec: Codec, bits: int, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    film = tmp_path / f"a{made.ending.upper()}"
    make(film, ffmpeg, codec, bits, fps=24000 / 1001)
    told = ask(ffmpeg, opened(film), "-f", "null", "-")[1]
    assert codec.pixel_formats[bits] in told or codec.key == "gif"
    assert codec.key in ("gif", "png") or ("gbr" if codec.rgb else "bt709") in told
    assert codec.key == "gif" or "/unknown" not in told
    assert made.is_folder or "23.98 fps" in told
    assert not (codec.tag and made.takes_tags) or codec.tag in told
    assert psnr(ffmpeg, film, bits) >= floor(codec, bits)


CUES, CLUSTER = b"\x1c\x53\xbb\x6b", b"\x1f\x43\xb6\x75"
"""How the index and the frames of a Matroska file begin."""

CHAPTERS = [
    Chapter(frame=0, prompt="a fox", transition="continue"),
    Chapter(frame=5, prompt="a = b; # c", transition="cut"),
]


@pytest.mark.parametrize(
    "made", [each for each in FORMATS.values() if each.texts], ids=lambda each: each.ending
)
@pytest.mark.parametrize("with_sound", [False, True], ids=["silent", "heard"])
@pytest.mark.parametrize("interpolated", [False, True], ids=["joined", "interpolated"])
def test_a_format_keeps_chapters_metadata_and_an_index_in_front(
    made: OutputFormat, with_sound: bool, interpolated: bool, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    film = tmp_path / f"a{made.ending}"
    more = {"sound": tone(tmp_path)} if with_sound else {}
    changes = {"interpolate": 32.0} if interpolated else {}
    make(film, ffmpeg, made.codec, made.codec.bits, chapters=CHAPTERS, **more, **changes)
    assert ("Audio:" in ask(ffmpeg, film, "-f", "null", "-")[1]) == with_sound
    texts = ask(ffmpeg, film, "-f", "ffmetadata", "-")[0].decode()
    told = {line.lower() for line in texts.split("\n")}
    assert {"title=a fox", "quality=good", f"frames={44 if interpolated else 22}"} <= told
    assert "title=a \\= b\\; \\# c" in texts
    _, first, second = texts.split("[CHAPTER]")
    for chapter, begins, ends in ((first, 0, 5), (second, 5, 22)):
        unit, start, end = (
            Fraction(re.search(f"{key}=(.*)", chapter)[1])  # type: ignore[index]
            for key in ("TIMEBASE", "START", "END")
        )
        assert abs(start * unit - Fraction(begins, 16)) <= Fraction(1, 1000)
        assert abs(end * unit - Fraction(ends, 16)) <= Fraction(1, 1000)
    content = film.read_bytes()
    front, data = (
        (b"moov", b"mdat") if made.takes_tags else (b"\x1c\x53\xbb\x6b", b"\x1f\x43\xb6\x75")
    )
    assert 0 < content.index(front) < content.index(data)


RATES = [
    ("a.mp4", "h264", 16.0, 48.0, 3),
    ("a.mkv", "h265", 16.0, 32.0, 2),
    ("a.webm", "vp9", 12.0, 24.0, 2),
    ("a.gif", "gif", 16.0, 32.0, 2),
    ("a.png", "png", 24000 / 1001, 48000 / 1001, 2),
]


@pytest.mark.parametrize(("name", "codec", "fps", "rate", "step"), RATES)
def test_interpolation_keeps_the_frames_that_are_made(
    name: str, codec: str, fps: float, rate: float, step: int, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    film = tmp_path / name
    wanted = FORMATS[film.suffix].coded(codec)[0]
    facts = make(film, ffmpeg, wanted, 8, fps=fps, interpolate=rate, chapters=CHAPTERS)
    assert (facts.frames, facts.fps) == (22 * step, pytest.approx(rate))
    assert facts.duration_s == pytest.approx(22 / fps)
    assert psnr(ffmpeg, film, 8, step=step) >= 24
    told = json.loads(sidecar_of(film).read_text())
    assert told["metadata"]["interpolation"] == (
        f"minterpolate of ffmpeg, {fps:g} to {rate:g} frames a second"
    )
    assert told["shots"][1]["start_s"] == pytest.approx(5 / fps)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"interpolate": 16.0}, "more than the 16 a second that are made, got 16"),
        ({"interpolate": 12.0}, "more than the 16 a second that are made, got 12"),
        ({"interpolate": 300.0}, "fps must be between 1 and 240"),
        (
            {"interpolate": 48.0, "codec": "h265", "bits": 10},
            "minterpolate.* has 8 bits, and H.265",
        ),
    ],
)
def test_what_minterpolate_cannot_do_is_refused(
    changes: dict[str, object], says: str, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    with pytest.raises(UsageError, match=says):
        writer(tmp_path / "a.mp4", ffmpeg, **changes)


def test_a_gif_is_not_faster_than_browsers_play(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    with pytest.raises(UsageError, match="50 frames a second at most, got 60"):
        writer(tmp_path / "a.gif", ffmpeg, fps=60)


QUALITIES = [(codec, text) for codec in (H264, H265, AV1, VP9) for text in ("22", "34")]


@pytest.mark.parametrize(
    ("codec", "text"), QUALITIES, ids=[f"{codec.key}-{text}" for codec, text in QUALITIES]
)
def test_a_rate_factor_lies_between_the_qualities(codec: Codec, text: str) -> None:
    quality = codec.quality(text)
    assert quality.options == {**codec.qualities["good"].options, "crf": int(text)}
    factor = {name: int(str(each.options["crf"])) for name, each in codec.qualities.items()}
    rows = [*codec.qualities.items()]
    for name, row in (rows[0], rows[-1]):
        assert (quality.bits_per_pixel > row.bits_per_pixel) == (int(text) < factor[name])


@pytest.mark.parametrize(
    ("name", "codec", "quality", "says"),
    [
        ("a.mp4", "h264", "60", "factor of H.264 lies between 1 .* and 51, got 60"),
        ("a.mp4", "h264", "0", "factor of H.264 lies between 1 .* got 0"),
        ("a.mov", "prores", "20", "ProRes 422 has no constant rate factor, got 20"),
        ("a.gif", "gif", "20", "GIF has no constant rate factor"),
        ("a.mp4", "h264", "fine", "the quality 'fine' is unknown; the qualities are draft, good"),
    ],
)
def test_a_quality_that_a_codec_has_not_is_refused(
    name: str, codec: str, quality: str, says: str, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    with pytest.raises(UsageError, match=says):
        writer(tmp_path / name, ffmpeg, codec=codec, quality=quality)


def test_frames_replace_frames_and_nothing_else(tmp_path: Path, ffmpeg: Ffmpeg) -> None:
    film = tmp_path / "a.png"
    make(film, ffmpeg, PNG, 8)
    render(film, ffmpeg, [2])
    assert [each.name for each in sorted(film.iterdir())] == ["000001.png", "000002.png"]
    (film / "notes.txt").write_text("mine")
    with pytest.raises(OutputRefused, match="holds notes.txt, which is not a frame"):
        render(film, ffmpeg, [2])
    (tmp_path / "b.png").write_bytes(b"a picture")
    with pytest.raises(OutputRefused, match="is a file, and frames go to a folder of that name"):
        render(tmp_path / "b.png", ffmpeg, [2])


@each_format
def test_a_format_carries_the_sound_that_it_says(
    made: OutputFormat, tmp_path: Path, ffmpeg: Ffmpeg
) -> None:
    film = tmp_path / f"a{made.ending}"
    if not made.audio:
        return
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
def test_an_encoder_that_ffmpeg_lacks_is_named_with_what_would_do(
    made: OutputFormat, codec: Codec, bits: int, tmp_path: Path
) -> None:
    film = tmp_path / f"a{made.ending}"
    bare = Ffmpeg(Path("/opt/ffmpeg"), "7.0", frozenset())
    with pytest.raises(FfmpegMissing, match=f"without the encoder {codec.encoder}"):
        writer(film, bare, codec=codec.key, bits=bits)
    others = [each for each in made.codecs if each != codec]
    most = Ffmpeg(bare.path, "7.0", frozenset(each.encoder for each in others))
    with pytest.raises(FfmpegMissing) as refusal:
        writer(film, most, codec=codec.key, bits=bits)
    told = " or ".join(f"--codec {each.key}" for each in others)
    assert (
        not others or f"{made.ending} goes with {told}; or set CFGEN_FFMPEG" in refusal.value.hint
    )


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
