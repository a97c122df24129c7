"""What a film is, by ffmpeg's own description of it: imageio-ffmpeg ships no ffprobe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cfgen.errors import InputRefused
from cfgen.files.reading import open_binary
from cfgen.video.ffmpeg import Ffmpeg, described

_STREAM = re.compile(r"^\s*Stream #0:\d+.*?: (Video|Audio): (.*)$", re.MULTILINE)
_SIZE = re.compile(r", ([1-9]\d*)x([1-9]\d*)[, \[]")
_DURATION = re.compile(r"^\s*Duration: (\d+):(\d\d):(\d\d\.\d+)", re.MULTILINE)
_SOURCE = re.compile(r"^\s*\[[^]]*\]")
_PIXEL = re.compile(r"\bSAR ([1-9]\d*):([1-9]\d*)")
_ROTATION = re.compile(r"rotation of (-?\d+(?:\.\d+)?) degrees")
_HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
_FIELDS = re.compile(r"\b(top|bottom) (coded )?first\b")
_MATRICES = re.compile(r"\b(bt709|smpte170m|bt470bg|fcc|smpte240m|bt2020\w*|gbr|ycgco)\b")
_DOVI_ALONE = re.compile(r"DOVI configuration record:.*profile: 5\b")

HD_ROWS = 720
"""From so many rows on, a film that does not tell its colour matrix is taken to have BT.709's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmFacts:
    """The first picture stream of a film.

    Attributes:
        width: Width of a frame as it is shown, in pixels as high as wide.
        height: Height likewise.
        seconds: Playing time by its own word, 0 if it does not say.
        rotation: Degrees that it is turned by to be shown.
        interlaced: Whether a frame holds two fields.
        matrix: The colour matrix to read it with, empty for its own.
        sound: Whether it has any.
    """

    width: int
    height: int
    seconds: float
    rotation: float
    interlaced: bool
    matrix: str
    sound: bool


def streams_of(text: str) -> list[tuple[str, str]]:
    """The kind of each stream, ``Video`` or ``Audio``, and what ffmpeg says of it."""
    return [(kind, line) for kind, line in _STREAM.findall(text)]


def probe(ffmpeg: Ffmpeg, path: Path) -> FilmFacts:
    """Describe a film.

    Raises:
        InputRefused: It cannot be read, has no moving picture, or is in HDR.
    """
    try:
        open_binary(path).close()
    except (OSError, ValueError) as error:
        raise InputRefused(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    text = described(ffmpeg, path)
    streams = streams_of(text)
    films = [line for kind, line in streams if kind == "Video" and "(attached pic)" not in line]
    if not streams:
        said = text.strip().splitlines()[:1] or ["ffmpeg does not say why"]
        raise InputRefused(
            f"{path} is no film that ffmpeg reads: {_SOURCE.sub('', said[0]).strip()}"
        )
    size = _SIZE.search(films[0]) if films else None
    if not films or size is None:
        raise InputRefused(f"{path} has no moving picture", "give a film, or a picture by --image")
    transfer = next((name for code, name in _HDR.items() if code in films[0]), "")
    if transfer or _DOVI_ALONE.search(text):
        raise InputRefused(
            f"{path} is in HDR ({transfer or 'Dolby Vision'}), and its colours would come out grey",
            "make an SDR copy: ffmpeg -i FILM -vf zscale=t=linear:npl=100,tonemap=hable,"
            "zscale=p=bt709:t=bt709:m=bt709:r=tv,format=yuv420p SDR.mp4",
        )
    width, height = int(size[1]), int(size[2])
    told = _MATRICES.search(films[0].partition(", ")[2].partition(f", {width}x")[0])
    untold = "bt709" if height >= HD_ROWS else "bt601"
    turned, pixel = _ROTATION.search(text), _PIXEL.search(films[0])
    rotation = float(turned[1]) if turned else 0.0
    shown = (round(width * int(pixel[1]) / int(pixel[2])) if pixel else width, height)
    lasts = _DURATION.search(text)
    hours, minutes, seconds = lasts.groups() if lasts else ("0", "0", "0")
    return FilmFacts(
        width=shown[round(rotation) % 180 != 0],
        height=shown[round(rotation) % 180 == 0],
        seconds=int(hours) * 3600 + int(minutes) * 60 + float(seconds),
        rotation=rotation,
        interlaced=_FIELDS.search(films[0]) is not None,
        matrix="" if told or "rgb" in films[0] or "pal8" in films[0] else untold,
        sound=any(kind == "Audio" for kind, _ in streams),
    )
