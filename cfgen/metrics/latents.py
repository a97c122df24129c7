"""How latents drift from chunk to chunk: told before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cfgen.errors import InputRefused
from cfgen.metrics.levels import Reals

Latents = npt.NDArray[np.floating]

FIRST_CHUNKS = 3
"""Chunks that the others are measured against."""


@dataclass(frozen=True, slots=True)
class LatentDrift:
    """The figures of every chunk; each is float64 [chunks].

    Attributes:
        shift: Distance of the channels' means from those of the first chunks, each in standard
            deviations of that channel there; root mean square over channels.
        spread: Standard deviation of the channels over that of the first chunks; geometric mean
            over channels. It grows before a film is seen to be over-saturated.
        detail: Share of the energy that is finer than two by two latent pixels, over that of the
            first chunks.
        to_before: Cosine to the chunk before; NaN for the first.
        to_first: Cosine to the first chunk.
    """

    shift: Reals
    spread: Reals
    detail: Reals
    to_before: Reals
    to_first: Reals


def fine_share(latents: Latents) -> float:
    """Share of the energy about each plane's mean that the means of two by two pixels lack.

    It is 0 for planes of squares of two by two, 0.75 for white noise, and 0 for even planes.

    Args:
        latents: [frames, channels, height, width]; odd edges do not count.
    """
    height, width = (side // 2 * 2 for side in latents.shape[2:])
    even = np.asarray(latents[:, :, :height, :width], dtype=np.float64)
    even = even - even.mean(axis=(2, 3), keepdims=True)
    whole = float(np.square(even).mean())
    if whole == 0:
        return 0.0
    coarse = (even[..., 0::2, 0::2] + even[..., 0::2, 1::2]) / 4
    coarse += (even[..., 1::2, 0::2] + even[..., 1::2, 1::2]) / 4
    return 1 - float(np.square(coarse).mean()) / whole


def cosine(one: Latents, two: Latents) -> float:
    """Cosine of two arrays of one shape, taken as vectors; NaN if one of them is 0."""
    flat, other = (np.asarray(each, dtype=np.float64).ravel() for each in (one, two))
    length = float(np.sqrt((flat @ flat) * (other @ other)))
    return float(flat @ other) / length if length else float("nan")


def latent_drift(chunks: Iterable[Latents]) -> LatentDrift:
    """Measure each chunk against the first three, or as many as there are; three are kept.

    Args:
        chunks: [frames, channels, height, width] each, of one shape.

    Raises:
        InputRefused: There are none, they differ in shape, or a channel of the first chunks does
            not vary.
    """
    means, spreads, fine, to_before, to_first = [], [], [], [], []
    first = before = None
    for chunk in chunks:
        first = chunk if first is None else first
        _require_shape(chunk, first)
        means.append(chunk.mean(axis=(0, 2, 3), dtype=np.float64))
        spreads.append(chunk.std(axis=(0, 2, 3), dtype=np.float64))
        fine.append(fine_share(chunk))
        to_before.append(float("nan") if before is None else cosine(before, chunk))
        to_first.append(cosine(first, chunk))
        before = chunk
    if not fine:
        raise InputRefused("the drift of latents needs chunks, got none")
    shift, spread = _moments(np.array(means), np.array(spreads))
    fine_first = float(np.mean(fine[:FIRST_CHUNKS]))
    return LatentDrift(
        shift=shift,
        spread=spread,
        detail=np.array(fine) / fine_first if fine_first else np.full(len(fine), np.nan),
        to_before=np.array(to_before),
        to_first=np.array(to_first),
    )


def _require_shape(chunk: Latents, first: Latents) -> None:
    if chunk.ndim != 4 or chunk.shape != first.shape:
        raise InputRefused(
            "the drift of latents needs chunks of one shape [frames, channels, height, width],"
            f" got {list(first.shape)} and {list(chunk.shape)}"
        )


def _moments(means: Reals, spreads: Reals) -> tuple[Reals, Reals]:
    """Shift and spread of every chunk, of the means and deviations [chunks, channels]."""
    if not spreads[:FIRST_CHUNKS].all():
        raise InputRefused("a channel of the first chunks does not vary: their drift has no scale")
    usual = spreads[:FIRST_CHUNKS].mean(axis=0)
    away = (means - means[:FIRST_CHUNKS].mean(axis=0)) / usual
    with np.errstate(divide="ignore"):  # a channel that stops varying has spread 0
        spread = np.exp(np.log(spreads / usual).mean(axis=1))
    return np.sqrt(np.square(away).mean(axis=1)), spread
