"""The film world: films are pure functions, places come back as they were, boxes tell the truth."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from cfgen.train.film_world import views
from cfgen.train.film_world.drawing import Canvas
from cfgen.train.film_world.landmarks import KINDS, Kind, draw_landmark, standing
from cfgen.train.film_world.sampling import Structure, is_held_out, sample_film, sample_structure
from cfgen.train.film_world.subjects import SHAPES
from cfgen.train.film_world.world import (
    GROUNDS,
    MOTIONS,
    VIEW,
    Box,
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


def pixels_of(box: Box) -> tuple[slice, slice]:
    """Rows and columns of a box at the usual size, with a pixel to spare."""
    x0, y0, x1, y1 = (2 * edge for edge in (box.x0, box.y0, box.x1, box.y1))
    return (
        slice(max(0, int(y0) - 1), int(np.ceil(y1)) + 1),
        slice(max(0, int(x0) - 1), int(np.ceil(x1)) + 1),
    )


def film_of_shots(*shots: Shot) -> Film:
    return Film((Place("grass", 11), Place("snow", 12)), shots, seed=5)


def shot(place: int = 0, camera: str = "still", chunks: int = 2, **other: object) -> Shot:
    values = {"sky": "day", "speed": "fast", "subjects": (KITE,), "cut": True} | other
    return Shot(place=place, camera=camera, chunks=chunks, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("ground", GROUNDS)
def test_frames_do_not_depend_on_how_a_film_is_cut(ground: str) -> None:
    place, camera = Place(ground, 21), ("left", "right")[GROUNDS.index(ground) % 2]
    night = shot(sky="night", camera=camera, cut=False, subjects=(STAR,), chunks=4)
    film = Film((place,), (shot(camera=camera), night), seed=3)
    whole = render(film, 0, film.frames, width=80, height=48)
    parts = [
        render(film, i, min(i + 11, film.frames), width=80, height=48)
        for i in range(0, film.frames, 11)
    ]
    assert np.array_equal(whole, np.concatenate(parts))
    assert len(whole) == 12 * 6 - 3


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (4, 2), (-1, 2)])
def test_frames_that_are_none_are_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="frames"):
        render(film_of_shots(shot()), start, stop)


@pytest.mark.parametrize(("width", "height"), [(160, 96), (256, 160), (320, 192), (480, 288)])
def test_every_size_shows_the_same_picture(width: int, height: int) -> None:
    film = film_of_shots(shot(camera="right", subjects=(KITE, STAR)))
    seen = render(film, 8, 9, width=width, height=height)[0]
    assert seen.shape == (height, width, 3)
    usual = render(film, 8, 9)[0]
    y, x = np.array([[5, 5], [40, 75], [90, 20], [93, 100]]).T
    at = [np.asarray(each * height / 96, int) for each in (y, x)]
    assert np.abs(seen[at[0], at[1]].astype(int) - usual[2 * y, 2 * x]).max() < 6


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


@pytest.mark.parametrize("ground", GROUNDS)
def test_a_landmark_changes_its_box_and_nothing_else(
    ground: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = Film((Place(ground, 31),), (shot(subjects=()),), seed=5)
    with_them = render(film, 0, 1)[0].astype(int)
    boxes = landmark_boxes(film, 0)
    monkeypatch.setattr(views, "standing", lambda *_: [])
    changed = np.abs(with_them - render(film, 0, 1)[0]).max(-1) > 8
    outside = changed.copy()
    assert boxes
    for box in boxes:
        rows, columns = pixels_of(box)
        assert changed[rows, columns].mean() > 0.25, f"{box.kind} fills its box"
        outside[rows, columns] = False
    assert not outside.any()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_is_as_large_as_it_says(kind: Kind) -> None:
    canvas = Canvas.empty(0, 240, 240, 4.0)
    draw_landmark(canvas, kind, at=(30.0, 40.0), light=np.ones(3, np.float32))
    rows, columns = np.nonzero(canvas.alpha > 0.5)
    assert 40 - rows.min() / 4 == pytest.approx(kind.height, abs=0.4)
    half = max(30 - columns.min() / 4, (columns.max() + 1) / 4 - 30)
    assert half == pytest.approx(kind.half_width, abs=0.4)
    assert 16 <= kind.height <= 25


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("others", [0, 2])
def test_subject_boxes_hold_the_subjects(shape: str, others: int) -> None:
    cast = (Subject(shape, "red", "circles"), *(KITE, STAR)[:others])
    film = film_of_shots(shot(subjects=cast))
    frame = 7
    seen = render(film, frame, frame + 1)[0].astype(int)
    empty = render(film_of_shots(shot(subjects=())), frame, frame + 1)[0]
    changed = np.abs(seen - empty).max(-1) > 8
    for box in subject_boxes(film, frame):
        rows, columns = pixels_of(box)
        assert changed[rows, columns].mean() > 0.25
        changed[rows, columns] = False
    assert not changed.any()


def test_landmarks_near_one_another_differ_in_form() -> None:
    for seed in range(30):
        found = standing(seed, -3000, 3000)
        for i, (cell, kind, _) in enumerate(found):
            near = [other for c, other, _ in found[i + 1 : i + 4] if c - cell < 4]
            assert kind.form not in {other.form for other in near}
        gaps = np.diff([x for _, _, (x, _) in found])
        assert gaps.min() > 25
        assert 40 < gaps.mean() < 60
        assert found[20:40] == standing(seed, found[20][2][0] - 0.1, found[39][2][0] + 0.1)


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


def test_a_subject_that_left_leaves_no_trace() -> None:
    film = film_of_shots(shot(), shot(subjects=(STAR,), cut=False, chunks=3))
    never = film_of_shots(shot(subjects=(STAR,)), shot(subjects=(STAR,), cut=False, chunks=3))
    since = 21
    frames, clean = render(film, 0, film.frames), render(never, 0, never.frames)
    assert np.array_equal(frames[since + 16 :], clean[since + 16 :])
    last = [box.subject.shape for box in subject_boxes(film, since + 15)]
    assert last == ["star"], "it is out of the picture before it is taken away"


def test_a_subject_flies_and_does_not_jump() -> None:
    film = film_of_shots(shot(), shot(subjects=(STAR,), cut=False, chunks=3))
    air = subject_centres(film, np.arange(film.frames))
    for subject in (KITE, STAR):
        path = np.array([(x, y) for each in air for s, x, y, _ in each if s == subject])
        assert np.abs(np.diff(path, axis=0)).max() < 16
        assert path.min() < -20, "it comes from beside the picture, or leaves over it"


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_subjects_stay_in_view_and_apart(motion: str, count: int) -> None:
    names = zip(SHAPES, ("red", "green", "blue"), strict=False)
    cast = tuple(Subject(shape, colour, motion) for shape, colour in names)[:count]
    for seed in range(12):
        film = Film((Place("sand", 1),), (shot(subjects=cast, chunks=6),), seed)
        for frame in range(0, film.frames, 6):
            boxes = subject_boxes(film, frame)
            assert len(boxes) == count
            assert all(box.share > 0.97 for box in boxes)
            for left, right in itertools.pairwise(boxes):
                assert right.x0 > left.x1, "one beside the other"


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
    assert np.mean(again) > 0.8


def time_away(structure: Structure) -> list[int]:
    """Chunks between two showings of a place that a film cuts back to."""
    last: dict[int, int] = {}
    found, now = [], 0
    for place, chunks, change in structure.shots:
        if change == "cut" and place in last:
            found.append(now - last[place])
        now += chunks
        last[place] = now
    return found


def test_time_away_runs_from_seconds_to_half_a_minute() -> None:
    long = [t for seed in range(200) for t in time_away(sample_structure(seed, 40))]
    assert min(long) <= 3
    assert np.mean(np.array(long) >= 12) > 0.15
    assert max(long) >= 28
    assert max(t for seed in range(200) for t in time_away(sample_structure(seed, 10))) <= 8


@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 8, 13, 40])
def test_structures_are_as_long_as_asked(chunks: int) -> None:
    structures = [sample_structure(seed, chunks) for seed in range(100)]
    assert all(sum(length for _, length, _ in s.shots) == chunks for s in structures)
    assert {s.shots[0][2] for s in structures} == {"cut"}
    assert max(place for s in structures for place, *_ in s.shots) <= 2
    for structure in structures:
        for (_, out, _), (_, back, change) in itertools.pairwise(structure.shots):
            if change == "back":
                assert back in (out, out + 1), "it returns to where it began to move"


def test_changes_on_the_way_have_the_time_that_they_take() -> None:
    film_shots = [s for seed in range(200) for s in sample_structure(seed, 14).shots]
    assert min(chunks for _, chunks, change in film_shots if change == "subject") * 12 >= 16
    assert min(chunks for _, chunks, change in film_shots if change == "sky") * 12 >= 32


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
