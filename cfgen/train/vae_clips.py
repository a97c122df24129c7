"""Clips of the film world for the autoencoder: crops, with what a picture is about told apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfgen.model.vae import TEMPORAL_STRIDE
from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.sampling import Structure, sample_film
from cfgen.train.film_world.semantics import semantic_channels
from cfgen.train.film_world.world import (
    FADE_FRAMES,
    FIRST_CHUNK_LACKS,
    FRAMES_PER_CHUNK,
    VIEW,
    Box,
    Film,
    landmark_boxes,
    render,
    shot_starts_in_frames,
    subject_boxes,
)

CHUNKS = 8
"""Length of the films that clips are cut from."""

CHANGES = 0.25
"""Share of clips that lie over a cut or over what follows a change within a shot."""

AIMED = 0.6
"""Share of crops that are laid on a subject or a landmark; the others lie anywhere."""

MARGIN = 2.0
"""Units around a box that belong to it: its outline and what it moves within a frame."""

UNCUT, CUT = Structure(((0, 2, "cut"),)), Structure(((0, 1, "cut"), (1, 1, "cut")))
"""Films of two chunks: of one shot, and of two shots at two places."""


@dataclass(frozen=True, slots=True)
class Clips:
    """Crops of equal size.

    Attributes:
        video: [B, T, H, W, 3] uint8, RGB.
        objects: pixels on subjects and landmarks, [B, T, H, W] in {0, 1}.
        semantics: what the cells of the latent frames show, [B, F, C, h, w] float32.
    """

    video: NDArray[np.uint8]
    objects: NDArray[np.uint8]
    semantics: NDArray[np.float32]


def draw_clips(
    *key: int | str,
    films: int,
    crops_per_film: int,
    frames: int,
    crop: tuple[int, int],
    size: tuple[int, int],
    stride: int,
) -> Clips:
    """Draw crops of random films that depend on `key` alone.

    Args:
        key: what the choice depends on.
        films: films, of each one span of frames is rendered.
        crops_per_film: crops of each.
        frames: length of a clip.
        crop: width and height of a crop in pixels.
        size: width and height of whole frames in pixels.
        stride: pixels along a latent cell.
    """
    videos, masks, maps = [], [], []
    for i in range(films):
        rng = rng_for(*key, i)
        film = sample_film(int(rng.integers(2**62)), chunks=CHUNKS)
        start = _start(rng, film, frames)
        video = render(film, start, start + frames, width=size[0], height=size[1])
        boxes = [objects_of(film, frame) for frame in range(start, start + frames)]
        mask = object_mask(boxes, *size)
        for _ in range(crops_per_film):
            x, y = _corner(rng, boxes, crop, size)
            part = np.s_[:, y : y + crop[1], x : x + crop[0]]
            videos.append(video[part])
            masks.append(mask[part])
            maps.append(
                semantic_channels(
                    film,
                    range(start, start + frames, TEMPORAL_STRIDE),
                    crop[1] // stride,
                    crop[0] // stride,
                    window=_in_units(x, y, crop, size),
                )
            )
    return Clips(np.stack(videos), np.stack(masks), np.stack(maps))


@dataclass(frozen=True, slots=True)
class Openings:
    """The first two chunks of films, whole, and where crops of them lie.

    Attributes:
        films: their descriptions, B of them.
        clips: their frames, whole.
        corners: film, row and column of the upper left latent cell of each crop.
    """

    films: list[Film]
    clips: Clips
    corners: list[tuple[int, int, int]]


def draw_openings(
    *key: int | str,
    films: int,
    crops_per_film: int,
    crop: tuple[int, int],
    size: tuple[int, int],
    stride: int,
    cut_share: float,
) -> Openings:
    """Draw the first two chunks of random films, and crops that lie on whole latent cells.

    The arguments are those of `draw_clips`; `crop` is a multiple of `stride`. In a share
    `cut_share` of films, the second chunk is cut to another place.
    """
    frames = range(2 * FRAMES_PER_CHUNK - FIRST_CHUNK_LACKS)
    drawn, videos, masks, maps, corners = [], [], [], [], []
    for i in range(films):
        rng = rng_for(*key, i)
        seed, cuts = int(rng.integers(2**62)), rng.uniform() < cut_share
        film = sample_film(seed, structure=CUT if cuts else UNCUT)
        boxes = [objects_of(film, frame) for frame in frames]
        drawn.append(film)
        videos.append(render(film, 0, len(frames), width=size[0], height=size[1]))
        masks.append(object_mask(boxes, *size))
        told = frames[::TEMPORAL_STRIDE]
        maps.append(semantic_channels(film, told, size[1] // stride, size[0] // stride))
        for _ in range(crops_per_film):
            x, y = _corner(rng, boxes, crop, size)
            corners.append((i, y // stride, x // stride))
    return Openings(drawn, Clips(np.stack(videos), np.stack(masks), np.stack(maps)), corners)


def objects_of(film: Film, frame: int) -> list[Box]:
    """Where the subjects and landmarks of a frame are, in view units."""
    return [*landmark_boxes(film, frame), *subject_boxes(film, frame)]


def object_mask(boxes: list[list[Box]], width: int, height: int) -> NDArray[np.uint8]:
    """Pixels in boxes or near them, [frames, height, width] in {0, 1}."""
    mask = np.zeros((len(boxes), height, width), np.uint8)
    scale = height / VIEW[1]
    for i, found in enumerate(boxes):
        for box in found:
            x0, y0 = (max(0, round((at - MARGIN) * scale)) for at in (box.x0, box.y0))
            x1, y1 = (round((at + MARGIN) * scale) for at in (box.x1, box.y1))
            mask[i, y0:y1, x0:x1] = 1
    return mask


def _in_units(
    x: int, y: int, crop: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge of a crop in view units."""
    scale = VIEW[1] / size[1]
    return x * scale, y * scale, (x + crop[0]) * scale, (y + crop[1]) * scale


def _start(rng: np.random.Generator, film: Film, frames: int) -> int:
    """First frame of a clip: anywhere, or so that it shows a cut, a fade or a change of cast.

    It is the last frame of a latent frame, so that the latent frames of the clip are the film's: a
    cut never falls within one.
    """
    last = film.frames - frames
    starts = shot_starts_in_frames(film)[1:]
    start = int(rng.integers(0, last + 1))
    if starts and rng.uniform() < CHANGES:
        at = starts[int(rng.integers(len(starts)))]
        after = 0 if _cuts(film, at) else FADE_FRAMES - frames
        start = int(np.clip(rng.integers(at - frames + 1, at + max(1, after)), 0, last))
    return start // TEMPORAL_STRIDE * TEMPORAL_STRIDE


def _cuts(film: Film, at: int) -> bool:
    return film.shots[shot_starts_in_frames(film).index(at)].cut


def _corner(
    rng: np.random.Generator, boxes: list[list[Box]], crop: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """Left and upper edge of a crop."""
    room = (size[0] - crop[0], size[1] - crop[1])
    x, y = (int(rng.integers(0, most + 1)) for most in room)
    found = boxes[int(rng.integers(len(boxes)))]
    if not found or rng.uniform() >= AIMED:
        return x, y
    box, scale = found[int(rng.integers(len(found)))], size[1] / VIEW[1]
    at = (scale * (box.x0 + box.x1) / 2, scale * (box.y0 + box.y1) / 2)
    shift = rng.uniform(0.2, 0.8, size=2)
    x, y = (int(np.clip(round(at[i] - shift[i] * crop[i]), 0, room[i])) for i in (0, 1))
    return x, y
