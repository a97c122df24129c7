"""What a video begins and ends with, as a person sets it; the keys of fields that hold times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cfgen.config.values import Moment
from cfgen.errors import Problem
from cfgen.fields import Range, check

_IN_SECONDS = frozenset({"duration_s", "from_s", "to_s", "offset_s", "fade_s"})


def key_of(name: str) -> str:
    """The key by which a person sets the schema field `name` (units are left out of keys)."""
    return name.removesuffix("_s") if name in _IN_SECONDS else name


@dataclass(frozen=True, kw_only=True, slots=True)
class BeginConfig:
    """What the video begins with, and what it ends with.

    Attributes:
        image: A picture that is the first frame.
        last_image: A picture that the last four frames show, where films are made from their end
            (`order` inverted).
        video: A film that the video goes on from.
        from_s: Where of the film its past begins, null for its start.
        to_s: Where of the film the video goes on, null for its end.
        frames: Frames of the film from there to there, null to count them; a run keeps the number.
        keep_input: Whether the video shows the film's part, with its sound, before it goes on;
            the playing time counts it.
        fit: How a picture or film of other proportions is fitted: cut (crop), or with black (pad).
    """

    image: Path | None = None
    last_image: Path | None = None
    video: Path | None = None
    from_s: Moment = None
    to_s: Moment = None
    frames: Annotated[int | None, Range(low=1)] = None
    keep_input: bool = False
    fit: Literal["crop", "pad"] = "crop"

    def __post_init__(self) -> None:
        more = []
        if self.image is not None and self.video is not None:
            reason = "is a picture beside a film (begin.video): a video begins with one of them"
            more.append(Problem(key="image", reason=reason))
        if self.video is None:
            for name in ("from_s", "to_s", "frames", "keep_input"):
                if getattr(self, name) not in (None, False):
                    reason = "belongs to a film, and none is given (begin.video)"
                    more.append(Problem(key=key_of(name), reason=reason))
        if self.to_s is not None and self.to_s <= (self.from_s or 0):
            reason = (
                f"must lie behind where it begins, at {self.from_s or 0:g} s, got {self.to_s:g}"
            )
            more.append(Problem(key="to", reason=reason))
        check(self, *more, key_of=key_of)

    @property
    def file(self) -> Path | None:
        """The picture or the film, if there is one."""
        return self.image or self.video
