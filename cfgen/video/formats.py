"""Output formats: what a video's ending means, and what its container and codecs can do.

Names, checks, estimates, the help, `cfgen doctor`, ffmpeg's command lines and the run folder read
these tables and know no format of their own. To add a format, add a row to `FORMATS`, and to the
codecs of `cfgen/video/codecs.py`; `tests/render/test_formats.py` then makes a film with it and
reads that back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cfgen.errors import UsageError
from cfgen.video.codecs import AV1, FFV1, GIF, H264, H265, PNG, PRORES, VP9, Codec


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFormat:
    """A kind of video file.

    In options, ``{timescale}`` stands for the ticks per second of the file.

    Attributes:
        ending: What its files end in.
        muxer: Its name in ffmpeg.
        codecs: What its frames may be coded with, first the one that is taken unless another is
            chosen.
        audio: Encoders in ffmpeg of the sound that it can carry; it is encoded with the first, and
            where there are none, the film is silent.
        film_options: Options of the muxer for the joined film.
        segments: The muxer of segments, which keeps times exactly; its name is their ending.
        segment_options: Options of that muxer.
        exact_times: Whether a film keeps times exactly, and not in milliseconds or hundredths.
        fps_max: The most frames per second that its players keep up with.
        texts: Whether it carries metadata and chapters; the .json beside it has them in any case.
        is_folder: Whether it is a folder of that name with a picture a frame, called `FRAME_NAME`.
    """

    ending: str
    muxer: str
    codecs: tuple[Codec, ...]
    audio: tuple[str, ...]
    film_options: Mapping[str, object]
    segments: str
    segment_options: Mapping[str, object]
    exact_times: bool = True
    fps_max: int = 240
    texts: bool = True
    is_folder: bool = False

    @property
    def codec(self) -> Codec:
        """What frames are coded with unless another codec is chosen."""
        return self.codecs[0]

    @property
    def takes_tags(self) -> bool:
        """Whether it is of mp4's family, where a codec's tag is written."""
        return self.segments in ("mp4", "mov")

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

GIF_FILE = OutputFormat(
    ending=".gif",
    muxer="gif",
    codecs=(GIF,),
    audio=(),
    film_options={"loop": 0},
    segments="nut",
    segment_options={},
    exact_times=False,
    fps_max=50,  # a frame lasts at least two hundredths of a second in browsers
    texts=False,
)

PNG_FILES = OutputFormat(
    ending=".png",
    muxer="image2",
    codecs=(PNG,),
    audio=(),
    film_options={"start_number": 1},
    segments="nut",
    segment_options={},
    texts=False,
    is_folder=True,
)

FORMATS: Mapping[str, OutputFormat] = MappingProxyType(
    {each.ending: each for each in (MP4, MKV, WEBM, MOV, PNG_FILES, GIF_FILE)}
)
"""Every format, by its ending in small letters; the first is that of names that cfgen makes."""

ENDINGS = f"{', '.join([*FORMATS][:-1])} or {[*FORMATS][-1]}"
"""Their endings, in a sentence."""

FRAME_NAME = "%06d.png"
"""How ffmpeg calls the frames of a film that is a folder; the first is 000001.png."""

SEGMENT_MUXERS = tuple(dict.fromkeys(each.segments for each in FORMATS.values()))
"""Muxers of encoded segments; each name is an ending too."""


def segment_stem(index: int) -> str:
    """The name of an encoded segment without its ending."""
    return f"segment-{index:06d}"
