"""Odd films to go on from, each with its outcome: taken rightly and told, or refused and why."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgen.config.schema import BeginConfig
from cfgen.errors import InputRefused
from cfgen.pipeline.beginning import Beginning
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.probe import probe
from cfgen.video.reading import Section, count_frames, read_frames, read_sound
from tests.render.inputs import ffmpeg as run_ffmpeg
from tests.render.inputs import film, gradient

WIDTH, HEIGHT = 48, 32
FPS = Fraction(16)


def begun(path: Path, **values: object) -> Beginning:
    config = BeginConfig(video=path, **values)  # type: ignore[arg-type]
    return Beginning(path, config, size=(WIDTH, HEIGHT), fps=16.0, chunk=3)


def frames_of(beginning: Beginning) -> np.ndarray:
    """All frames that are given, [n, height, width, 3]."""
    read = list(beginning._read())
    return np.stack([np.frombuffer(f, np.uint8).reshape(HEIGHT, WIDTH, 3) for f in read])


def still(name: str, *options: str, turned: str = "", size: tuple[int, int] = (WIDTH, HEIGHT)):
    """A second of the gradient, coded as options say."""

    def make(folder: Path) -> Path:
        Image.fromarray(gradient(*size)).save(folder / "still.png")
        loop = ["-loop", "1", "-framerate", "16", "-t", "1", "-i", str(folder / "still.png")]
        run_ffmpeg(*loop, *options, str(folder / name))
        if not turned:
            return folder / name
        lying = ["-display_rotation", turned, "-i", str(folder / name), "-c", "copy"]
        run_ffmpeg(*lying, str(folder / f"turned-{name}"))
        return folder / f"turned-{name}"

    return make


TAGGED_601 = "scale=out_color_matrix=bt601:out_range=tv,setparams=colorspace=smpte170m:range=tv"
TAGGED_709 = "scale=out_color_matrix=bt709:out_range=tv,setparams=colorspace=bt709:range=tv"
FULL_RANGE = "scale=out_color_matrix=bt709:out_range=pc,setparams=colorspace=bt709:range=pc"
UNTOLD_601 = "scale=out_color_matrix=bt601:out_range=tv,setparams=colorspace=unknown"
UNTOLD_709 = "scale=out_color_matrix=bt709:out_range=tv,setparams=colorspace=unknown"
LYING = "transpose=clock"
X264 = ("-c:v", "libx264", "-crf", "2")
FFV1 = ("-c:v", "ffv1")

TAKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "BT.601, told": (still("a.mkv", "-vf", TAGGED_601, "-pix_fmt", "yuv444p", *FFV1), ""),
    "BT.709, told": (still("a.mkv", "-vf", TAGGED_709, "-pix_fmt", "yuv444p", *FFV1), ""),
    "a small film that does not tell": (
        still("a.mkv", "-vf", UNTOLD_601, "-pix_fmt", "yuv444p", *FFV1),
        "",
    ),
    "a large film that does not tell": (
        still("a.mkv", "-vf", UNTOLD_709, "-pix_fmt", "yuv444p", *FFV1, size=(1080, 720)),
        "1080x720",
    ),
    "full range": (still("a.mkv", "-vf", FULL_RANGE, "-pix_fmt", "yuv444p", *FFV1), ""),
    "10 bits, not HDR": (still("a.mkv", "-vf", TAGGED_709, "-pix_fmt", "yuv444p10le", *FFV1), ""),
    "RGB": (still("a.mkv", "-c:v", "ffv1", "-pix_fmt", "gbrp"), ""),
    "transparency": (still("a.mov", "-c:v", "png", "-pix_fmt", "rgba"), ""),
    "a telephone held upright": (
        still("a.mp4", "-vf", f"{TAGGED_709},{LYING}", "-pix_fmt", "yuv444p", *X264, turned="90"),
        "turned by 90 degrees",
    ),
    "a telephone upside down": (
        still(
            "a.mp4", "-vf", f"{TAGGED_709},hflip,vflip", "-pix_fmt", "yuv444p", *X264, turned="180"
        ),
        "turned by 180 degrees",
    ),
    "pixels that are not square": (
        still(
            *("a.mkv", "-vf", f"scale=24:32,setsar=2,{TAGGED_709}", "-pix_fmt", "yuv444p"), *FFV1
        ),
        "",
    ),
    "fields": (
        still(
            *("a.mpg", "-vf", f"{TAGGED_601},setfield=tff", "-c:v", "mpeg2video", "-q:v", "1"),
            *("-pix_fmt", "yuv422p", "-flags", "+ilme+ildct", "-r", "25"),
        ),
        "interlaced",
    ),
    "an animated GIF": (still("a.gif"), ""),
    "120 frames a second": (
        still("a.mkv", "-vf", TAGGED_709, "-r", "120", "-pix_fmt", "yuv444p", *FFV1),
        "",
    ),
    "12.5 frames a second": (
        still("a.mkv", "-vf", TAGGED_709, "-r", "12.5", "-pix_fmt", "yuv444p", *FFV1),
        "",
    ),
    "a stream that begins at 1.4 s": (
        still("a.ts", "-vf", TAGGED_709, "-pix_fmt", "yuv420p", *X264),
        "",
    ),
    "a name that a shell would not take": (
        still("it's 100% [a]; b.mkv", "-vf", TAGGED_709, "-pix_fmt", "yuv444p", *FFV1),
        "",
    ),
    "a name like a flag": (still("-i.mkv", "-vf", TAGGED_709, "-pix_fmt", "yuv444p", *FFV1), ""),
}
COARSE = {
    "fields": 6,
    "an animated GIF": 12,
    "a stream that begins at 1.4 s": 6,
    "pixels that are not square": 6,
}
"""Levels that kinds may be off, as their own coding is coarse: dithered, or half the columns."""


@pytest.mark.parametrize("kind", TAKEN)
def test_odd_films_are_taken_rightly_and_told(kind: str, tmp_path: Path) -> None:
    make, told = TAKEN[kind]
    beginning = begun(make(tmp_path))
    lines = beginning.require_usable(None)
    frames = frames_of(beginning)
    assert 9 <= len(frames) <= 21
    assert len(frames) % 12 == 9
    error = np.abs(frames.astype(int) - gradient(WIDTH, HEIGHT))[:, 2:-2, 2:-2]
    assert error.mean() < COARSE.get(kind, 2.5), error.mean((0, 1, 2))
    assert told in " ".join(lines)
    assert len(lines) == 1 + bool(told)


def hdr(transfer: str) -> Callable[[Path], Path]:
    tags = f"setparams=color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc:range=tv"
    return still("a.mkv", "-vf", f"format=yuv420p10le,{tags}", "-c:v", "ffv1")


def cut_off(name: str, share: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        whole = film(folder / f"whole-{name}")
        content = whole.read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])
        return folder / name

    return make


def sound_alone(folder: Path) -> Path:
    run_ffmpeg("-f", "lavfi", "-i", "sine=duration=2", str(folder / "a.m4a"))
    return folder / "a.m4a"


def sound_with_a_cover(folder: Path) -> Path:
    Image.fromarray(gradient(64, 64)).save(folder / "cover.png")
    song = sound_alone(folder)
    argv = [
        "-i",
        str(song),
        "-i",
        str(folder / "cover.png"),
        "-map",
        "0",
        "-map",
        "1",
        "-c",
        "copy",
    ]
    run_ffmpeg(*argv, "-disposition:v:0", "attached_pic", str(folder / "b.m4a"))
    return folder / "b.m4a"


def one_picture(folder: Path) -> Path:
    Image.fromarray(gradient(64, 64)).save(folder / "a.png")
    return folder / "a.png"


def a_text(folder: Path) -> Path:
    (folder / "a.mp4").write_text("no film at all")
    return folder / "a.mp4"


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "HDR10": (hdr("smpte2084"), "HDR (PQ)"),
    "HLG": (hdr("arib-std-b67"), "HDR (HLG)"),
    "a download that stopped before its index": (cut_off("a.mp4", 0.6), "moov atom not found"),
    "sound alone": (sound_alone, "no moving picture"),
    "a song with a cover": (sound_with_a_cover, "no moving picture"),
    "a picture": (one_picture, "--image"),
    "a text": (a_text, "no film"),
    "a folder": (lambda folder: folder, "folder"),
    "nothing": (lambda folder: folder / "a.mp4", "No such file"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_other_films_are_refused_with_the_reason(
    make: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputRefused) as caught:
        _ = begun(make(tmp_path)).given
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_a_damaged_film_is_refused_when_it_is_counted(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mov", "-c:v", "png")
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    (tmp_path / "a.mov").write_bytes(content)
    with pytest.raises(InputRefused, match="cannot be read to its end"):
        _ = begun(tmp_path / "a.mov").frames


def test_uneven_frames_stand_for_the_time_at_which_they_are_shown(
    ffmpeg: Ffmpeg, tmp_path: Path
) -> None:
    """A telephone's film: grey n is shown from second n / 10 on, but some are left out."""
    grey = "color=black:size=48x32:rate=10:duration=3,format=gray,geq=lum='7*N'"
    path = tmp_path / "a.mkv"
    left_out = "select='not(between(n,3,7)+eq(n,20))'"
    lossless = ["-c:v", "ffv1", "-pix_fmt", "gray", "-fps_mode", "vfr"]
    run_ffmpeg("-f", "lavfi", "-i", grey, "-vf", left_out, *lossless, str(path))
    facts = probe(ffmpeg, path)
    size = {"width": WIDTH, "height": HEIGHT}
    frames = list(read_frames(ffmpeg, path, fps=Fraction(10), facts=facts, **size))
    levels = [round(np.frombuffer(frame, np.uint8).mean() / 7) for frame in frames]
    shown = [n for n in range(30) if not 3 <= n <= 7 and n != 20]
    assert levels == [max(n for n in shown if n <= at) for at in range(30)]


@pytest.mark.parametrize("first", [0, 5, 250, 300])
def test_a_section_is_those_frames_of_the_whole_however_far_it_lies(
    first: int, ffmpeg: Ffmpeg, tmp_path: Path
) -> None:
    path = film(tmp_path / "a.mp4", seconds=20.0, rate="30", size="32x32")
    facts = probe(ffmpeg, path)
    size = {"width": 16, "height": 16}
    whole = list(read_frames(ffmpeg, path, fps=FPS, facts=facts, **size))
    assert len(whole) == 320
    section = Section(first, first + 15)
    part = list(read_frames(ffmpeg, path, fps=FPS, facts=facts, section=section, **size))
    assert part == whole[first : first + 15]
    assert count_frames(ffmpeg, path, fps=FPS, section=section, facts=facts) == 15
    assert count_frames(ffmpeg, path, fps=FPS, section=Section(310, 400), facts=facts) == 10


SOUNDS = {
    "of six channels": ("sine=880:duration=3,pan=5.1|FC=c0", ("-c:a", "aac")),
    "of 8 kHz": ("sine=880:duration=3:sample_rate=8000", ("-c:a", "pcm_s16le")),
    "that begins late": ("sine=880:duration=2,adelay=1000", ("-c:a", "flac")),
}


@pytest.mark.parametrize(("source", "options"), SOUNDS.values(), ids=SOUNDS)
def test_odd_sound_becomes_stereo_in_step(
    source: str, options: tuple[str, ...], ffmpeg: Ffmpeg, tmp_path: Path
) -> None:
    path = film(tmp_path / "a.mkv", *options, sound=source)
    sound = b"".join(read_sound(ffmpeg, path, begins_s=Fraction(1, 2), ends_s=Fraction(5, 2)))
    (tmp_path / "a.flac").write_bytes(sound)
    run_ffmpeg("-i", str(tmp_path / "a.flac"), "-f", "f32le", str(tmp_path / "a.raw"))
    samples = np.fromfile(tmp_path / "a.raw", np.float32).reshape(-1, 2)
    assert abs(len(samples) / 48_000 - 2) < 0.001
    heard = np.flatnonzero(np.abs(samples[:, 0]) > 0.005)[0] / 48_000
    assert abs(heard - (0.5 if "adelay" in source else 0.0)) < 0.01
