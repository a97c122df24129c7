"""Text files that ffmpeg reads beside frames: metadata with chapters, and lists of segments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from cfgen.errors import UsageError
from cfgen.video.facts import Chapter

RESERVED_METADATA = frozenset({"frames", "frames_sha256", "ffmpeg_version", "quality", "encoder"})
"""Keys that the writer sets itself."""


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
