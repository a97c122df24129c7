"""Pictures as films begin with them: upright, in sRGB, on an opaque ground, of the film's size."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from cfgen.errors import InputRefused
from cfgen.files.reading import read_bytes
from cfgen.units import count

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "pad"]
"""How a picture of other proportions is fitted: what stands out is cut off, or what lacks black."""

LIMIT_NBYTES = 1 << 28
LIMIT_PIXELS = 200_000_000
"""A file that unfolds to more is taken for a bomb."""

_PHOTO_PARTS = "MPO"
"""A photograph with smaller ones behind it, as telephones write it; the first is the picture."""
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
_UPRIGHT = 1
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the size that was asked for.

    Attributes:
        pixels: uint8 [height, width, 3], RGB.
        notes: What was done to it, in sentences.
    """

    pixels: npt.NDArray[np.uint8]
    notes: tuple[str, ...]


def read_picture(path: Path, *, width: int, height: int, fit: Fit = "crop") -> Picture:
    """Read a picture and fit it to a size.

    It is turned as its EXIF says, brought from its colour profile to sRGB, reduced to 8 bits, and
    laid over white where it is transparent.

    Raises:
        InputRefused: It is no picture, damaged, moves, or is of a kind whose colours are not told.
    """
    try:
        content = read_bytes(path, limit=LIMIT_NBYTES)
    except (OSError, ValueError) as error:
        raise InputRefused(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    notes: list[str] = []
    image = _flat(_decoded(path, content, notes), path, notes)
    scaled = fitted(image.size, (width, height), fit)
    if scaled.words:
        notes.append(f"{path.name} is {image.width}x{image.height}: {scaled.words}")
    return Picture(_laid(image, scaled, (width, height)), tuple(notes))


def _decoded(path: Path, content: bytes, notes: list[str]) -> Image:
    """The picture in a file, upright."""
    import PIL.Image
    from PIL import ImageOps, UnidentifiedImageError

    hint = "convert it to PNG or JPEG"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures are judged here
            image = PIL.Image.open(io.BytesIO(content))
            _require_still(path, image)
            image.load()
            if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
                notes.append(f"{path.name} is turned upright, as its EXIF says")
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise InputRefused(f"{path} is no picture in a format that can be read", hint) from None
    except PIL.Image.DecompressionBombError:
        raise InputRefused(f"{path} has more pixels than any picture should", hint) from None
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError) as error:
        raise InputRefused(f"{path} is damaged or cut off: {error}", hint) from None


def _require_still(path: Path, image: Image) -> None:
    """Refuse what moves, has several pages, or is too large; only the header is read."""
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != _PHOTO_PARTS:
        raise InputRefused(
            f"{path} holds {count(pages, 'picture')}, and a film begins with one",
            "take one of them as a PNG, or give what moves with --video",
        )
    if image.width * image.height > LIMIT_PIXELS:
        raise InputRefused(
            f"{path} has {image.width}x{image.height} pixels, more than {LIMIT_PIXELS // 10**6} "
            "million",
            "make it smaller",
        )


def _flat(image: Image, path: Path, notes: list[str]) -> Image:
    """RGB of 8 bits in sRGB, without transparency."""
    import PIL.Image

    if image.mode in _DEEP or (image.mode == "I" and image.format == "PNG"):
        levels = np.asarray(image).astype(np.float64) / 257
        image = PIL.Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
        notes.append(f"{path.name} has 16 bits a pixel, which become 8")
    if image.mode in ("I", "F"):
        raise InputRefused(
            f"{path} holds numbers of 32 bits, and nothing says which of them is white",
            "convert it to PNG or JPEG",
        )
    shown = _srgb(image, path, notes)
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return shown
    alpha = image.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        return shown
    ground = PIL.Image.new("RGB", image.size, (255, 255, 255))
    ground.paste(shown, mask=alpha)
    notes.append(f"{path.name} is transparent in parts, which become white")
    return ground


def _srgb(image: Image, path: Path, notes: list[str]) -> Image:
    """The colours of a picture in sRGB; without a profile they are taken for that."""
    from PIL import ImageCms

    plain = image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")
    profile = image.info.get("icc_profile")
    if not profile:
        return plain.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip()
        made = ImageCms.profileToProfile(
            plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        notes.append(f"the colour profile of {path.name} cannot be used and is left out: {error}")
        return plain.convert("RGB")
    if made is None:
        raise ValueError("a copy was asked for")
    if "srgb" not in name.lower():
        notes.append(f"{path.name} is brought from {name} to sRGB")
    return made


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a picture comes to a size.

    Attributes:
        scaled: Width and height once it is scaled.
        left: Columns that are cut off on the left; if negative, that many are added.
        top: Rows that are cut off at the top, likewise.
        words: What is done, or empty if nothing is.
    """

    scaled: tuple[int, int]
    left: int
    top: int
    words: str


def fitted(size: tuple[int, int], wanted: tuple[int, int], fit: Fit) -> Fitted:
    """How a picture of one size comes to another: it keeps its proportions.

    Args:
        size: Its width and height.
        wanted: Those that are wanted.
        fit: What becomes of other proportions.
    """
    choose = max if fit == "crop" else min
    scale = choose(wanted[0] / size[0], wanted[1] / size[1])
    scaled = tuple(max(1, round(side * scale)) for side in size)
    width, height = (choose(side, most) for side, most in zip(scaled, wanted, strict=True))
    left, top = (width - wanted[0]) // 2, (height - wanted[1]) // 2
    words = "" if (width, height) == size else f"scaled to {width}x{height}"
    for more, what in ((width - wanted[0], "column"), (height - wanted[1], "row")):
        if more > 0:
            words += f"{', ' if words else ''}{count(more, what)} cut off"
        elif more < 0:
            words += f"{', ' if words else ''}{count(-more, what)} of black added"
    return Fitted((width, height), left, top, words)


def _laid(image: Image, fit: Fitted, wanted: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The pixels of a picture once it is scaled and cut, or laid on black."""
    import PIL.Image

    scaled = image.resize(fit.scaled, PIL.Image.Resampling.LANCZOS)
    ground = PIL.Image.new("RGB", wanted)
    ground.paste(scaled, (-fit.left, -fit.top))
    return np.asarray(ground).copy()
