"""A film as it is scored: what it is, and its frames at its own rate and size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from cfgen.errors import InputRefused, UsageError, WriterError
from cfgen.files.reading import read_text
from cfgen.files.writing import nbytes_of, sha256_of
from cfgen.metrics.levels import Frame
from cfgen.units import parse_rate
from cfgen.video.encoding import exact_fps
from cfgen.video.ffmpeg import Ffmpeg, described
from cfgen.video.formats import FRAME_NAME
from cfgen.video.measure import Measured, measure
from cfgen.video.output import is_film, sidecar_of
from cfgen.video.probe import FilmFacts, probe
from cfgen.video.reading import input_refused, read_frames

LOSSLESS = frozenset(
    {"ffv1", "ffvhuff", "huffyuv", "utvideo", "magicyuv", "png", "apng", "qtrle", "rawvideo"}
)
"""Codecs that give back what was put in, by their names in ffmpeg."""

_VIDEO = re.compile(r"^\s*Stream #0:\d+.*?: Video: (?!.*\(attached pic\))(.*)$", re.MULTILINE)
_RATE = re.compile(r", ([0-9.]+)(k?) (?:fps|tbr)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmSource:
    """A film that can be scored.

    Attributes:
        path: Its file.
        ffmpeg: What reads it.
        facts: What it is by ffmpeg's description.
        fps: Its own frames per second, the mean of them if they come at uneven times.
        packets: Frames that the file holds.
        codec: Its codec by ffmpeg's name.
        pixel_format: Its layout and depth of pixels by ffmpeg's name.
        sha256: Digest of its file.
        nbytes: Size of its file.
        sidecar: What stands beside it, if that is of this very file; else empty.
    """

    path: Path
    ffmpeg: Ffmpeg
    facts: FilmFacts
    fps: Fraction
    packets: int
    codec: str
    pixel_format: str
    sha256: str
    nbytes: int
    sidecar: Mapping[str, object]

    @property
    def lossy(self) -> bool:
        """Whether its codec loses something."""
        return self.codec not in LOSSLESS

    @property
    def prompt(self) -> str | None:
        """What it shows, by its sidecar."""
        return self._told("prompt")

    @property
    def seed(self) -> int | None:
        """The seed that it was made with, by its sidecar."""
        told = self._told("seed")
        return int(told) if told is not None and told.isdecimal() else None

    @property
    def quality(self) -> str | None:
        """The quality that it was encoded with, by its sidecar."""
        facts = self.sidecar.get("facts")
        told = facts.get("quality") if isinstance(facts, Mapping) else None
        return told if isinstance(told, str) else None

    def frames(self) -> Iterator[Frame]:
        """Yield its frames, uint8 [height, width, 3] RGB.

        Raises:
            InputRefused: It cannot be read to its end.
        """
        height, width = self.facts.height, self.facts.width
        try:
            for block in read_frames(
                self.ffmpeg, self.path, fps=self.fps, width=width, height=height, facts=self.facts
            ):
                yield np.frombuffer(block, np.uint8).reshape(height, width, 3)
        except WriterError as error:
            raise input_refused(self.path, error) from None

    def notes(self, frames: int) -> Iterator[str]:
        """What a reader of its figures has to know, a sentence each.

        Args:
            frames: How many were read.
        """
        if self.lossy:
            yield (
                f"{self.codec} loses detail: motion of a lossy file is some percent lower than that"
                " of its raw frames; compare films of one codec and quality"
            )
        if frames != self.packets:
            yield (
                f"its frames come at uneven times: {self.packets} frames were read as {frames} at"
                f" {float(self.fps):.6g} a second"
            )

    def _told(self, name: str) -> str | None:
        metadata = self.sidecar.get("metadata")
        told = metadata.get(name) if isinstance(metadata, Mapping) else None
        return told if isinstance(told, str) else None


def open_film(ffmpeg: Ffmpeg, path: Path) -> FilmSource:
    """Look at a film.

    Raises:
        InputRefused: It cannot be read, has no moving picture, tells no rate, or is in HDR.
    """
    shown = path / (FRAME_NAME % 1) if is_film(path) and path.is_dir() else path
    facts = probe(ffmpeg, shown)
    line = _VIDEO.search(described(ffmpeg, shown))
    words = line[1] if line else ""
    codec, _, rest = words.partition(",")
    sha256 = sha256_of(path)
    sidecar = _sidecar(path, sha256)
    rate = _told_rate(sidecar)
    if rate is None and shown != path:
        raise InputRefused(
            f"{path} is a folder of frames, and no {path.name}.json beside it tells their rate",
            "score a folder that cfgen made and nothing changed since",
        )
    try:
        held = measure(ffmpeg, path, decode=False, rate=rate)
    except WriterError as error:
        raise input_refused(path, error) from None
    return FilmSource(
        path=path,
        ffmpeg=ffmpeg,
        facts=facts,
        fps=rate or _rate_of(path, words, held),
        packets=held.frames,
        codec=codec.split()[0] if codec.split() else "unknown",
        pixel_format=re.split(r"[(,]", rest.strip())[0].strip(),
        sha256=sha256,
        nbytes=nbytes_of(path),
        sidecar=sidecar,
    )


def _told_rate(sidecar: Mapping[str, object]) -> Fraction | None:
    """The rate that what stands beside a film tells; some files round their times."""
    facts = sidecar.get("facts")
    told = facts.get("fps") if isinstance(facts, Mapping) else None
    try:
        return exact_fps(told) if isinstance(told, int | float) else None
    except UsageError:
        return None


def _rate_of(path: Path, words: str, held: Measured) -> Fraction:
    """The rate at which frames come, or their mean."""
    if held.fps is not None:
        return held.fps
    told = _RATE.search(words)
    rate = Fraction(0)
    if told is not None:
        rate = Fraction(parse_rate(told[1])).limit_denominator(1001) * (1000 if told[2] else 1)
    if not rate:
        raise InputRefused(f"{path} does not tell how many frames it has a second")
    return rate


def _sidecar(path: Path, sha256: str) -> Mapping[str, object]:
    """What stands beside a film, if it is there and of this very file."""
    try:
        found = json.loads(read_text(sidecar_of(path)))
        return found if found["facts"]["sha256"] == sha256 else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
