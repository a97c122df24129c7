"""Output formats: what a video's ending means, and what its container and codecs can do.

Names, checks, estimates, the help, `cfgen doctor`, ffmpeg's command lines and the run folder read
these tables and know no format of their own. To add a format, add a row to `FORMATS`, and to the
codecs above it; `tests/render/test_formats.py` then makes a film with it and reads that back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cfgen.errors import UsageError


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

    In options, ``{keyint}`` stands for the frames from one key frame to the next, and ``{ctu}`` for
    the side of the largest coding unit in pixels.

    Attributes:
        key: What people type.
        name: What people call it.
        encoder: Its encoder in ffmpeg.
        pixel_formats: How ffmpeg calls the layout of its pixels, by bits of a sample; the first is
            taken unless another is chosen.
        even: Whether width and height must be even, as colour has half the rows and columns.
        exact_joins: Whether pieces that are coded apart join without encoding them again, so that
            a segment that is finished stays as it is.
        options: Options of the encoder, whatever the quality.
        qualities: Its qualities, by the names that people set.
        rgb: Whether samples are red, green and blue of full range, and not BT.709's luma and
            colour differences.
        tag: Its tag in mp4 and mov, where that is not ffmpeg's own choice.
    """

    key: str
    name: str
    encoder: str
    pixel_formats: Mapping[int, str]
    even: bool
    exact_joins: bool
    options: Mapping[str, object]
    qualities: Mapping[str, Quality]
    rgb: bool = False
    tag: str = ""

    @property
    def bits(self) -> int:
        """Bits of a sample unless others are chosen."""
        return next(iter(self.pixel_formats))


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFormat:
    """A kind of video file.

    In options, ``{timescale}`` stands for the ticks per second of the file.

    Attributes:
        ending: What its files end in.
        muxer: Its name in ffmpeg.
        codecs: What its frames may be coded with, first the one that is taken unless another is
            chosen.
        audio: Encoders in ffmpeg of the sound that it can carry; without AAC, sound is encoded
            with the first.
        film_options: Options of the muxer for the joined film.
        segments: The muxer of segments, which keeps times exactly; its name is their ending.
        segment_options: Options of that muxer.
        exact_times: Whether a film keeps times exactly, and not in whole milliseconds.
    """

    ending: str
    muxer: str
    codecs: tuple[Codec, ...]
    audio: tuple[str, ...]
    film_options: Mapping[str, object]
    segments: str
    segment_options: Mapping[str, object]
    exact_times: bool = True

    @property
    def codec(self) -> Codec:
        """What frames are coded with unless another codec is chosen."""
        return self.codecs[0]

    @property
    def takes_tags(self) -> bool:
        """Whether it is of mp4's family, where a codec's tag is written."""
        return self.segments in ("mp4", "mov")

    @property
    def segment_ending(self) -> str:
        """What encoded segments end in."""
        return f".{self.segments}"

    def segment(self, index: int) -> str:
        """The file name of an encoded segment."""
        return f"segment-{index:06d}{self.segment_ending}"

    def coded(self, key: str | None, bits: int | None = None) -> tuple[Codec, int]:
        """The codec and the bits of a sample that are meant.

        Args:
            key: The codec's name, or None for the format's first.
            bits: Bits of a sample, or None for the codec's first.

        Raises:
            UsageError: The format does not carry the codec, or the codec has not these bits.
        """
        codec = self._codec_of(key)
        if bits is not None and bits not in codec.pixel_formats:
            known = " or ".join(map(str, codec.pixel_formats))
            raise UsageError(f"{codec.name} is written with {known} bits, not {bits}")
        return codec, bits or codec.bits

    def _codec_of(self, key: str | None) -> Codec:
        for codec in self.codecs:
            if key in (None, codec.key):
                return codec
        others = [each.ending for each in FORMATS.values() if key in each.codec_keys]
        if not others:
            raise UsageError(
                f"the codec {key!r} is unknown; the codecs of {self.ending} are "
                f"{', '.join(self.codec_keys)}"
            )
        raise UsageError(
            f"{self.ending} files do not carry {key}; they carry {', '.join(self.codec_keys)}",
            f"{key} goes into {' or '.join(others)}",
        )

    @property
    def codec_keys(self) -> tuple[str, ...]:
        """The names of its codecs, as people type them."""
        return tuple(codec.key for codec in self.codecs)


# One thread, as another thread count gives other coded frames. Without B-frames every packet's
# decoding time is its display time, so segments of any length, one frame included, join at exact
# times and need no edit list. cpu-independent: same bits anywhere.
_X264 = "threads=1:lookahead-threads=1:bframes=0:open-gop=0:cpu-independent=1:keyint={keyint}"  # noqa: RUF027
# x265 of ffmpeg 9.0.2 damages its heap for frames of 48x32 with coding units of 32 or 64 pixels.
_X265 = (
    "ctu={ctu}:pools=none:frame-threads=1:wpp=0:bframes=0:open-gop=0:keyint={keyint}"  # noqa: RUF027
    ":log-level=warning"
)


def _rated(crf: int, bits_per_pixel: float, **options: object) -> Quality:
    return Quality(options={"crf": crf, **options}, bits_per_pixel=bits_per_pixel)


def _plain(bits_per_pixel: float, **options: object) -> Quality:
    return Quality(options=options, bits_per_pixel=bits_per_pixel)


H264 = Codec(
    key="h264",
    name="H.264",
    encoder="libx264",
    pixel_formats={8: "yuv420p"},
    even=True,
    exact_joins=True,
    options={"profile:v": "high", "x264-params": _X264},
    # Films of `mini` (160x96) take 0.08, 0.23 to 0.35 and 0.56 bits per pixel; frames of more
    # pixels take less of each, so for them the figures are generous.
    qualities={
        "draft": _rated(28, 0.10, preset="veryfast"),
        "good": _rated(18, 0.35, preset="medium"),
        "best": _rated(14, 0.60, preset="slow"),
    },
)

# The bits per pixel of the codecs below are estimates from H.264's figures, not measured.
H265 = Codec(
    key="h265",
    name="H.265",
    encoder="libx265",
    pixel_formats={8: "yuv420p", 10: "yuv420p10le"},
    even=True,
    exact_joins=True,
    options={"x265-params": _X265},
    # The parameter sets stand in the header alone, as Apple's players ask.
    tag="hvc1",
    qualities={
        "draft": _rated(30, 0.10, preset="veryfast"),
        "good": _rated(20, 0.35, preset="medium"),
        "best": _rated(16, 0.60, preset="slow"),
    },
)

AV1 = Codec(
    key="av1",
    name="AV1",
    encoder="libsvtav1",
    pixel_formats={8: "yuv420p", 10: "yuv420p10le"},
    even=True,
    exact_joins=True,
    options={"svtav1-params": "lp=1", "g": "{keyint}"},
    qualities={
        "draft": _rated(40, 0.10, preset=10),
        "good": _rated(24, 0.35, preset=7),
        "best": _rated(16, 0.60, preset=5),
    },
)

VP9 = Codec(
    key="vp9",
    name="VP9",
    encoder="libvpx-vp9",
    pixel_formats={8: "yuv420p", 10: "yuv420p10le"},
    even=True,
    exact_joins=True,
    options={"threads": 1, "row-mt": 0, "b:v": 0, "deadline": "good", "g": "{keyint}"},
    qualities={
        "draft": _rated(38, 0.10, **{"cpu-used": 5}),
        "good": _rated(24, 0.40, **{"cpu-used": 3}),
        "best": _rated(16, 0.70, **{"cpu-used": 1}),
    },
)

PRORES = Codec(
    key="prores",
    name="ProRes 422",
    encoder="prores_ks",
    pixel_formats={10: "yuv422p10le"},
    even=True,
    exact_joins=True,
    options={"threads": 1, "vendor": "apl0"},
    # LT, 422 and HQ: 102, 147 and 220 Mbit/s for 1920x1080 at 29.97 fps (Apple's white paper).
    qualities={
        "draft": _plain(1.7, **{"profile:v": 1}),
        "good": _plain(2.4, **{"profile:v": 2}),
        "best": _plain(3.6, **{"profile:v": 3}),
    },
)

FFV1 = Codec(
    key="ffv1",
    name="FFV1",
    encoder="ffv1",
    pixel_formats={8: "bgr0", 10: "gbrp10le"},
    even=False,
    exact_joins=True,
    options={"threads": 1, "level": 3, "g": 1, "slicecrc": 1},
    # Every quality is lossless; a better one packs tighter.
    qualities={
        "draft": _plain(15.0, coder="rice"),
        "good": _plain(14.0, coder="range_def"),
        "best": _plain(13.0, coder="range_def", context=1),
    },
    rgb=True,
)

_TICKS = {"video_track_timescale": "{timescale}"}
# faststart: the index stands at the front, so that a film plays while it is still fetched.
_FILM = {"movflags": "+faststart+use_metadata_tags+write_colr", "use_editlist": 0}
# bitexact: no random numbers in the file, so that a render that was resumed gives the same one.
_MATROSKA = {"cues_to_front": 1, "fflags": "+bitexact"}

MP4 = OutputFormat(
    ending=".mp4",
    muxer="mp4",
    codecs=(H264, H265, AV1, VP9),
    audio=("aac", "libmp3lame", "flac", "libopus"),
    film_options=_TICKS | _FILM,
    segments="mp4",
    segment_options=_TICKS,
)

MOV = OutputFormat(
    ending=".mov",
    muxer="mov",
    codecs=(H264, H265, PRORES),
    audio=("aac", "pcm_s16le", "alac"),
    film_options=_TICKS | _FILM,
    segments="mov",
    segment_options=_TICKS,
)

MKV = OutputFormat(
    ending=".mkv",
    muxer="matroska",
    codecs=(H264, H265, AV1, VP9, FFV1, PRORES),
    audio=("aac", "flac", "libopus", "libmp3lame"),
    film_options=_MATROSKA,
    segments="nut",
    segment_options={},
    exact_times=False,
)

WEBM = OutputFormat(
    ending=".webm",
    muxer="webm",
    codecs=(VP9, AV1),
    audio=("libopus", "libvorbis"),
    film_options=_MATROSKA,
    segments="nut",
    segment_options={},
    exact_times=False,
)

FORMATS: Mapping[str, OutputFormat] = MappingProxyType(
    {each.ending: each for each in (MP4, MKV, WEBM, MOV)}
)
"""Every format, by its ending in small letters; the first is that of names that cfgen makes."""

ENDINGS = f"{', '.join([*FORMATS][:-1])} or {[*FORMATS][-1]}"
"""Their endings, in a sentence."""


def filled(options: Mapping[str, object], **values: object) -> dict[str, object]:
    """Options with values in place of the names in braces."""
    return {name: str(value).format(**values) for name, value in options.items()}
