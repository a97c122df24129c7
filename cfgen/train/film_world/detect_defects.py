"""Measures what goes wrong in generated pictures: traces left behind, double edges, flicker.

Axis letters: T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cfgen.train.film_world.detect_subjects import Sighting, templates

Image = NDArray[np.float32]

TRACE = 0.12
"""Share of a subject's contrast from which what is left of it is a trace."""
DOUBLE = 0.25
"""Share of a subject's contrast from which a second edge counts."""
_ALIKE = 0.55
"""Correlation with the subject from which a pattern is its trace."""
_SHIFT = 2


@dataclass(frozen=True, slots=True)
class Flicker:
    """How restless a still shot is, in levels of 255.

    Attributes:
        change: mean absolute change from frame to frame.
        second: mean absolute second difference over time.
        pattern: how much more frames change at one place of every four than at the others, as a
            ratio to the mean change; 0 without such a pattern.
    """

    change: float
    second: float
    pattern: float


def flicker(frames: NDArray[np.uint8], quiet: NDArray[np.bool_] | None = None) -> Flicker:
    """Flicker of consecutive frames [T, H, W, 3] of a still shot, T of 9 or more.

    Args:
        frames: uint8 RGB.
        quiet: pixels [H, W] that no subject crosses; all if None.

    Raises:
        ValueError: fewer than 9 frames.
    """
    if len(frames) < 9:
        raise ValueError(f"flicker needs 9 frames or more, got {len(frames)}")
    seen = slice(None) if quiet is None else quiet
    levels = frames.astype(np.float32)
    first = np.abs(np.diff(levels, axis=0))[:, seen]
    second = np.abs(np.diff(levels, 2, axis=0))[:, seen]
    by_frame = first.reshape(len(first), -1).mean(1)
    by_place = np.array([by_frame[i::4].mean() for i in range(4)])
    mean = float(by_frame.mean())
    pattern = float((by_place.max() - np.median(by_place)) / mean) if mean > 0.02 else 0.0
    return Flicker(mean, float(second.mean()), pattern)


def trace_of(view: Image, seen: Sighting, moved: float = 0.0) -> float:
    """How much of a subject that has left a view still shows where it was, 0..1 of its contrast.

    Args:
        view: [96, 160, 3] RGB levels, from after it left.
        seen: the subject while it was there.
        moved: how far the camera has gone right since then, in units; a trace may stay with the
            picture or with the place, and both are looked at.
    """
    return max(_left_at(view, seen, seen.x), _left_at(view, seen, seen.x - moved))


def _left_at(view: Image, seen: Sighting, x: float) -> float:
    best = 0.0
    for dy in range(-_SHIFT, _SHIFT + 1):
        for dx in range(-_SHIFT, _SHIFT + 1):
            alike, share = _likeness(view, seen, x + dx, seen.y + dy)
            if alike >= _ALIKE:
                best = max(best, share)
    return min(best, 1.0)


def _likeness(view: Image, seen: Sighting, x: float, y: float) -> tuple[float, float]:
    """Correlation of a spot with a subject before the spot's own rows, and its strength."""
    rgb, alpha = stencil(seen)
    half = alpha.shape[0] // 2
    top, left = round(y) - half, round(x) - half
    rows = slice(max(0, top), min(view.shape[0], top + len(alpha)))
    columns = slice(max(0, left), min(view.shape[1], left + len(alpha)))
    if rows.stop - rows.start < half or columns.stop - columns.start < half:
        return 0.0, 0.0
    part = (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
    spot, cover = view[rows, columns], alpha[part][..., None]
    plain = np.median(view[rows], axis=1, keepdims=True)
    wanted = rgb[part] - cover * plain
    shown = spot - plain
    near = cover[..., 0] > 0.02
    ring = np.asarray(grown(near, 3))
    wanted, shown = wanted[ring], shown[ring]
    wanted = wanted - wanted.mean(0)
    shown = shown - shown.mean(0)
    power = float((wanted**2).sum())
    cross = float((wanted * shown).sum())
    alike = cross / np.sqrt(power * max(float((shown**2).sum()), 1e-6) + 1e-6)
    return float(alike), cross / max(power, 1.0)


def double_edge(view: Image, seen: Sighting, velocity: tuple[float, float]) -> float:
    """How strongly a second copy of a moving subject shows behind or before it, 0..1.

    Compares crescents where the subject was up to four frames ago, or will be, with the ring
    around it that it does not cross.

    Args:
        view: [96, 160, 3] RGB levels.
        seen: the subject.
        velocity: units a frame that it moves right and down; slower than half a unit gives 0.
    """
    if np.hypot(*velocity) < 0.5:
        return 0.0
    rgb, alpha = stencil(seen)
    body = grown(alpha > 0.05, 2)
    ring = grown(body, 6) & ~body
    colour = rgb[alpha > 0.95].mean(0)
    shares = _shares(view, seen, colour)
    found = []
    for frames in (-4.0, 4.0):
        dx, dy = round(velocity[0] * frames), round(velocity[1] * frames)
        crescent = np.roll(alpha > 0.5, (dy, dx), (0, 1)) & ~body
        rest = ring & ~grown(crescent, 2)
        if crescent.sum() >= 12 and rest.sum() >= 12:
            found.append(float(np.median(shares[crescent]) - np.median(shares[rest])))
    return min(1.0, max([0.0, *found]))


def _shares(view: Image, seen: Sighting, colour: Image) -> Image:
    """How far each pixel around a subject is from its row's colour towards the subject's."""
    half = stencil(seen)[1].shape[0] // 2
    padded = np.pad(view, ((half, half), (half, half), (0, 0)), mode="edge")
    plain = np.median(padded, axis=1, keepdims=True)
    top, left = round(seen.y), round(seen.x)
    side = 2 * half + 1
    spot = padded[top : top + side, left : left + side] - plain[top : top + side]
    towards = colour - plain[top : top + side]
    return np.asarray((spot * towards).sum(-1) / np.maximum((towards**2).sum(-1), 400.0))


def stencil(seen: Sighting) -> tuple[Image, Image]:
    """Colours times coverage [h, w, 3] and coverage [h, w] of a subject around its centre."""
    made = templates()
    number = made.names.index((seen.shape, seen.colour, seen.count))
    near, shows, _ = made.silhouettes[made.which[number]]
    alpha = torch.where(near > 0, 1 - shows, torch.zeros_like(shows))
    return made.rgb[number].permute(1, 2, 0).numpy(), alpha.numpy()


def grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """A mask [h, w] and all within `by` pixels of it."""
    room = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None]
    wide = torch.nn.functional.max_pool2d(room, 2 * by + 1, 1, by)
    return np.asarray(wide[0, 0].numpy() > 0)
