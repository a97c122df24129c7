"""The sound of a video, as a person sets it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cfgen.config.begin import key_of
from cfgen.config.values import Moment
from cfgen.errors import Problem
from cfgen.fields import check


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioConfig:
    """A file whose sound is the video's.

    Attributes:
        file: A file with sound, of any kind that ffmpeg reads; null for none. It takes the place of
            the sound of a film that the video begins with.
        offset_s: Where in the file the sound begins, null for its start.
        loop: Whether it begins again at the offset when it ends before the video does; else silence
            follows.
        fade_s: How long it takes to fade out at its end or the video's, null for not at all.
    """

    file: Path | None = None
    offset_s: Moment = None
    loop: bool = False
    fade_s: Moment = None

    def __post_init__(self) -> None:
        more = []
        if self.file is None:
            for name in ("offset_s", "loop", "fade_s"):
                if getattr(self, name):
                    reason = "belongs to a sound, and none is given (audio.file)"
                    more.append(Problem(key=key_of(name), reason=reason))
        if self.loop and self.fade_s:
            reason = "fades out where the sound ends, and one that is looped (audio.loop) does not"
            more.append(Problem(key="fade", reason=reason))
        check(self, *more, key_of=key_of)
