"""How frames become a video: command lines for ffmpeg, built by ffmpeg-python, and their inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from cfgen.errors import FfmpegMissing, UsageError
from cfgen.units import ntsc
from cfgen.video.codecs import H264, LOSSLESS, Codec, Quality, filled
from cfgen.video.ffmpeg import Ffmpeg, require_encoder, require_filters
from cfgen.video.ffmpeg_graph import argv_of, graph_module, shielded
from cfgen.video.formats import OutputFormat
from cfgen.video.reading import LOSSLESS_SOUND, SOUND_RATE

KEYFRAME_INTERVAL_S = 4
_SMALL = 128
"""Pixels of a side below which frames are coded in small units."""
FPS_MIN, FPS_MAX = 1, 240
_FPS_DENOMINATOR_MAX = 1001
_TIMESCALE_MIN = 10_000
_SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
_INTERPOLATION = {"mi_mode": "mci", "mc_mode": "aobmc", "me_mode": "bidir", "vsbmc": 1}
_REPEATED = 8
"""Times that the last frame is given to minterpolate, which keeps its last ones to itself."""
_TEXTS = "number of the input with texts"
"""Stands for what only the whole command line tells."""
_PACKET = 1024
"""Samples of an AAC packet."""
_BT709 = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}
_RGB = _BT709 | {"colorspace": "rgb"}
_ONE_THREAD = ("-filter_complex_threads", "1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """Everything that decides how frames are coded, checked.

    Attributes:
        format: The kind of file.
        width: Width in pixels, even if the codec needs that.
        height: Height in pixels, likewise.
        fps: Frames per second, 1 to 240.
        quality: A quality of the codec, or its constant rate factor.
        codec_key: A codec of the format, or None for its first.
        asked_bits: Bits of a sample, or None for the codec's first.
        interpolate: Frames per second of the file, more than `fps`, where ffmpeg's minterpolate is
            to work out frames between those that are given; None for `fps`.

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
    interpolate: Fraction | None = None

    def __post_init__(self) -> None:
        codec = self.codec
        codec.quality(self.quality)
        self._check_rate()
        layout = codec.pixel_formats[self.bits]
        least = 2 if codec.even else 1
        for side, pixels in (("width", self.width), ("height", self.height)):
            if pixels < least or pixels % least:
                raise UsageError(
                    f"the {side} must be {'an even' if codec.even else 'a'} number of pixels, at "
                    f"least {least}, for {codec.name} video ({layout}); got {pixels}"
                )

    def _check_rate(self) -> None:
        if self.interpolate is not None:
            if self.interpolate <= self.fps:
                raise UsageError(
                    f"frames are interpolated to more than the {float(self.fps):g} a second that "
                    f"are made, got {float(self.interpolate):g}"
                )
            if self.bits != 8:
                raise UsageError(
                    f"minterpolate, which works out frames between frames, has 8 bits, and "
                    f"{self.codec.name} is to be written with {self.bits}",
                    "leave --interpolate out, or choose --bits 8",
                )
        if self.rate > self.format.fps_max:
            raise UsageError(
                f"{self.format.ending} files play at {self.format.fps_max} frames a second at "
                f"most, got {float(self.rate):g}"
            )

    @property
    def rate(self) -> Fraction:
        """Frames per second of the file."""
        return self.interpolate or self.fps

    def frames_of(self, frames: int) -> int:
        """Frames of the file, for so many that are given."""
        return max(1, round(frames * self.rate / self.fps))

    @property
    def whole(self) -> bool:
        """Whether the film is coded once it is whole, from segments without loss."""
        return self.interpolate is not None or not self.codec.exact_joins

    @property
    def pieces(self) -> tuple[Codec, int, Quality]:
        """What segments are coded with: the codec, bits of a sample, and its quality."""
        if self.whole:
            return LOSSLESS, LOSSLESS.bits, LOSSLESS.qualities["draft"]
        return self.codec, self.bits, self.codec.quality(self.quality)

    @property
    def segments(self) -> str:
        """The muxer of segments, and their ending without the dot."""
        return "nut" if self.whole else self.format.segments

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
        return self.rate.numerator * math.ceil(_TIMESCALE_MIN / self.rate.numerator)

    def encode_argv(self, ffmpeg: Ffmpeg, output: str) -> list[str]:
        """Return the command that encodes raw frames from stdin to a segment.

        They are rgb24, or rgb48le where samples have more than 8 bits.
        """
        codec, bits, quality = self.pieces
        raw = graph_module().input(
            "pipe:0",
            format="rawvideo",
            pix_fmt="rgb24" if self.bits == 8 else "rgb48le",
            s=f"{self.width}x{self.height}",
            framerate=str(self.fps),
        )
        muxing = {} if self.whole else self.format.segment_options
        stream = _in_layout(raw, codec, bits).output(
            shielded(output),
            format=self.segments,
            **filled(muxing, timescale=self.timescale),
            **self._coding(codec, quality),
        )
        return argv_of(stream, [*ffmpeg.prefix(), *_ONE_THREAD])

    def palette_argv(self, ffmpeg: Ffmpeg, listing: str, palette: str) -> list[str] | None:
        """Return the command that makes the film's palette, as a PNG; None if it has none."""
        if "palettegen" not in self.codec.filters:
            return None
        colours = self.codec.quality(self.quality).options["max_colors"]
        film = graph_module().input(shielded(listing), format="concat")["v:0"]
        stream = film.filter("palettegen", max_colors=colours).output(
            shielded(palette), format="image2", update=1, vcodec="png"
        )
        return argv_of(stream, [*ffmpeg.prefix(), *_ONE_THREAD])

    def _coding(self, codec: Codec, quality: Quality) -> dict[str, object]:
        """Options of an encoder, and the colours that a stream is told to have."""
        values = {
            "keyint": max(1, round(self.rate * KEYFRAME_INTERVAL_S)),
            "ctu": 64 if min(self.width, self.height) >= _SMALL else 16,
        }
        paletted = "palettegen" in codec.filters  # its options are those of the filters
        tagged = codec.tag and self.format.takes_tags
        return {
            "vcodec": codec.encoder,
            **_colours(codec),
            **({"tag:v": codec.tag} if tagged else {}),
            **filled(codec.options, **values),
            **({} if paletted else filled(quality.options, **values)),
        }

    def _film(self, listing: str, palette: str, frames: int) -> tuple[Any, dict[str, object]]:
        """The film from its segments, and the options of its encoder.

        Args:
            listing: File made of `concat_listing`.
            palette: File made by `palette_argv`, if there is one.
            frames: Frames of all segments.
        """
        graph = graph_module()
        film = graph.input(shielded(listing), format="concat")["v:0"]
        if not self.whole:
            # Segments in nut tell of no colours, and the frames of some codecs of few or none.
            return film, {
                "vcodec": "copy",
                **({} if self.format.takes_tags else _colours(self.codec)),
            }
        codec, quality = self.codec, self.codec.quality(self.quality)
        # Segments that are joined have times within a microsecond; here they are exact.
        film = film.filter("settb", f"{self.fps.denominator}/{self.fps.numerator}")
        film = film.filter("setpts", "N")
        if self.interpolate is not None:
            film = _in_layout(film, H264, 8, "yuv444p")
            film = film.filter("tpad", stop=_REPEATED, stop_mode="clone")
            film = film.filter("minterpolate", fps=str(self.rate), **_INTERPOLATION)
            film = film.filter("trim", end_frame=self.frames_of(frames))
        if "palettegen" in codec.filters:
            dithering = {k: v for k, v in quality.options.items() if k != "max_colors"}
            colours = graph.input(shielded(palette), format="image2")
            film = graph.filter([film, colours["v:0"]], "paletteuse", **dithering)
        else:
            film = _in_layout(film, codec, self.bits)
        return film, {**self._coding(codec, quality), "r": str(self.rate)}

    def _heard(self, sound: str, frames: int) -> tuple[Any, dict[str, object]]:
        """The sound of the film, and the options of its encoder."""
        kind, encoder = Path(sound).suffix.removeprefix("."), self.format.audio[0]
        heard = graph_module().input(shielded(sound), format=kind)["a:0"]
        if kind == "aac":
            return heard, {"acodec": "copy" if encoder == "aac" else encoder}
        if not self.format.exact_times:
            # The container does not tell where in the last packet the sound ends.
            packets = int(frames / self.fps * SOUND_RATE) // _PACKET
            heard = heard.filter("atrim", end_sample=packets * _PACKET)
        return heard, {"acodec": encoder, "audio_bitrate": "192k"}

    def join_argv(
        self,
        ffmpeg: Ffmpeg,
        listing: str,
        metadata: str,
        output: str,
        *,
        frames: int = 0,
        palette: str = "",
        sound: str | None = None,
        chapters: bool = False,
    ) -> list[str]:
        """Return the command that makes the film of its segments, and adds sound and texts.

        Segments are joined as they are, or the film is coded here where it must be whole for that.

        Args:
            ffmpeg: The ffmpeg to use.
            listing: File made of `concat_listing`.
            metadata: File made of `ffmetadata`.
            output: The video.
            frames: Frames of all segments.
            palette: File made by `palette_argv`, if there is one.
            sound: File of its sound, in FLAC, or None for none; by older cfgen, AAC in ADTS.
            chapters: Whether the file of texts has chapters.
        """
        graph = graph_module()
        video, coding = self._film(listing, palette, frames)
        streams: list[Any] = [video]
        options: dict[str, object] = {}
        if sound is not None:
            heard, how = self._heard(sound, frames)
            streams.append(heard)
            options |= how
        if self.format.texts:
            # An input without streams; mapped because ffmpeg-python drops inputs that lead nowhere.
            streams.append(graph.input(shielded(metadata), format="ffmetadata")["v?"])
            options["map_metadata"] = _TEXTS
            options |= {"map_chapters": _TEXTS} if chapters else {}
        muxing = filled(self.format.film_options, timescale=self.timescale)
        if "use_editlist" in muxing and "acodec" in options and options["acodec"] != "copy":
            muxing["use_editlist"] = (
                1  # it tells of samples before the sound, which AAC begins with
            )
        stream = graph.output(
            *streams,
            shielded(output),
            format=self.format.muxer,
            **coding,
            **options,
            **muxing,
        )
        argv = argv_of(stream, [*ffmpeg.prefix(), *(_ONE_THREAD if self.whole else ())])
        inputs = [argv[place + 1] for place, each in enumerate(argv) if each == "-i"]
        return [str(inputs.index(metadata)) if each == _TEXTS else each for each in argv]


def require_encoders(ffmpeg: Ffmpeg, encoding: Encoding, *, sound: bool = False) -> None:
    """Refuse an ffmpeg that was built without what a film is coded with.

    Args:
        ffmpeg: The ffmpeg.
        encoding: How frames are coded.
        sound: Whether it has sound.

    Raises:
        FfmpegMissing: Something is not there; tells what of the same container is.
    """
    if sound:
        for name in (LOSSLESS_SOUND["acodec"], encoding.format.audio[0]):
            require_encoder(ffmpeg, name)
    kept = LOSSLESS.encoder if encoding.whole else encoding.codec.encoder
    needed = ("minterpolate",) if encoding.interpolate is not None else ()
    try:
        require_encoder(ffmpeg, encoding.codec.encoder)
        require_encoder(ffmpeg, kept)
        require_filters(ffmpeg, (*needed, *encoding.codec.filters))
    except FfmpegMissing as error:
        would = [
            f"--codec {each.key}"
            for each in encoding.format.codecs
            if each.encoder in ffmpeg.encoders and each.key != encoding.codec.key
        ]
        if would:
            error.hint = f"{encoding.format.ending} goes with {' or '.join(would)}; or {error.hint}"
        raise


def _colours(codec: Codec) -> dict[str, str]:
    """What a file is told of a codec's colours."""
    return {"color_range": "pc", **_RGB} if codec.rgb else {"color_range": "tv", **_BT709}


def _in_layout(stream: Any, codec: Codec, bits: int, layout: str = "") -> Any:
    """A stream in the pixel layout of a codec, or another one with its colours, and tagged so."""
    scale = {} if codec.rgb else {"out_color_matrix": "bt709", "out_range": "tv"}
    tags = {**_RGB, "colorspace": "gbr"} if codec.rgb else _BT709
    return (
        stream.filter("scale", **scale, flags=_SCALE_FLAGS)
        .filter("format", layout or codec.pixel_formats[bits])
        .filter("setparams", range="pc" if codec.rgb else "tv", **tags)
    )


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
