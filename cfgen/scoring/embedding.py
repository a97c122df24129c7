"""The consistency of a film by an embedder; a still film has all of it, so motion stands beside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cfgen.metrics.consistency import (
    clip_to_clip_consistency,
    cosine_at_marks,
    cosine_to_scene,
    in_clip_consistency,
    lag_curve,
    means_at_marks,
    normalised,
)
from cfgen.metrics.drift import per_second
from cfgen.metrics.film import FilmScore
from cfgen.metrics.identity import Moments, moments_of
from cfgen.metrics.levels import Frame, Reals
from cfgen.scoring.embedder import BATCH, Embedder


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedding:
    """What an embedder says of a film.

    Attributes:
        model: Kind of the network.
        folder: Name of the folder of its weights.
        sha256: Digest of its weights.
        motion: Mean change between frames, in levels of 255; None for fewer than two.
        in_clip: VBench-Long's mean over clips of 2 seconds.
        clip_to_clip: Its consistency of the first frames of all clips.
        to_first_by_mark: Context Forcing's columns: cosine to the first frame of the scene, by
            second.
        to_text_by_mark: Likewise to the prompt; None without one, or without a network for texts.
        by_lag: Cosine of frames that stand so many frames apart.
        to_first: Cosine to the first frame of the scene, float64, a mean a second.
        moments: What the identity is told from; None for a film that is too short.
        identity: By window, against films of the same prompt and other seeds; empty without any.
    """

    model: str
    folder: str
    sha256: str
    motion: float | None
    in_clip: float | None
    clip_to_clip: float | None
    to_first_by_mark: dict[int, float]
    to_text_by_mark: dict[int, float] | None
    by_lag: dict[int, float]
    to_first: Reals
    moments: Moments | None
    identity: dict[str, float] = field(default_factory=dict)


class Watcher:
    """Embeds the frames that pass through it, sixteen at a time."""

    def __init__(self, embedder: Embedder) -> None:
        """Begin a film."""
        self._embedder = embedder
        self._waiting: list[Frame] = []
        self._found: list[NDArray[np.float32]] = []

    def passing(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Yield frames as they come, and embed them."""
        for frame in frames:
            self._waiting.append(frame)
            if len(self._waiting) == BATCH:
                self._empty()
            yield frame
        self._empty()

    def embedding(self, score: FilmScore, prompt: str | None) -> Embedding:
        """What is said of the film, once all its frames have passed.

        Args:
            score: Its other figures.
            prompt: What it shows, if that is known.

        Raises:
            InputRefused: An embedding is 0 or not finite.
        """
        unit, fps = normalised(np.concatenate(self._found)), score.fps
        to_first = cosine_to_scene(unit, score.cuts)
        return Embedding(
            model=self._embedder.kind,
            folder=self._embedder.folder.resolve().name,
            sha256=self._embedder.sha256,
            motion=score.motion,
            in_clip=in_clip_consistency(unit, fps),
            clip_to_clip=clip_to_clip_consistency(unit, fps),
            to_first_by_mark=means_at_marks(to_first, fps),
            to_text_by_mark=self._to_text(unit, fps, prompt),
            by_lag=lag_curve(unit),
            to_first=per_second(to_first, fps),
            moments=moments_of(unit, fps),
        )

    def _to_text(self, unit: Reals, fps: Fraction, prompt: str | None) -> dict[int, float] | None:
        words = self._embedder.text(prompt) if prompt else None
        return None if words is None else cosine_at_marks(unit, normalised(words[None])[0], fps)

    def _empty(self) -> None:
        self._found += self._embedder.frames(self._waiting)
        self._waiting = []
