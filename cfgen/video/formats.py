"""Output formats: what a video's ending means, and what its container and codecs can do.

Names, checks, estimates, the help, `cfgen doctor`, ffmpeg's command lines and the run folder read
these tables and know no format of their own. To add a format, add a row to `FORMATS`, and to the
codecs above it; `tests/render/test_formats.py` then makes a film with it and reads that back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """What a quality name means to a codec.

    Attributes:
        options: Options of its encoder.
        bits_per_pixel: Bits that a pixel of a frame takes in the file, to check the disk
            beforehand.
    """

    options: Mapping[str, object]
    bits_per_pixel: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """How frames are coded.

    In options, ``{keyint}`` stands for the frames from one key frame to the next.

    Attributes:
        name: What people call it.
        encoder: Its encoder in ffmpeg.
        pixel_format: How ffmpeg calls the layout and depth of its pixels.
        even: Whether width and height must be even, as colour has half the rows and columns.
        exact_joins: Whether pieces that are coded apart join without encoding them again, so that
            a segment that is finished stays as it is.
        options: Options of the encoder, whatever the quality.
        qualities: Its qualities, by the names that people set.
    """

    name: str
    encoder: str
    pixel_format: str
    even: bool
    exact_joins: bool
    options: Mapping[str, object]
    qualities: Mapping[str, Quality]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFormat:
    """A kind of video file.

    In options, ``{timescale}`` stands for the ticks per second of the file.

    Attributes:
        ending: What its files end in.
        muxer: Its name in ffmpeg.
        codecs: What its frames may be coded with, first the one that is taken unless another is
            chosen.
        audio: Encoders in ffmpeg of the sound that it can carry.
        options: Options of the muxer, for segments too.
        film_options: Options of the muxer for the joined film.
    """

    ending: str
    muxer: str
    codecs: tuple[Codec, ...]
    audio: tuple[str, ...]
    options: Mapping[str, object]
    film_options: Mapping[str, object]

    @property
    def codec(self) -> Codec:
        """What frames are coded with."""
        return self.codecs[0]

    def segment(self, index: int) -> str:
        """The file name of an encoded segment."""
        return f"segment-{index:06d}{self.ending}"


# One thread, as another thread count gives other coded frames. Without B-frames every packet's
# decoding time is its display time, so segments of any length, one frame included, join at exact
# times and need no edit list. cpu-independent: same bits anywhere.
_X264 = "threads=1:lookahead-threads=1:bframes=0:open-gop=0:cpu-independent=1:keyint={keyint}"  # noqa: RUF027


def _x264(crf: int, preset: str, bits_per_pixel: float) -> Quality:
    return Quality(options={"crf": crf, "preset": preset}, bits_per_pixel=bits_per_pixel)


H264 = Codec(
    name="H.264",
    encoder="libx264",
    pixel_format="yuv420p",
    even=True,
    exact_joins=True,
    options={"profile:v": "high", "x264-params": _X264},
    # Films of `mini` (160x96) take 0.08, 0.23 to 0.35 and 0.56 bits per pixel; frames of more
    # pixels take less of each, so for them the figures are generous.
    qualities={
        "draft": _x264(28, "veryfast", 0.10),
        "good": _x264(18, "medium", 0.35),
        "best": _x264(14, "slow", 0.60),
    },
)

MP4 = OutputFormat(
    ending=".mp4",
    muxer="mp4",
    codecs=(H264,),
    audio=("aac", "libmp3lame", "flac", "libopus"),
    options={"video_track_timescale": "{timescale}"},
    # faststart: the index stands at the front, so that a film plays while it is still fetched.
    film_options={"movflags": "+faststart+use_metadata_tags+write_colr", "use_editlist": 0},
)

FORMATS: Mapping[str, OutputFormat] = MappingProxyType({each.ending: each for each in (MP4,)})
"""Every format, by its ending in small letters; the first is that of names that cfgen makes."""

ENDINGS = " or ".join(FORMATS)
"""Their endings, in a sentence."""


def filled(options: Mapping[str, object], **values: object) -> dict[str, object]:
    """Options with values in place of the names in braces."""
    return {name: str(value).format(**values) for name, value in options.items()}
