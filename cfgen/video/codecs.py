"""How frames are coded: the codecs, their encoders in ffmpeg, and what a quality means to each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cfgen.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """What a quality name means to a codec.

    Attributes:
        options: Options of its encoder.
        bits_per_pixel: Bits that a pixel of a frame takes in the file, to check the disk
            beforehand: the most that films of the first `mini` (160x96) took, rounded up
            (`python tests/bench/formats.py sizes`); frames of more pixels take less of each.
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
            a segment that is finished stays as it is. Others are coded once the film is whole, from
            segments in `LOSSLESS`.
        options: Options of the encoder, whatever the quality.
        qualities: Its qualities, by the names that people set, from the smallest file on.
        crf: The least and the largest constant rate factor that it takes, or None if it has none.
        filters: Filters of ffmpeg that it needs besides the encoder.
        rgb: Whether samples are red, green and blue of full range, and not BT.709's luma and
            colour differences.
        tag: Its tag in mp4 and mov, where that is not ffmpeg's own choice.
        in_browsers: Whether some browser plays it.
    """

    key: str
    name: str
    encoder: str
    pixel_formats: Mapping[int, str]
    even: bool
    exact_joins: bool
    options: Mapping[str, object]
    qualities: Mapping[str, Quality]
    crf: tuple[int, int] | None = None
    filters: tuple[str, ...] = ()
    rgb: bool = False
    tag: str = ""
    in_browsers: bool = True

    @property
    def bits(self) -> int:
        """Bits of a sample unless others are chosen."""
        return next(iter(self.pixel_formats))

    def quality(self, text: str) -> Quality:
        """What a quality means that a person sets: one of the names, or a constant rate factor.

        Raises:
            UsageError: It is none of this codec.
        """
        if text in self.qualities:
            return self.qualities[text]
        names = ", ".join(self.qualities)
        if not text.isdecimal():
            raise UsageError(f"the quality {text!r} is unknown; the qualities are {names}")
        if self.crf is None:
            raise UsageError(
                f"{self.name} has no constant rate factor, got {text}", f"its qualities are {names}"
            )
        factor, (least, most) = int(text), self.crf
        if not least <= factor <= most:
            raise UsageError(
                f"the constant rate factor of {self.name} lies between {least} (largest file) and "
                f"{most}, got {text}"
            )
        good = self.qualities["good"]
        return Quality(
            options={**good.options, "crf": factor}, bits_per_pixel=self._bits_per_pixel(factor)
        )

    def _bits_per_pixel(self, crf: int) -> float:
        """Bits per pixel at a rate factor: their logarithm is linear in it, through two names."""
        (low, few), (high, many) = (
            (int(str(each.options["crf"])), each.bits_per_pixel)
            for each in (self.qualities["draft"], self.qualities["best"])
        )
        steepness = math.log(many / few) / (low - high)
        return few * math.exp(steepness * (low - crf))


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
    crf=(1, 51),  # 0 makes a High 4:4:4 stream that most players refuse
    options={"profile:v": "high", "x264-params": _X264},
    qualities={
        "draft": _rated(28, 0.12, preset="veryfast"),
        "good": _rated(18, 0.50, preset="medium"),
        "best": _rated(14, 0.80, preset="slow"),
    },
)

H265 = Codec(
    key="h265",
    name="H.265",
    encoder="libx265",
    pixel_formats={8: "yuv420p", 10: "yuv420p10le"},
    even=True,
    exact_joins=True,
    crf=(0, 51),
    options={"x265-params": _X265},
    # The parameter sets stand in the header alone, as Apple's players ask.
    tag="hvc1",
    qualities={
        "draft": _rated(30, 0.12, preset="veryfast"),
        "good": _rated(20, 0.45, preset="medium"),
        "best": _rated(16, 0.75, preset="slow"),
    },
)

AV1 = Codec(
    key="av1",
    name="AV1",
    encoder="libsvtav1",
    pixel_formats={8: "yuv420p", 10: "yuv420p10le"},
    even=True,
    exact_joins=True,
    crf=(1, 63),
    options={"svtav1-params": "lp=1", "g": "{keyint}"},
    qualities={
        "draft": _rated(40, 0.10, preset=10),
        "good": _rated(24, 0.28, preset=7),
        "best": _rated(16, 0.42, preset=5),
    },
)

VP9 = Codec(
    key="vp9",
    name="VP9",
    encoder="libvpx-vp9",
    pixel_formats={8: "yuv420p", 10: "yuv420p10le"},
    even=True,
    exact_joins=True,
    crf=(0, 63),
    options={"threads": 1, "row-mt": 0, "b:v": 0, "deadline": "good", "g": "{keyint}"},
    qualities={
        "draft": _rated(38, 0.13, **{"cpu-used": 5}),
        "good": _rated(24, 0.38, **{"cpu-used": 3}),
        "best": _rated(16, 0.56, **{"cpu-used": 1}),
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
    # LT, 422 and HQ: 1.7, 2.4 and 3.6 for frames of 1920x1080 (102, 147 and 220 Mbit/s at 29.97
    # fps, Apple's white paper); small ones take more.
    qualities={
        "draft": _plain(2.9, **{"profile:v": 1}),
        "good": _plain(4.0, **{"profile:v": 2}),
        "best": _plain(5.8, **{"profile:v": 3}),
    },
    in_browsers=False,
)

FFV1 = Codec(
    key="ffv1",
    name="FFV1",
    encoder="ffv1",
    pixel_formats={8: "bgr0", 10: "gbrp10le"},
    even=False,
    exact_joins=True,
    options={"threads": 1, "level": 3, "g": 1, "slicecrc": 1},
    # Every quality is lossless; a better one packs frames of 8 bits tighter, to 7.5, 7.3 and 7.1
    # bits a pixel. The figures are those of 10 bits.
    qualities={
        "draft": _plain(10.9, coder="rice"),
        "good": _plain(11.6, coder="range_def"),
        "best": _plain(10.9, coder="range_tab"),
    },
    rgb=True,
    in_browsers=False,
)

LOSSLESS = FFV1
"""What segments are coded with where the film is coded once it is whole."""

GIF = Codec(
    key="gif",
    name="GIF",
    encoder="gif",
    pixel_formats={8: "pal8"},
    even=False,
    exact_joins=False,  # one palette for the whole film
    filters=("palettegen", "paletteuse"),
    options={},
    qualities={
        "draft": _plain(2.4, max_colors=64, dither="none"),
        "good": _plain(4.6, max_colors=256, dither="bayer", bayer_scale=4),
        "best": _plain(4.9, max_colors=256, dither="sierra2_4a"),
    },
    rgb=True,
)

PNG = Codec(
    key="png",
    name="PNG",
    encoder="png",
    pixel_formats={8: "rgb24", 16: "rgb48be"},
    even=False,
    exact_joins=True,
    options={"threads": 1},
    # Every quality is lossless; a better one packs tighter. The figures are those of 16 bits.
    qualities={
        "draft": _plain(15.4, compression_level=1),
        "good": _plain(13.1, compression_level=6, pred="mixed"),
        "best": _plain(12.6, compression_level=9, pred="mixed"),
    },
    rgb=True,
)


def filled(options: Mapping[str, object], **values: object) -> dict[str, object]:
    """Options with values in place of the names in braces."""
    return {name: str(value).format(**values) for name, value in options.items()}
