"""Detectors of the film world: right on what the world draws, blurred or not, and on no other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cfgen.train.film_world.detect_camera import camera_of
from cfgen.train.film_world.detect_defects import double_edge, flicker, trace_of
from cfgen.train.film_world.detect_landmarks import hidden_pixels, name_landmarks
from cfgen.train.film_world.detect_scene import ground_of, sky_of, to_view
from cfgen.train.film_world.detect_subjects import find_subjects
from cfgen.train.film_world.detectors import (
    followed,
    has_trace,
    lasting,
    read_film,
    read_shot,
    score_shot,
    still_flicker,
    traces,
)
from cfgen.train.film_world.sampling import sample_film
from cfgen.train.film_world.subjects import SHAPES
from cfgen.train.film_world.world import (
    COLOURS,
    GROUNDS,
    SKIES,
    Film,
    Place,
    Shot,
    Subject,
    landmark_boxes,
    render,
)

PAIR = (Subject("star", "green", "hovers"), Subject("heart", "red", "hovers"))


def film_of(
    *subjects: Subject,
    sky: str = "day",
    ground: str = "grass",
    camera: str = "still",
    chunks: int = 2,
) -> Film:
    shot = Shot(0, sky, camera, "fast", subjects, chunks, cut=True)
    return Film((Place(ground, 5),), (shot,), seed=11)


def blurred(frames: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    """Gaussian blur of `sigma` pixels and noise of 3 levels."""
    taps = torch.exp(-(torch.arange(-6, 7) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2).float().flatten(0, 1)[:, None]
    planes = torch.nn.functional.pad(planes, (6, 6, 6, 6), mode="replicate")
    planes = torch.nn.functional.conv2d(planes, taps[None, None, None])
    planes = torch.nn.functional.conv2d(planes, taps[None, None, :, None])
    soft = planes[:, 0].unflatten(0, (-1, 3)).permute(0, 2, 3, 1).numpy()
    soft = soft + np.random.default_rng(0).normal(0, 3, soft.shape)
    return np.clip(soft + 0.5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sky", SKIES)
def test_every_sky_and_ground_are_told_apart(sky: str) -> None:
    for ground in GROUNDS:
        frames = render(film_of(*PAIR, sky=sky, ground=ground), 0, 1)
        for seen in (frames, blurred(frames)):
            views = to_view(seen)
            assert sky_of(views) == sky
            assert ground_of(views, sky) == ground


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_found_in_every_colour(shape: str) -> None:
    """Each shape is sharp in half of its colours and blurred in the others."""
    right = 0
    for number, colour in enumerate(COLOURS):
        sky, ground = SKIES[number % len(SKIES)], GROUNDS[number % len(GROUNDS)]
        frames = render(film_of(Subject(shape, colour, "bobs"), sky=sky, ground=ground), 3, 4)
        if (number + SHAPES.index(shape)) % 2:
            frames = blurred(frames)
        found = find_subjects(to_view(frames)[0])
        right += bool(found) and (found[0].shape, found[0].colour) == (shape, colour)
    assert right >= len(COLOURS) - 1


def test_a_swap_of_colours_is_seen() -> None:
    swapped = (Subject("star", "red", "hovers"), Subject("heart", "green", "hovers"))
    asked, shown = film_of(*PAIR), film_of(*swapped)
    right = score_shot(asked, 0, read_shot(render(shown, 0, shown.frames)))
    assert right == {"sky": True, "ground": True, "colour": True, "shape": False, "camera": True}


def test_an_empty_sky_shows_no_subject() -> None:
    film = film_of()
    assert read_shot(render(film, 0, film.frames)).subjects == ()
    assert lasting([]) == ()


@pytest.mark.parametrize("camera", ["still", "left", "right"])
@pytest.mark.parametrize(("speed", "sky"), [("slow", "day"), ("fast", "night")])
def test_cameras_are_told_with_their_speed(camera: str, speed: str, sky: str) -> None:
    film = film_of(*PAIR, camera=camera, sky=sky)
    film = replace(film, shots=(replace(film.shots[0], speed=speed),))
    for seen in (frames := render(film, 0, film.frames), blurred(frames)):
        motion = camera_of(to_view(seen))
        assert (motion.camera, motion.speed) == (camera, None if camera == "still" else speed)


def test_noise_shows_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 96, 160, 3), dtype=np.uint8)
    reading = read_shot(noise)
    assert (reading.sky, reading.ground, reading.camera.camera) == (None, None, None)
    assert reading.subjects == ()


def test_landmarks_are_named() -> None:
    named = []
    for number in range(4):
        film = sample_film(400 + number, chunks=2)
        frame = film.frames - 1
        boxes, sky = landmark_boxes(film, frame), film.shots[-1].sky
        picture = render(film, frame, frame + 1)
        for seen in (picture, blurred(picture)):
            named += name_landmarks(seen[0], boxes, sky, hidden_pixels(film, frame))
    assert len(named) > 8
    assert sum(each.is_right for each in named) >= 0.98 * len(named)


def change_of_subject(chunks: int = 4) -> tuple[Film, np.ndarray]:
    old, new = Subject("cube", "blue", "hovers"), Subject("heart", "pink", "hovers")
    kept = Subject("balloon", "yellow", "hovers")
    first = Shot(0, "day", "still", "slow", (old, kept), 2, cut=True)
    film = Film(
        (Place("snow", 9),),
        (first, replace(first, subjects=(new, kept), chunks=chunks, cut=False)),
        seed=4,
    )
    return film, render(film, 0, film.frames)


def test_a_change_of_subject_is_followed_and_leaves_no_trace() -> None:
    film, frames = change_of_subject()
    readings = read_film(film, frames)
    assert all(all(score_shot(film, i, r).values()) for i, r in enumerate(readings))
    assert followed(film, frames, 1) is True
    assert followed(film, frames, 0) is None
    left = traces(film, frames, readings)
    assert left
    assert not any(map(has_trace, left))
    stuck = np.concatenate([frames[:21], np.repeat(frames[20:21], len(frames) - 21, axis=0)])
    assert followed(film, stuck, 1) is False
    assert all(map(has_trace, traces(film, stuck, read_film(film, stuck))))


@pytest.mark.parametrize("share", [0.2, 0.4, 1.0])
def test_what_is_left_of_a_subject_is_measured(share: float) -> None:
    there, gone = film_of(PAIR[0]), film_of()
    before, after = (to_view(render(film, 0, 1))[0] for film in (there, gone))
    seen, *_ = find_subjects(before)
    assert trace_of(after, seen) < 0.05
    assert trace_of(after + share * (before - after), seen) == pytest.approx(share, abs=0.12)


def test_a_second_copy_is_a_double_edge() -> None:
    film = film_of(Subject("cube", "red", "circles"), chunks=3)
    frames = to_view(render(film, 0, 9))
    before, seen = (find_subjects(frames[i])[0] for i in (0, 4))
    pace = (seen.x - before.x) / 4, (seen.y - before.y) / 4
    assert double_edge(frames[4], seen, pace) < 0.1
    ghost = np.maximum(frames[4], 0.5 * frames[4] + 0.5 * frames[0])
    doubled = np.where(np.abs(frames[0] - frames[4]) > 30, 0.5 * frames[4] + 0.5 * frames[0], ghost)
    assert double_edge(doubled.astype(np.float32), seen, pace) > 0.1
    assert double_edge(frames[4], seen, (0.0, 0.0)) == 0.0


def test_flicker_and_its_pattern_are_measured() -> None:
    film = film_of()
    frames = render(film, 0, 21)
    quiet = flicker(frames)
    assert (quiet.change, quiet.second, quiet.pattern) == (0.0, 0.0, 0.0)
    pulsing = frames.copy()
    pulsing[::4] = np.clip(pulsing[::4].astype(int) + 4, 0, 255).astype(np.uint8)
    restless = flicker(pulsing)
    assert restless.change == pytest.approx(2.0, abs=0.3)
    assert restless.pattern > 0.5
    assert still_flicker(film, frames, read_film(film, frames))[0].change == 0.0
    with pytest.raises(ValueError, match="9 frames"):
        flicker(frames[:4])


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 96, 160, 3), np.float32), np.zeros((0, 96, 160, 3), np.uint8)]
)
def test_frames_of_another_form_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="got"):
        read_shot(frames)
