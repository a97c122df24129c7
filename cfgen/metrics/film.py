"""All figures of a film that need no model, and those of a film against another, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest

import numpy as np

from cfgen.errors import InputRefused
from cfgen.metrics.change import ChunkGrid, Seams, Wrap, flicker, motion, seams, wrap
from cfgen.metrics.drift import FilmDrift, film_drift
from cfgen.metrics.events import Span, black, cuts, freezes
from cfgen.metrics.levels import FilmLevels, Frame, Meter, Reals
from cfgen.metrics.reference import psnr_of, squared_error, ssim


@dataclass(frozen=True, slots=True)
class FilmScore:
    """What is said of one film.

    Attributes:
        levels: The figures of each frame.
        fps: Frames per second.
        grid: Where its chunks begin; None if that is not known.
        drift: How each figure goes over the film.
        motion: Mean change between frames, in levels of 255; None for fewer than two frames.
        flicker: VBench's temporal flickering; a still film has 1, so read it beside `motion`.
        seams: How chunks meet; None if it is not known where they begin.
        cuts: Frames that begin a new scene.
        freezes: Where the film stands still.
        black: Where it is black.
        wrap: How it meets its beginning in a loop; None without frames.
    """

    levels: FilmLevels
    fps: Fraction
    grid: ChunkGrid | None
    drift: FilmDrift
    motion: float | None
    flicker: float | None
    seams: Seams | None
    cuts: tuple[int, ...]
    freezes: tuple[Span, ...]
    black: tuple[Span, ...]
    wrap: Wrap | None

    def alarms(self) -> tuple[str, ...]:
        """What a viewer would find wrong, a sentence each; cuts may be meant and are none."""
        said = list(self.drift.alarms())
        if self.seams is not None and self.seams.visible:
            said.append(
                f"frames change {self.seams.ratio:.2f} times as much where chunks meet,"
                f" most at frame {self.seams.worst}"
            )
        for span in self.freezes:
            said.append(f"the film stands still {self._when(span)}")
        for span in self.black:
            said.append(f"the film is black {self._when(span)}")
        return tuple(said)

    def _when(self, span: Span) -> str:
        return f"from {float(span.first / self.fps):.1f} s to {float(span.stop / self.fps):.1f} s"


def score_film(
    frames: Iterable[Frame], fps: Fraction, *, grid: ChunkGrid | None = None
) -> FilmScore:
    """Score a film; each frame is read once, and two are kept.

    Args:
        frames: uint8 [height, width, 3] each, RGB.
        fps: Frames per second.
        grid: Where its chunks begin, if that is known.

    Raises:
        InputRefused: A frame is too small, no RGB, or of another size than the first.
    """
    meter = Meter()
    first = last = None
    for frame in frames:
        meter.add(frame)
        first = frame if first is None else first
        last = frame
    levels = meter.film()
    return FilmScore(
        levels=levels,
        fps=fps,
        grid=grid,
        drift=film_drift(levels, fps),
        motion=motion(levels.change),
        flicker=flicker(levels.change),
        seams=None if grid is None else seams(levels.change, levels.brightness, grid),
        cuts=cuts(levels.change),
        freezes=freezes(levels.change, fps),
        black=black(levels.dark, fps),
        wrap=None if first is None or last is None else wrap(first, last, levels.change),
    )


@dataclass(frozen=True, slots=True)
class Likeness:
    """A film against a reference, frame by frame.

    Attributes:
        errors: Mean squared error of each frame, in squared levels, float64 [frames].
        ssim: SSIM of each frame, float64 [frames].
    """

    errors: Reals
    ssim: Reals

    @property
    def psnr(self) -> float:
        """PSNR of the mean error of all frames, dB; infinite if all are equal."""
        return psnr_of(float(self.errors.mean()))

    @property
    def worst(self) -> int:
        """The frame with the greatest error."""
        return int(np.argmax(self.errors))

    @property
    def first_unequal(self) -> int | None:
        """The first frame that differs at all, or None."""
        unequal = np.flatnonzero(self.errors)
        return int(unequal[0]) if unequal.size else None


def compare_films(frames: Iterable[Frame], reference: Iterable[Frame]) -> Likeness:
    """Compare two films of the same length and size.

    Args:
        frames: uint8 [height, width, 3] each, RGB.
        reference: The same of the reference.

    Raises:
        InputRefused: They differ in length or size, have no frames, or are too small for SSIM.
    """
    errors: list[float] = []
    likeness: list[float] = []
    for one, two in zip_longest(frames, reference):
        if one is None or two is None:
            longer = "reference" if one is None else "film"
            raise InputRefused(
                f"the {longer} has more than {len(errors)} frames, the other has"
                f" {len(errors)}: only films of the same length are compared"
            )
        errors.append(squared_error(one, two))
        likeness.append(ssim(one, two) if errors[-1] else 1.0)
    if not errors:
        raise InputRefused("there are no frames to compare")
    return Likeness(errors=np.array(errors), ssim=np.array(likeness))
