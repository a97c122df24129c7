"""Odd pictures to begin with, each with its outcome: taken rightly and told, or refused and why."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from cfgen.errors import InputRefused
from cfgen.video.pictures import Picture, fitted, read_picture
from tests.render.inputs import ffmpeg, gradient

WIDTH, HEIGHT = 48, 32
WHOLE = gradient(WIDTH, HEIGHT)


def read(path: Path, **options) -> Picture:
    return read_picture(path, width=WIDTH, height=HEIGHT, **options)


def saved(name: str, image: Image.Image, **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image.save(folder / name, **options)
        return folder / name

    return make


def upright_by_exif(folder: Path) -> Path:
    """As a telephone held upright writes it: on its side, and EXIF says which."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(WHOLE).transpose(Image.Transpose.ROTATE_90)
    lying.save(folder / "phone.png", exif=exif)
    return folder / "phone.png"


def half_clear(mode: str) -> Image.Image:
    """The left half is seen through."""
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, : WIDTH // 2] = 0
    whole = np.dstack([WHOLE, alpha])
    return Image.fromarray(whole).convert(mode)


def palette_with_a_clear_colour() -> Image.Image:
    """The left half has the colour that stands for nothing."""
    numbers = np.ones((HEIGHT, WIDTH), np.uint8)
    numbers[:, : WIDTH // 2] = 0
    image = Image.fromarray(numbers, "P")
    image.putpalette([255, 0, 0, 10, 200, 30])
    image.info["transparency"] = 0
    return image


def deep_grey(folder: Path) -> Path:
    levels = (WHOLE[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    Image.fromarray(levels).save(folder / "deep.png")
    return folder / "deep.png"


def deep_colour(folder: Path) -> Path:
    saved("plain.png", Image.fromarray(WHOLE))(folder)
    plain, deep = str(folder / "plain.png"), str(folder / "deep.png")
    ffmpeg("-i", plain, "-pix_fmt", "rgb48be", deep)
    return folder / "deep.png"


def swapped_profile() -> bytes:
    """A profile of a screen whose red is sRGB's blue, and the reverse; gamma 2.2."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    red, green, blue = (0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))
    name = b"desc\0\0\0\0" + struct.pack(">I", 8) + b"Swapped\0" + b"\0" * 78
    tags = {
        b"desc": name,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(*blue),
        b"gXYZ": xyz(*green),
        b"bXYZ": xyz(*red),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for key, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += key + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", 0, b"\0" * 4, 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    whole = head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def photograph_of_two(folder: Path) -> Path:
    first, second = Image.fromarray(WHOLE), Image.new("RGB", (8, 8))
    first.save(folder / "two.mpo", format="MPO", save_all=True, append_images=[second], quality=95)
    return folder / "two.mpo"


def same(made: np.ndarray, within: float = 2) -> None:
    assert np.abs(made.astype(int) - WHOLE.astype(int)).max() <= within


def left_is_white(made: np.ndarray) -> None:
    half = WIDTH // 2
    assert (made[:, :half] == 255).all()
    assert (made[:, half:].max(-1) < 255).all()


def grey(made: np.ndarray) -> None:
    assert np.abs(made[..., 0].astype(int) - WHOLE[..., 0]).max() <= 1
    assert (made[..., 0] == made[..., 1]).all()


def like(within: float) -> Callable[[np.ndarray], None]:
    return lambda made: same(made, within)


def swapped(made: np.ndarray) -> None:
    """Up to the rounding of two gammas, red and blue have changed places."""
    assert np.abs(made[..., 0].astype(int) - WHOLE[..., 2]).max() < 12
    assert np.abs(made[..., 2].astype(int) - WHOLE[..., 0]).max() < 12


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RGB = Image.fromarray(WHOLE)

TAKEN: dict[str, tuple[Callable[[Path], Path], Callable[[np.ndarray], None], str]] = {
    "a PNG of the right size": (saved("a.png", RGB), like(0), ""),
    "a still GIF": (saved("a.gif", RGB), like(60), ""),
    "a JPEG": (saved("a.jpg", RGB, quality=98), like(20), ""),
    "a WebP": (saved("a.webp", RGB, lossless=True), like(0), ""),
    "a telephone held upright": (upright_by_exif, like(0), "turned upright"),
    "transparency": (saved("a.png", half_clear("RGBA")), left_is_white, "transparent"),
    "grey with transparency": (saved("a.png", half_clear("LA")), left_is_white, "transparent"),
    "a palette with a clear colour": (
        saved("a.png", palette_with_a_clear_colour()),
        left_is_white,
        "transparent",
    ),
    "an alpha channel that hides nothing": (saved("a.png", RGB.convert("RGBA")), like(0), ""),
    "grey of 16 bits": (deep_grey, grey, "16 bits"),
    "colour of 16 bits": (deep_colour, like(1), ""),
    "grey": (saved("a.png", Image.fromarray(WHOLE[..., 0])), grey, ""),
    "inks (CMYK)": (saved("a.tif", RGB.convert("CMYK")), like(2), ""),
    "a profile that is sRGB": (saved("a.png", RGB, icc_profile=SRGB), like(2), ""),
    "a profile of other colours": (
        saved("a.png", RGB, icc_profile=swapped_profile()),
        swapped,
        "from Swapped to sRGB",
    ),
    "a damaged profile": (saved("a.png", RGB, icc_profile=b"\1" * 200), like(0), "left out"),
    "a photograph with a preview behind it": (photograph_of_two, like(25), ""),
}


@pytest.mark.parametrize(("make", "check", "told"), TAKEN.values(), ids=TAKEN)
def test_odd_pictures_are_taken_rightly_and_told(
    make: Callable[[Path], Path],
    check: Callable[[np.ndarray], None],
    told: str,
    tmp_path: Path,
) -> None:
    found = read(make(tmp_path))
    assert (found.pixels.dtype, found.pixels.shape) == (np.uint8, (HEIGHT, WIDTH, 3))
    check(found.pixels)
    assert len(found.notes) == bool(told)
    assert all(told in line for line in found.notes)


def moving(name: str) -> Callable[[Path], Path]:
    others = [Image.fromarray(WHOLE[::-1]), Image.fromarray(255 - WHOLE)]
    return saved(name, RGB, save_all=True, append_images=others)


def cut(name: str, **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        written = io.BytesIO()
        Image.fromarray(noise).save(written, format=name.rpartition(".")[2], **options)
        (folder / name).write_bytes(written.getvalue()[: len(written.getvalue()) // 2])
        return folder / name

    return make


def with_content(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def bomb(folder: Path) -> Path:
    """A header that tells of 2.5 thousand million pixels."""
    Image.fromarray(WHOLE).save(folder / "a.bmp")
    content = bytearray((folder / "a.bmp").read_bytes())
    content[18:26] = struct.pack("<ii", 50_000, 50_000)
    (folder / "a.bmp").write_bytes(content)
    return folder / "a.bmp"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.png")
    return folder / "a.png"


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an animated GIF": (moving("a.gif"), "holds 3 pictures"),
    "an animated PNG": (moving("a.png"), "holds 3 pictures"),
    "an animated WebP": (moving("a.webp"), "holds 3 pictures"),
    "a TIFF of three pages": (moving("a.tif"), "holds 3 pictures"),
    "numbers of 32 bits": (
        saved("a.tif", Image.fromarray(WHOLE[..., 0].astype(np.float32))),
        "32 bits",
    ),
    "a PNG that is cut off": (cut("a.png"), "damaged or cut off"),
    "a JPEG that is cut off": (cut("a.jpeg"), "damaged or cut off"),
    "a bomb": (bomb, "pixels"),
    "a text": (with_content("a.png", b"no picture at all"), "no picture"),
    "an iPhone's HEIC": (with_content("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0"), "no picture"),
    "an empty file": (with_content("a.png", b""), "no picture"),
    "a folder": (lambda folder: folder, "folder"),
    "a pipe": (pipe, "not a regular file"),
    "nothing": (lambda folder: folder / "a.png", "No such file"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_other_pictures_are_refused_with_the_reason(
    make: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputRefused) as caught:
        read(make(tmp_path))
    assert said in str(caught.value)


SIZES = {
    "as it is": ((48, 32), "crop", (48, 32), 0, 0),
    "half": ((96, 64), "crop", (48, 32), 0, 0),
    "larger": ((3, 2), "crop", (48, 32), 0, 0),
    "a point": ((1, 1), "crop", (48, 48), 0, 8),
    "a square, cut": ((100, 100), "crop", (48, 48), 0, 8),
    "a square, with black": ((100, 100), "pad", (32, 32), -8, 0),
    "a panorama, cut": ((1000, 10), "crop", (3200, 32), 1576, 0),
    "a panorama, with black": ((1000, 10), "pad", (48, 1), 0, -16),
    "odd rests": ((47, 31), "crop", (49, 32), 0, 0),
}


@pytest.mark.parametrize(("size", "fit", "scaled", "left", "top"), SIZES.values(), ids=SIZES)
def test_sizes_come_to_that_of_the_video_and_are_told(
    size: tuple[int, int],
    fit: str,
    scaled: tuple[int, int],
    left: int,
    top: int,
    tmp_path: Path,
) -> None:
    how = fitted(size, (WIDTH, HEIGHT), fit)
    assert (how.scaled, how.left, how.top) == (scaled, left, top)
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png", fit=fit)
    assert len(found.notes) == (size != (WIDTH, HEIGHT))
    lit = found.pixels.any(-1)
    assert lit.all() == (fit == "crop")
    assert (found.pixels[lit] == (200, 100, 50)).all()
