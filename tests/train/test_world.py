from __future__ import annotations

import itertools

import numpy as np
import pytest

from cfgen.train.world import (
    CAMERAS,
    COLOUR_RGB,
    COLOURS,
    FPS,
    GROUNDS,
    MOTIONS,
    PAN_SPEED,
    SHAPES,
    SKIES,
    Film,
    Subject,
    camera_path,
    is_held_out,
    render,
    rng_for,
    sample_film,
    subject_centres,
)

STAR = Subject("star", "red", "drifts")


def film(
    sky: str = "day",
    ground: str = "grass",
    subjects: tuple[Subject, ...] = (STAR,),
    camera: str = "right",
    seed: int = 3,
) -> Film:
    return Film(sky, ground, subjects, camera, seed)


def test_the_same_key_draws_the_same_numbers() -> None:
    assert rng_for(1, "a").uniform() == rng_for(1, "a").uniform()
    keys = [(1, "a"), (2, "a"), (1, "b"), (1, "a", 0)]
    assert len({rng_for(*key).uniform() for key in keys}) == len(keys)


def test_draws_are_those_that_the_films_were_always_made_from() -> None:
    assert rng_for(7, "film").integers(0, 1000, 4).tolist() == [982, 933, 771, 553]


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_film_does_not_depend_on_how_it_is_cut(camera: str) -> None:
    whole = render(film(camera=camera), 30, 46)
    parts = [render(film(camera=camera), at, at + n) for at, n in ((30, 1), (31, 10), (41, 5))]
    assert whole.dtype == np.uint8
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(("width", "height"), [(160, 96), (256, 144), (80, 96)])
def test_frames_have_the_size_asked_for(width: int, height: int) -> None:
    assert render(film(), 0, 2, width=width, height=height).shape == (2, height, width, 3)


def test_a_larger_film_shows_the_same() -> None:
    small = render(film(), 10, 11)[0].astype(float)
    large = render(film(), 10, 11, width=320, height=192)[0].astype(float)
    halved = large.reshape(96, 2, 160, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 1.5


@pytest.mark.parametrize(("camera", "sign"), [("still", 0), ("right", 1), ("left", -1)])
def test_a_pan_goes_one_way_at_one_speed(camera: str, sign: int) -> None:
    path = camera_path(film(camera=camera), 160)
    assert path[0] == 0
    assert set(np.diff(path)) == {sign * PAN_SPEED}


@pytest.mark.parametrize(("camera", "sign"), [("right-left", 1), ("left-right", -1)])
def test_a_sweep_rests_and_comes_back(camera: str, sign: int) -> None:
    legs = set()
    for seed in range(30):
        path = sign * camera_path(film(camera=camera, seed=seed), 160)
        leg = int(path.max()) // PAN_SPEED
        there, rest = path[: leg + 1], path[leg : leg + FPS // 2 + 1]
        back = path[leg + FPS // 2 : 2 * leg + FPS // 2 + 1]
        assert np.array_equal(there, PAN_SPEED * np.arange(leg + 1))
        assert set(rest) == {path.max()}
        assert np.array_equal(back, there[::-1])
        assert path.min() == 0
        legs.add(leg)
    assert min(legs) >= 2 * FPS
    assert max(legs) <= 3.5 * FPS
    assert len(legs) > 5


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_longer_path_starts_with_the_shorter_one(camera: str) -> None:
    long, short = (camera_path(film(camera=camera), frames) for frames in (300, 100))
    assert np.array_equal(long[:100], short)


def test_the_foreground_moves_with_the_camera() -> None:
    before, after = render(film(subjects=()), 20, 22)[:, 80:]
    assert np.array_equal(after[:, :-PAN_SPEED], before[:, PAN_SPEED:])
    assert not np.array_equal(after, before)


def test_clouds_move_at_half_the_camera_s_speed() -> None:
    before, after = render(film(sky="overcast", subjects=()), 20, 22)[:, :40]
    assert np.array_equal(after[:, :-1], before[:, 1:])
    assert not np.array_equal(after, before)


def test_a_still_film_without_subjects_does_not_change() -> None:
    frames = render(film(subjects=(), camera="still"), 0, 60)
    assert (frames == frames[0]).all()


def test_what_left_the_view_comes_back_as_it_was() -> None:
    sweep = film(subjects=(), camera="left-right")
    path = camera_path(sweep, 160)
    leg = int(np.abs(path).max()) // PAN_SPEED
    there = 10
    back = 2 * leg + FPS // 2 - there
    first, again = render(sweep, there, there + 1), render(sweep, back, back + 1)
    assert path[there] == path[back] != path[leg]
    assert np.array_equal(first, again)


def test_a_seed_places_landmarks() -> None:
    one, other = (render(film(subjects=(), seed=seed), 0, 1)[0].astype(int) for seed in (1, 2))
    assert np.abs(one - other).max(-1)[40:70].mean() > 5


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_subjects_stay_in_view_and_apart(motion: str, count: int) -> None:
    frame = np.arange(400)
    for seed in range(60):
        subjects = tuple(Subject(shape, "red", motion) for shape in SHAPES[:count])
        centres = subject_centres(film(subjects=subjects, seed=seed), frame, 160)
        assert centres.shape == (count, 400, 2)
        assert centres[..., 0].min() > 16
        assert centres[..., 0].max() < 160 - 16
        assert centres[..., 1].min() > 16
        assert centres[..., 1].max() < 96 - 24
        if count == 2:
            assert (centres[1, :, 0] - centres[0, :, 0]).min() > 32


@pytest.mark.parametrize(
    ("motion", "across", "up"),
    [("hovers", False, False), ("bobs", False, True), ("circles", True, True)],
)
def test_a_motion_moves_as_it_says(motion: str, across: bool, up: bool) -> None:
    subject = Subject("cube", "red", motion)
    x, y = subject_centres(film(subjects=(subject,)), np.arange(160), 160)[0].T
    assert (np.ptp(x) > 20) == across
    assert (np.ptp(y) > 20) == up
    if not across:
        assert np.ptp(x) == 0


def test_drifting_goes_far_across_and_hardly_up() -> None:
    x, y = subject_centres(film(), np.arange(160), 160)[0].T
    assert np.ptp(x) > 40
    assert np.ptp(y) < 4


@pytest.mark.parametrize(("shape", "colour"), list(itertools.product(SHAPES, COLOURS)))
def test_a_subject_shows_its_colour(shape: str, colour: str) -> None:
    shown = film(subjects=(Subject(shape, colour, "hovers"),))
    frame = render(shown, 0, 1)[0]
    x, y = subject_centres(shown, np.arange(1), 160)[0, 0]
    assert tuple(frame[int(y) + 2, int(x) + 2]) == COLOUR_RGB[colour]
    share = (frame == COLOUR_RGB[colour]).all(-1).mean()
    assert share > 0.008


def test_shapes_do_not_look_alike() -> None:
    masks = []
    for shape in SHAPES:
        frame = render(film(subjects=(Subject(shape, "red", "hovers"),)), 0, 1)[0]
        masks.append((frame == COLOUR_RGB["red"]).all(-1))
    for one, other in itertools.combinations(masks, 2):
        assert (one & other).sum() < 0.85 * (one | other).sum()


def test_one_seed_gives_one_film() -> None:
    assert sample_film(11) == sample_film(11)
    assert len({sample_film(seed) for seed in range(50)}) == 50


def test_held_out_films_are_never_trained_on() -> None:
    for seed in range(300):
        assert not is_held_out(sample_film(seed))
        assert is_held_out(sample_film(seed, held_out=True))


@pytest.mark.parametrize("held_out", [False, True])
def test_films_use_every_word(held_out: bool) -> None:
    films = [sample_film(seed, held_out=held_out) for seed in range(400)]
    subjects = [subject for each in films for subject in each.subjects]
    assert {each.sky for each in films} == set(SKIES)
    assert {each.ground for each in films} == set(GROUNDS)
    assert {each.camera for each in films} == set(CAMERAS)
    assert {subject.colour for subject in subjects} == set(COLOURS)
    assert {subject.shape for subject in subjects} == set(SHAPES)
    assert {subject.motion for subject in subjects} == set(MOTIONS)


def test_about_one_combination_in_ten_is_held_out() -> None:
    combinations = list(itertools.product(SKIES, GROUNDS, COLOURS, SHAPES))
    held = [
        is_held_out(film(sky, ground, (Subject(shape, colour, "bobs"),)))
        for sky, ground, colour, shape in combinations
    ]
    assert 0.07 < np.mean(held) < 0.13


def test_two_subjects_differ_in_colour_and_shape() -> None:
    pairs = [each.subjects for each in map(sample_film, range(300)) if len(each.subjects) == 2]
    assert len(pairs) > 30
    for left, right in pairs:
        assert left.colour != right.colour
        assert left.shape != right.shape
