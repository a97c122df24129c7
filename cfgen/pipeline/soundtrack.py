"""The sound file of a video, looked at before anything loads and read when the render begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from cfgen.config.audio import AudioConfig
from cfgen.errors import InputRefused, WriterError
from cfgen.video.ffmpeg import Ffmpeg, find_ffmpeg
from cfgen.video.reading import SOUND_RATE, input_refused
from cfgen.video.sound import count_samples, read_track, require_sound


class Soundtrack:
    """A file with the sound of a video.

    Args:
        file: The file.
        config: What of it is asked for.
        seconds: Playing time of the video.
    """

    def __init__(self, file: Path, config: AudioConfig, *, seconds: Fraction) -> None:
        self.file, self._config, self._seconds = file, config, seconds

    def require_usable(self) -> str:
        """Look into the file, and say what becomes of it.

        Raises:
            InputRefused: It has no sound, or none behind the offset.
        """
        config, name = self._config, self.file.name
        left = float(Fraction(self._length - self._first, SOUND_RATE))
        if self._first >= self._length:
            raise InputRefused(
                f"{self.file} is {float(Fraction(self._length, SOUND_RATE)):.2f} s long, and its "
                f"sound from {config.offset_s or 0:g} s on is asked for",
                "take an earlier --audio-offset",
            )
        begins = f" from {config.offset_s:g} s on" if config.offset_s else ""
        faded = f", faded out in {config.fade_s:g} s" if config.fade_s else ""
        short = float(self._seconds) - left
        if short <= 0:
            return f"the sound of {name}{begins}{faded}"
        if config.loop:
            return f"the sound of {name}{begins}, {left:.2f} s, again and again"
        return f"the sound of {name}{begins}{faded}, {left:.2f} s, then {short:.2f} s of silence"

    def read(self) -> Iterator[bytes]:
        """The sound, in FLAC.

        Raises:
            InputRefused: The file cannot be read.
        """
        config, fade = self._config, None
        self.require_usable()
        if config.fade_s:
            lasts = Fraction(config.fade_s)
            ends = min(self._seconds, Fraction(self._length - self._first, SOUND_RATE))
            fade = (max(Fraction(0), ends - lasts), lasts)
        with _sound_errors(self.file):
            yield from read_track(
                self._ffmpeg,
                self.file,
                first=self._first,
                seconds=self._seconds,
                loop=config.loop,
                fade=fade,
            )

    @property
    def told(self) -> str:
        """What the video is told to sound like, without a look into the file."""
        config = self._config
        facts = [self.file.name.encode(errors="backslashreplace").decode()]
        facts += [f"from {config.offset_s:g} s on"] if config.offset_s else []
        facts += ["looped"] if config.loop else []
        facts += [f"faded out in {config.fade_s:g} s"] if config.fade_s else []
        return ", ".join(facts)

    @property
    def _first(self) -> int:
        return round((self._config.offset_s or 0) * SOUND_RATE)

    @cached_property
    def _length(self) -> int:
        require_sound(self._ffmpeg, self.file)
        with _sound_errors(self.file):
            return count_samples(self._ffmpeg, self.file)

    @cached_property
    def _ffmpeg(self) -> Ffmpeg:
        return find_ffmpeg()


@contextlib.contextmanager
def _sound_errors(file: Path) -> Iterator[None]:
    """Have it told of the file that ffmpeg cannot read it."""
    try:
        yield
    except WriterError as error:
        raise input_refused(file, error, "a whole file") from error
