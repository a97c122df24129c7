"""The film world: films are pure functions, places come back as they were, boxes tell the truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cfgen.train.film_world.landmarks import KINDS
from cfgen.train.film_world.sampling import Structure, is_held_out, sample_film, sample_structure
from cfgen.train.film_world.world import (
    VIEW,
    Film,
    Place,
    Shot,
    Subject,
    camera_path,
    landmark_boxes,
    render,
    shot_of,
    subject_boxes,
    subject_centres,
)

KITE, STAR = Subject("kite", "blue", "bobs"), Subject("star", "red", "hovers")
OUT_AND_BACK = Structure(((0, 1, "cut"), (0, 3, "pan"), (0, 3, "back")))


def film_of_shots(*shots: Shot) -> Film:
    return Film((Place("grass", 11), Place("snow", 12)), shots, seed=5)


def shot(place: int = 0, camera: str = "still", chunks: int = 2, **other: object) -> Shot:
    values = {"sky": "day", "speed": "fast", "subjects": (KITE,), "cut": True} | other
    return Shot(place=place, camera=camera, chunks=chunks, **values)  # type: ignore[arg-type]


def test_frames_do_not_depend_on_how_a_film_is_cut() -> None:
    film = sample_film(4, chunks=5)
    whole = render(film, 0, film.frames, width=80, height=48)
    parts = [
        render(film, i, min(i + 11, film.frames), width=80, height=48)
        for i in range(0, film.frames, 11)
    ]
    assert np.array_equal(whole, np.concatenate(parts))
    assert len(whole) == 12 * 5 - 3


def test_shots_last_whole_chunks() -> None:
    film = film_of_shots(shot(chunks=1), shot(1, chunks=2), shot(0, chunks=1))
    borders = np.flatnonzero(np.diff(shot_of(film, film.frames))) + 1
    assert borders.tolist() == [9, 33]
    assert film.frames == 45


def test_a_place_comes_back_as_it_was_left() -> None:
    hovering = (Subject("kite", "blue", "hovers"),)
    first, last = shot(camera="right", subjects=hovering), shot(subjects=hovering)
    film = film_of_shots(first, shot(1, chunks=3), last)
    path = camera_path(film, film.frames)
    assert path[20] == 40
    assert set(path[57:]) == {42.0}, "two units a frame, 21 frames"
    stayed = film_of_shots(first, dataclasses.replace(last, cut=False))
    assert np.array_equal(render(film, 60, 61), render(stayed, 24, 25))


def test_out_and_back_shows_the_same_landmarks_again() -> None:
    film = sample_film(9, structure=OUT_AND_BACK)
    path = camera_path(film, film.frames)
    assert len(set(path[:9])) == 1
    assert abs(path[44] - path[0]) >= 30
    assert path[-1] == pytest.approx(path[0], abs=2)
    before = {(box.cell, box.kind) for box in landmark_boxes(film, 8) if box.share == 1}
    after = {(box.cell, box.kind) for box in landmark_boxes(film, film.frames - 1)}
    assert before
    assert before <= after


def test_landmark_boxes_hold_the_landmarks() -> None:
    """Another seed of the landmarks alone changes pixels inside the boxes and nowhere else."""
    film = film_of_shots(shot(subjects=(Subject("kite", "blue", "hovers"),)))
    other = dataclasses.replace(film, places=(Place("grass", 11), Place("snow", 99)))
    assert np.array_equal(render(film, 0, 1), render(other, 0, 1)), "the second place is not shown"
    boxes = landmark_boxes(film, 0)
    frame = render(film, 0, 1)[0].astype(int)
    sky = frame[2 * 50 : 2 * 51].std()
    assert boxes
    assert sky > 0
    for box in boxes:
        inside = frame[int(2 * box.y0) : int(2 * box.y1), int(2 * box.x0) : int(2 * box.x1)]
        assert inside.std() > 10, f"{box.kind} is drawn in its box"
        assert 0 < box.share <= 1
        assert 0 <= box.x0 < box.x1 <= VIEW[0]


def test_kinds_are_many_and_named_once() -> None:
    assert len(KINDS) >= 40
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_a_subject_leaves_and_another_comes_within_a_second() -> None:
    film = film_of_shots(shot(), shot(subjects=(STAR,), cut=False, chunks=3))
    start = 21
    names = [[s.shape for s, *_ in each] for each in subject_centres(film, np.arange(start, 50))]
    assert names[0] == ["star", "kite"]
    assert all(each == ["star"] for each in names[16:])
    boxes = [subject_boxes(film, frame) for frame in (start, start + 20)]
    assert [box.subject.shape for box in boxes[0]] == ["kite"], "the star is still above"
    assert [box.subject.shape for box in boxes[1]] == ["star"]


def test_a_sky_fades_within_two_seconds() -> None:
    film = film_of_shots(shot(), shot(sky="night", cut=False, chunks=4))
    corner = render(film, 0, film.frames, width=80, height=48)[:, 1, 1].astype(int).sum(-1)
    assert np.all(np.diff(corner[20:54]) <= 0)
    assert len(set(corner[54:])) == 1
    assert corner[20] - corner[60] > 200


def test_most_films_show_a_place_again() -> None:
    structures = [sample_structure(seed, 14) for seed in range(200)]
    assert all(sum(chunks for _, chunks, _ in s.shots) == 14 for s in structures)
    again = [
        any(change == "back" for *_, change in s.shots)
        or any(
            change == "cut" and place in {p for p, *_ in s.shots[:i]}
            for i, (place, _, change) in enumerate(s.shots)
        )
        for s in structures
    ]
    assert np.mean(again) > 0.6


def test_films_of_one_structure_are_cut_alike() -> None:
    structure = sample_structure(3, 12)
    films = [sample_film(i, structure=structure) for i in range(5)]
    assert len({tuple((s.place, s.chunks, s.cut) for s in film.shots) for film in films}) == 1
    assert len(set(films)) == 5


@pytest.mark.parametrize("held_out", [False, True])
def test_what_training_never_sees_is_kept_out(held_out: bool) -> None:
    films = [sample_film(i, chunks=8, held_out=held_out) for i in range(60)]
    assert all(is_held_out(film) == held_out for film in films)


def test_subjects_of_a_shot_differ_in_shape_and_colour() -> None:
    for seed in range(80):
        film = sample_film(seed, chunks=8)
        assert len({place.ground for place in film.places}) == len(film.places)
        for each in film.shots:
            assert 1 <= len(each.subjects) <= 3
            assert len({s.shape for s in each.subjects}) == len(each.subjects)
            assert len({s.colour for s in each.subjects}) == len(each.subjects)


@pytest.mark.parametrize(
    "shots",
    [((0, 1, "pan"),), ((0, 1, "cut"), (1, 1, "back")), ((0, 0, "cut"),), ((0, 1, "fade"),)],
)
def test_a_structure_that_makes_no_sense_is_refused(
    shots: tuple[tuple[int, int, str], ...],
) -> None:
    with pytest.raises(ValueError, match=r"shot"):
        Structure(shots)
