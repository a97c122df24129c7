from fractions import Fraction
from pathlib import Path

import pytest

from cfgen.errors import UsageError
from cfgen.video.codecs import H264
from cfgen.video.encoding import (
    Encoding,
    exact_fps,
)
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.ffmpeg_texts import check_metadata, concat_listing, ffmetadata
from cfgen.video.formats import MP4

FFMPEG = Ffmpeg(Path("/opt/ffmpeg"), "7.0", frozenset({"libx264"}))


def encoding(**changes: object) -> Encoding:
    values: dict[str, object] = {"width": 64, "height": 32, "fps": Fraction(16), "quality": "good"}
    values["format"] = MP4
    return Encoding(**(values | changes))  # type: ignore[arg-type]


def test_every_quality_sets_rate_factor_and_preset() -> None:
    for name, quality in H264.qualities.items():
        argv = encoding(quality=name).encode_argv(FFMPEG, "segment.mp4")
        assert argv[argv.index("-crf") + 1] == str(quality.options["crf"])
        assert argv[argv.index("-preset") + 1] == quality.options["preset"]
        assert argv[-1] == "segment.mp4"
    factors = [int(str(H264.qualities[name].options["crf"])) for name in ("draft", "good", "best")]
    assert factors == sorted(factors, reverse=True)
    assert min(factors) > 0, "crf 0 makes a High 4:4:4 stream that most players refuse"


def test_what_fixes_the_coded_frames_is_pinned() -> None:
    argv = encoding().encode_argv(FFMPEG, "segment.mp4")
    x264 = argv[argv.index("-x264-params") + 1].split(":")
    for setting in ("threads=1", "bframes=0", "open-gop=0", "cpu-independent=1", "keyint=64"):
        assert setting in x264
    assert argv[argv.index("-filter_complex_threads") + 1] == "1"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": 63}, "width must be an even number .* got 63"),
        ({"height": 95}, "height must be an even number .* got 95"),
        ({"height": 0}, "height must be .* got 0"),
        ({"width": -2}, "width must be .* got -2"),
        ({"quality": "superb"}, "quality 'superb' is unknown; the qualities are draft, good, best"),
    ],
)
def test_values_that_cannot_be_encoded_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        encoding(**changes)


@pytest.mark.parametrize(
    ("fps", "exact"),
    [(16.0, "16"), (29.97, "30000/1001"), (24000 / 1001, "24000/1001"), (12.5, "25/2"), (1, "1")],
)
def test_frame_rate_is_a_fraction_whose_frame_is_whole_ticks(fps: float, exact: str) -> None:
    rate = exact_fps(fps)
    assert str(rate) == exact
    timescale = encoding(fps=rate).timescale
    assert (timescale / rate).denominator == 1
    assert timescale >= 10_000


@pytest.mark.parametrize("fps", [0.0, -3.0, 0.5, 241.0, float("nan"), float("inf")])
def test_frame_rate_outside_the_range_is_refused(fps: float) -> None:
    with pytest.raises(UsageError, match="fps must be between 1 and 240"):
        exact_fps(fps)


def test_metadata_text_escapes_what_ffmpeg_would_read() -> None:
    assert ffmetadata({"title": "a=b;c#d\\e\nf é"}) == (
        b";FFMETADATA1\ntitle=a\\=b\\;c\\#d\\\\e\\\nf \xc3\xa9\n"
    )


@pytest.mark.parametrize("key", ["", "Title", "a-b", "a=b", "9", "[CHAPTER]", "frames", "encoder"])
def test_metadata_key_that_would_clash_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="cannot be a metadata key"):
        check_metadata({key: "x"})


@pytest.mark.parametrize(("text", "says"), [("a\0b", "NUL"), ("\udc80", "not valid Unicode")])
def test_metadata_text_that_no_container_carries_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"the prompt .*{says}"):
        check_metadata({"prompt": text})


def test_listing_never_drifts_from_the_exact_time() -> None:
    fps = Fraction(24000, 1001)
    listing = concat_listing(((f"segment-{i:06d}.mp4", 7) for i in range(1000)), fps)
    lines = listing.splitlines()
    assert lines[0] == "ffconcat version 1.0"
    assert lines[1] == "file segment-000000.mp4"
    durations = [Fraction(line.split()[1]) for line in lines if line.startswith("duration")]
    elapsed = Fraction(0)
    for index, duration in enumerate(durations, start=1):
        elapsed += duration
        assert abs(elapsed - 7 * index / fps) <= Fraction(1, 2_000_000)
