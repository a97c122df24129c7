"""How frames become a video: command lines for ffmpeg, built by ffmpeg-python, and their inputs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cfgen.errors import UsageError
from cfgen.units import ntsc
from cfgen.video.facts import Chapter
from cfgen.video.ffmpeg import Ffmpeg
from cfgen.video.ffmpeg_graph import argv_of, graph_module, shielded
from cfgen.video.formats import Codec, OutputFormat, filled

KEYFRAME_INTERVAL_S = 4
_SMALL = 128
"""Pixels of a side below which frames are coded in small units."""
FPS_MIN, FPS_MAX = 1, 240
RESERVED_METADATA = frozenset({"frames", "frames_sha256", "ffmpeg_version", "quality", "encoder"})
_FPS_DENOMINATOR_MAX = 1001
_TIMESCALE_MIN = 10_000
_SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
_BT709 = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}
_RGB = _BT709 | {"colorspace": "rgb"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """Everything that decides how frames are coded, checked.

    Attributes:
        format: The kind of file.
        width: Width in pixels, even if the codec needs that.
        height: Height in pixels, likewise.
        fps: Frames per second, 1 to 240.
        quality: A quality of the codec.
        codec_key: A codec of the format, or None for its first.
        asked_bits: Bits of a sample, or None for the codec's first.

    Raises:
        UsageError: A value cannot be used.
    """

    format: OutputFormat
    width: int
    height: int
    fps: Fraction
    quality: str
    codec_key: str | None = None
    asked_bits: int | None = None

    def __post_init__(self) -> None:
        codec = self.codec
        if self.quality not in codec.qualities:
            known = ", ".join(codec.qualities)
            raise UsageError(f"the quality {self.quality!r} is unknown; the qualities are {known}")
        layout = codec.pixel_formats[self.bits]
        least = 2 if codec.even else 1
        for side, pixels in (("width", self.width), ("height", self.height)):
            if pixels < least or pixels % least:
                raise UsageError(
                    f"the {side} must be {'an even' if codec.even else 'a'} number of pixels, at "
                    f"least {least}, for {codec.name} video ({layout}); got {pixels}"
                )

    @property
    def codec(self) -> Codec:
        """What frames are coded with."""
        return self.format.coded(self.codec_key, self.asked_bits)[0]

    @property
    def bits(self) -> int:
        """Bits of a sample."""
        return self.format.coded(self.codec_key, self.asked_bits)[1]

    @property
    def timescale(self) -> int:
        """Ticks per second in the file; a frame lasts a whole number of them."""
        return self.fps.numerator * math.ceil(_TIMESCALE_MIN / self.fps.numerator)

    def encode_argv(self, ffmpeg: Ffmpeg, output: str) -> list[str]:
        """Return the command that encodes raw frames from stdin to a segment.

        They are rgb24, or rgb48le where samples have more than 8 bits.
        """
        graph = graph_module()

        codec = self.codec
        raw = "rgb24" if self.bits == 8 else "rgb48le"
        scale = {} if codec.rgb else {"out_color_matrix": "bt709", "out_range": "tv"}
        tags = _RGB if codec.rgb else _BT709
        levels = "pc" if codec.rgb else "tv"
        keyint = max(1, round(self.fps * KEYFRAME_INTERVAL_S))
        ctu = 64 if min(self.width, self.height) >= _SMALL else 16
        size = f"{self.width}x{self.height}"
        stream = (
            graph.input("pipe:0", format="rawvideo", pix_fmt=raw, s=size, framerate=str(self.fps))
            .filter("scale", **scale, flags=_SCALE_FLAGS)
            .filter("format", codec.pixel_formats[self.bits])
            .filter(
                "setparams", range=levels, **(tags | ({"colorspace": "gbr"} if codec.rgb else {}))
            )
            .output(
                shielded(output),
                format=self.format.segments,
                vcodec=codec.encoder,
                color_range=levels,
                **tags,
                **filled(self.format.segment_options, timescale=self.timescale),
                **({"tag:v": codec.tag} if codec.tag and self.format.takes_tags else {}),
                **filled(codec.options, keyint=keyint, ctu=ctu),
                **filled(codec.qualities[self.quality].options, keyint=keyint, ctu=ctu),
            )
        )
        prefix = [*ffmpeg.prefix(), "-filter_complex_threads", "1"]
        return argv_of(stream, prefix)

    def join_argv(
        self,
        ffmpeg: Ffmpeg,
        listing: str,
        metadata: str,
        output: str,
        *,
        sound: str | None = None,
        chapters: bool = False,
    ) -> list[str]:
        """Return the command that joins segments without re-encoding and adds the metadata.

        Args:
            ffmpeg: The ffmpeg to use.
            listing: File made of `concat_listing`.
            metadata: File made of `ffmetadata`.
            output: The video.
            sound: File of its sound, as AAC in ADTS, or None for none.
            chapters: Whether that file has chapters.
        """
        graph = graph_module()

        video = graph.input(shielded(listing), format="concat")["v:0"]
        # An input without streams; mapped because ffmpeg-python drops inputs that lead nowhere.
        texts = graph.input(shielded(metadata), format="ffmetadata")["v?"]
        # Behind the texts, which `map_metadata` counts.
        heard = [] if sound is None else [graph.input(shielded(sound), format="aac")["a:0"]]
        kept = "copy" if "aac" in self.format.audio else self.format.audio[0]
        stream = graph.output(
            video,
            texts,
            *heard,
            shielded(output),
            format=self.format.muxer,
            vcodec="copy",
            **({"acodec": kept} if heard else {}),
            map_metadata=1,
            **({"map_chapters": 1} if chapters else {}),
            **filled(self.format.film_options, timescale=self.timescale),
        )
        return argv_of(stream, ffmpeg.prefix())


def exact_fps(fps: float | Fraction) -> Fraction:
    """Return a frame rate as the fraction that the file will carry.

    29.97, 23.976 and their like mean the rates of NTSC, 30000/1001 and so on; any other is the
    nearest fraction with a denominator of at most 1001.

    Raises:
        UsageError: It is not a number between 1 and 240.
    """
    if not FPS_MIN <= fps <= FPS_MAX:
        raise UsageError(f"fps must be between {FPS_MIN} and {FPS_MAX}, got {fps}")
    return ntsc(fps) or Fraction(fps).limit_denominator(_FPS_DENOMINATOR_MAX)


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Refuse texts that a container cannot carry.

    Raises:
        UsageError: A text has a NUL character or is not valid Unicode.
        ValueError: A key is not a lower-case word or is one that the writer sets.
    """
    for key, text in metadata.items():
        if not re.fullmatch("[a-z][a-z0-9_]*", key) or key in RESERVED_METADATA:
            raise ValueError(f"{key!r} cannot be a metadata key")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise UsageError(f"the {key} is not valid Unicode text: {text!r}") from exc
        if "\0" in text:
            raise UsageError(f"the {key} contains a NUL character: {text!r}")


def ffmetadata(
    metadata: Mapping[str, str],
    chapters: Sequence[Chapter] = (),
    *,
    frames: int = 0,
    fps: Fraction = Fraction(1),
) -> bytes:
    """Write metadata in ffmpeg's own text format, safe for newlines and any other character.

    Args:
        metadata: Texts of the whole film.
        chapters: Its shots, in order, if there are several.
        frames: Frames of the film, where there are chapters.
        fps: Frames per second, likewise.
    """

    def line(key: str, text: str) -> str:
        escaped = re.sub(r"([=;#\\\n])", r"\\\1", text)
        return f"{key}={escaped}"

    lines = [line(key, text) for key, text in metadata.items()]
    ends = [*(chapter.frame for chapter in chapters[1:]), frames]
    for chapter, end in zip(chapters, ends, strict=False):
        unit = f"TIMEBASE={fps.denominator}/{fps.numerator}"
        lines += ["[CHAPTER]", unit, f"START={chapter.frame}", f"END={end}"]
        lines.append(line("title", chapter.title))
    return "\n".join((";FFMETADATA1", *lines, "")).encode("utf-8")


def concat_listing(segments: Iterable[tuple[str, int]], fps: Fraction) -> str:
    """List segments for ffmpeg's concat demuxer.

    Durations are whole microseconds there; each one is the difference of two rounded end times,
    so that the rounding never adds up.

    Args:
        segments: File name and number of frames of each.
        fps: Frames per second.
    """
    lines = ["ffconcat version 1.0"]
    frames = end_us = 0
    for name, segment_frames in segments:
        start_us, frames = end_us, frames + segment_frames
        end_us = round(frames / fps * 1_000_000)
        seconds, rest_us = divmod(end_us - start_us, 1_000_000)
        lines += [f"file {name}", f"duration {seconds}.{rest_us:06d}"]
    return "\n".join((*lines, ""))
