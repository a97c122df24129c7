from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from cfgen.train.probes import KEYS, Reading, consistency, measure, score, seconds_right
from cfgen.train.probes_camera import path_legs
from cfgen.train.world import (
    CAMERAS,
    COLOUR_RGB,
    COLOURS,
    FPS,
    GROUNDS,
    MOTIONS,
    SHAPES,
    SKIES,
    Film,
    Subject,
    render,
    sample_film,
)

FRAMES = 112

COVERING = [
    Film(
        sky=SKIES[i % 5],
        ground=GROUNDS[i % 4],
        subjects=(Subject(SHAPES[(i + i // 5) % 5], COLOURS[i % 6], MOTIONS[i % 4]),),
        camera=CAMERAS[(i + i // 5 * 2) % 5],
        seed=i,
    )
    for i in range(6)
]
"""Every word of every list at least once."""

PAIR = Film(
    "day", "sand", (Subject("star", "pink", "bobs"), Subject("cube", "green", "drifts")), "left", 5
)
PLAIN = Film("sunset", "lavender", (Subject("heart", "yellow", "hovers"),), "right", 8)


def frames_of(film: Film, frames: int = FRAMES, **size: int) -> np.ndarray:
    starts = range(0, frames, 32)
    return np.concatenate([render(film, at, min(at + 32, frames), **size) for at in starts])


def blurred(frames: np.ndarray, seed: int) -> np.ndarray:
    """Gaussian blur of sigma 0.7 pixels, then noise of sigma 4 levels."""
    taps = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 0.7**2))
    soft = np.pad(frames.astype(np.float32), ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    for axis in (1, 2):
        views = np.lib.stride_tricks.sliding_window_view(soft, 7, axis=axis)
        soft = views @ (taps / taps.sum()).astype(np.float32)
    soft += np.random.default_rng(seed).normal(0, 4, frames.shape)
    return np.clip(soft + 0.5, 0, 255).astype(np.uint8)


def wrong_in(film: Film, frames: np.ndarray) -> set[str]:
    return {key for key, right in score(film, measure(frames, FPS)).items() if not right}


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return frames_of(PLAIN)


@pytest.fixture(scope="module")
def plain_reading(plain: np.ndarray) -> Reading:
    return measure(plain, FPS)


def test_the_covering_films_use_every_word() -> None:
    subjects = [film.subjects[0] for film in COVERING]
    assert {film.sky for film in COVERING} == set(SKIES)
    assert {film.ground for film in COVERING} == set(GROUNDS)
    assert {film.camera for film in COVERING} == set(CAMERAS)
    assert {subject.colour for subject in subjects} == set(COLOURS)
    assert {subject.shape for subject in subjects} == set(SHAPES)


@pytest.mark.parametrize("film", COVERING, ids=lambda film: f"film{film.seed}")
def test_the_world_reads_as_it_is(film: Film) -> None:
    reading = measure(frames_of(film), FPS)
    assert (reading.sky, reading.ground, reading.camera) == (film.sky, film.ground, film.camera)
    assert reading.subjects == tuple((s.colour, s.shape) for s in film.subjects)
    assert score(film, reading) == dict.fromkeys(KEYS, True)
    assert consistency(film, reading) == 1.0


def test_two_subjects_read_left_to_right() -> None:
    reading = measure(frames_of(PAIR), FPS)
    assert reading.subjects == (("pink", "star"), ("green", "cube"))
    assert score(PAIR, reading) == dict.fromkeys(KEYS, True)


@pytest.mark.parametrize("film", [COVERING[1], COVERING[4], PAIR], ids=["first", "second", "pair"])
def test_blur_and_noise_do_not_mislead(film: Film) -> None:
    assert not wrong_in(film, blurred(frames_of(film), film.seed))


@pytest.mark.parametrize(("width", "height"), [(320, 192), (256, 144)])
def test_larger_frames_read_the_same(width: int, height: int) -> None:
    assert not wrong_in(PLAIN, frames_of(PLAIN, 80, width=width, height=height))


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"sky": "dawn"}, {"sky"}),
        ({"ground": "sand"}, {"ground"}),
        ({"camera": "left"}, {"camera"}),
        ({"camera": "still"}, {"camera"}),
        ({"camera": "right-left"}, {"camera"}),
        ({"subjects": (Subject("heart", "orange", "hovers"),)}, {"colour"}),
        ({"subjects": (Subject("balloon", "yellow", "hovers"),)}, {"shape"}),
        ({"subjects": ()}, {"colour", "shape"}),
        ({"subjects": (*PLAIN.subjects, Subject("cube", "red", "bobs"))}, {"colour", "shape"}),
    ],
    ids=lambda value: "-".join(sorted(value)),
)
def test_what_differs_is_wrong_and_nothing_else(
    plain_reading: Reading, changed: dict[str, object], wrong: set[str]
) -> None:
    asked = dataclasses.replace(PLAIN, **changed)
    assert {key for key, right in score(asked, plain_reading).items() if not right} == wrong


def test_a_film_without_a_subject_shows_none() -> None:
    empty = dataclasses.replace(PLAIN, subjects=())
    reading = measure(frames_of(empty), FPS)
    assert reading.subjects == ()
    assert consistency(PLAIN, reading) == 0.0


def test_shapes_on_each_other_s_colours_are_wrong() -> None:
    swapped = (Subject("cube", "pink", "bobs"), Subject("star", "green", "drifts"))
    assert wrong_in(PAIR, frames_of(dataclasses.replace(PAIR, subjects=swapped))) == {"shape"}


def test_a_subject_seen_in_a_third_of_the_clip_does_not_count(plain: np.ndarray) -> None:
    empty = frames_of(dataclasses.replace(PLAIN, subjects=()))
    third = np.concatenate([plain[: FRAMES // 3], empty[FRAMES // 3 :]])
    assert wrong_in(PLAIN, third) == {"colour", "shape"}


def recoloured(frames: np.ndarray, old: tuple[int, ...], new: tuple[float, ...]) -> np.ndarray:
    """Move every pixel near one colour, with its shades, as far as that colour moves."""
    shift = np.asarray(new) - np.asarray(old)
    near = np.linalg.norm(frames.astype(float) - np.asarray(old), axis=-1) < 60
    return np.clip(frames + near[..., None] * shift, 0, 255).astype(np.uint8)


def test_a_colour_half_way_between_two_is_neither(plain: np.ndarray) -> None:
    yellow, orange = COLOUR_RGB["yellow"], COLOUR_RGB["orange"]
    half = tuple((a + b) / 2 for a, b in zip(yellow, orange, strict=True))
    assert measure(recoloured(plain, yellow, half), FPS).subjects == ()


def test_a_colour_a_little_off_is_still_that_colour(plain: np.ndarray) -> None:
    off = recoloured(plain, COLOUR_RGB["yellow"], (245.0, 200.0, 22.0))
    assert measure(off, FPS).subjects == (("yellow", "heart"),)


def test_a_bar_of_a_subject_s_colour_is_no_subject() -> None:
    frames = frames_of(dataclasses.replace(PLAIN, subjects=()), 48)
    frames[:, 40:45, 50:82] = COLOUR_RGB["red"]
    assert measure(frames, FPS).subjects == ()


def test_a_field_of_a_subject_s_colour_is_no_subject() -> None:
    frames = frames_of(dataclasses.replace(PLAIN, subjects=()), 48)
    frames[:, 5:75, 30:130] = COLOUR_RGB["red"]
    assert measure(frames, FPS).subjects == ()


def test_a_copy_of_the_subject_is_one_too_many(plain: np.ndarray) -> None:
    frames = plain[:48].copy()
    x = int(np.median(np.nonzero(np.abs(frames[0, :60] - (255.0, 214, 10)).sum(-1) < 30)[1]))
    other = x - 50 if x > 80 else x + 50
    frames[:, 10:62, other - 18 : other + 18] = plain[:48, 10:62, x - 18 : x + 18]
    assert [colour for colour, _ in measure(frames, FPS).subjects] == ["yellow", "yellow"]


def test_grey_frames_lose_their_colours(plain: np.ndarray) -> None:
    grey = np.repeat(plain.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    assert {"sky", "ground", "colour", "shape"} <= wrong_in(PLAIN, grey)


@pytest.mark.parametrize(("camera", "read"), [("right", "left"), ("left", "right")])
def test_a_pan_backwards_in_time_goes_the_other_way(camera: str, read: str) -> None:
    frames = frames_of(dataclasses.replace(PLAIN, camera=camera), 80)
    assert measure(frames[::-1], FPS).camera == read


def test_a_mirrored_sweep_goes_the_other_way() -> None:
    frames = frames_of(dataclasses.replace(PLAIN, camera="right-left"))
    assert measure(frames, FPS).camera == "right-left"
    assert measure(frames[:, :, ::-1], FPS).camera == "left-right"


def test_a_frozen_film_is_still(plain: np.ndarray) -> None:
    frozen = np.repeat(plain[:1], FRAMES, axis=0)
    assert measure(frozen, FPS).camera == "still"


def test_a_pan_at_half_speed_is_no_pan(plain: np.ndarray) -> None:
    assert measure(np.repeat(plain[: FRAMES // 2], 2, axis=0), FPS).camera is None


def test_a_pan_that_stops_half_way_is_no_pan(plain: np.ndarray) -> None:
    half = FRAMES // 2
    stopped = np.concatenate([plain[:half], np.repeat(plain[half : half + 1], half, axis=0)])
    assert measure(stopped, FPS).camera is None


def test_shaking_is_neither_still_nor_a_pan(plain: np.ndarray) -> None:
    shaken = np.concatenate([plain[:8]] * 12)
    assert measure(shaken, FPS).camera is None


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_frames_show_nothing(level: int) -> None:
    reading = measure(np.full((40, 96, 160, 3), level, np.uint8), FPS)
    assert reading.sky is None
    assert reading.subjects == ()
    assert reading.camera is None


def test_noise_shows_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 160, 3), dtype=np.uint8)
    reading = measure(noise, FPS)
    assert (reading.sky, reading.ground, reading.subjects) == (None, None, ())
    assert reading.camera is None


def test_seconds_tell_where_a_film_drifts_off(plain: np.ndarray) -> None:
    night = frames_of(dataclasses.replace(PLAIN, sky="night"))
    drifting = np.concatenate([plain[:80], night[80:]])
    reading = measure(drifting, FPS)
    assert seconds_right(PLAIN, reading) == [True] * 5 + [False] * 2
    assert consistency(PLAIN, reading) == pytest.approx(5 / 7)
    assert reading.sky == "sunset"
    assert reading.details["seconds"][-1]["sky"] == "night"


def test_the_path_follows_the_camera(plain_reading: Reading) -> None:
    path = plain_reading.details["path"]
    assert path == [8.0 * i for i in range(FRAMES // 4)]


def test_one_frame_has_no_camera(plain: np.ndarray) -> None:
    reading = measure(plain[:1], FPS)
    assert (reading.sky, reading.camera) == ("sunset", None)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 96, 160, 3), np.float32),
        np.zeros((96, 160, 3), np.uint8),
        np.zeros((0, 96, 160, 3), np.uint8),
        np.zeros((4, 48, 80, 3), np.uint8),
    ],
    ids=["float", "one-image", "empty", "small"],
)
def test_frames_of_another_form_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="got"):
        measure(frames, FPS)


@pytest.mark.parametrize(
    ("path", "legs"),
    [
        ([0, 0, 0], []),
        ([0, 20, 0, 20], []),
        ([0, 40, 80], [80]),
        ([0, 80, 72, 90], [90]),
        ([0, 80, 80, 10], [80, -70]),
        ([0, -50, 0, -50], [-50, 50, -50]),
        ([0, 10, -60, 20], [-70, 80]),
    ],
)
def test_legs_lie_between_turning_points(path: list[float], legs: list[float]) -> None:
    assert path_legs(np.asarray(path, float)) == legs


def test_every_pair_of_words_is_told_apart() -> None:
    """One frame is enough for skies and grounds, under every light."""
    for sky, ground in itertools.product(SKIES, GROUNDS):
        film = dataclasses.replace(PLAIN, sky=sky, ground=ground)
        reading = measure(render(film, 0, 1), FPS)
        assert (reading.sky, reading.ground) == (sky, ground)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [False, True], ids=["clean", "blurred"])
def test_nearly_every_film_of_the_world_reads_right(damage: bool) -> None:
    right = dict.fromkeys(KEYS, 0)
    films = [sample_film(seed, held_out=bool(seed % 2)) for seed in range(200)]
    for film in films:
        frames = frames_of(film, 10 * FPS)
        reading = measure(blurred(frames, film.seed) if damage else frames, FPS)
        for key, is_right in score(film, reading).items():
            right[key] += is_right
    assert min(right.values()) >= 0.99 * len(films), right
