"""What is found in a film: the world's own is right, and each fault shows in its figure."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cfgen.train.film_world.adherence import (
    RATES,
    Findings,
    asked_speeds,
    camera_measures,
    drift_measures,
    findings_of,
    intervals_of,
    landmarks_named,
    subject_measures,
)
from cfgen.train.film_world.detectors import moving_sightings, read_film
from cfgen.train.film_world.world import Film, Place, Shot, Subject, render

STAR = Subject("star", "green", "bobs")
PAIR = (Subject("kite", "red", "drifts"), Subject("heart", "white", "hovers"))


def shot(camera: str = "still", speed: str = "slow", *subjects: Subject, chunks: int = 1) -> Shot:
    return Shot(0, "day", camera, speed, subjects or (STAR,), chunks, cut=True)


def film_of(*shots: Shot) -> Film:
    return Film((Place("grass", 5),), shots, seed=11)


FILM = film_of(shot(chunks=2), shot("right", "fast", *PAIR), shot("left", "slow"))


@cache
def true_frames() -> np.ndarray:
    return render(FILM, 0, FILM.frames)


@cache
def true_findings() -> Findings:
    return findings_of(FILM, true_frames())


def test_the_world_itself_is_right() -> None:
    found = true_findings()
    assert tuple(found.rates) == RATES
    assert all(all(values) for values in found.rates.values())
    counts = {key: len(values) for key, values in found.rates.items()}
    assert counts["colour"] == counts["shape"] == counts["camera read"] == 3
    assert counts["colour, one"] == counts["shape, one"] == 2
    assert counts["colour, several"] == counts["shape, several"] == 1
    assert all(type(right) is bool for values in found.rates.values() for right in values)
    assert found.measures["camera speed, of asked"] == [1.0, 1.0]
    assert found.measures["camera speed, off"] == [0.0, 0.0, 0.0]
    assert found.measures["subject speed, hovering"] == [0.0]
    assert len(found.measures["subject speed, of asked"]) == 3
    assert found.measures["change of still pictures"] == [0.0]
    assert len(landmarks_named(FILM, true_frames())) > 0
    assert all(landmarks_named(FILM, true_frames()))


def test_subjects_of_another_colour_or_number_are_told_by_their_count() -> None:
    """The film shows another subject in the shot of one, and lacks one in the shot of two."""
    other = replace(STAR, colour="purple")
    asked = film_of(FILM.shots[0], FILM.shots[1])
    shown = film_of(shot("still", "slow", other, chunks=2), shot("right", "fast", PAIR[0]))
    found = findings_of(asked, render(shown, 0, shown.frames))
    assert found.rates["colour, one"] == found.rates["shape, one"] == [False]
    assert found.rates["colour, several"] == found.rates["shape, several"] == [False]
    assert all(found.rates["camera"])


@pytest.mark.parametrize(
    ("camera", "speed", "ratio", "off"),
    [("right", "slow", 0.5, 1.0), ("left", "fast", -1.0, 4.0), ("still", "slow", 0.0, 2.0)],
)
def test_cameras_are_measured_against_what_is_asked(
    camera: str, speed: str, ratio: float, off: float
) -> None:
    asked, shown = film_of(shot("right", "fast")), film_of(shot(camera, speed))
    found = camera_measures(asked, read_film(asked, render(shown, 0, shown.frames)))
    assert found["camera speed, of asked"] == [ratio]
    assert found["camera speed, off"] == [off]


def test_a_camera_that_cannot_be_read_is_no_speed() -> None:
    asked = film_of(shot("right", "fast"))
    noise = np.random.default_rng(0).integers(0, 255, (asked.frames, 192, 320, 3), np.uint8)
    found = findings_of(asked, noise)
    assert found.rates["camera read"] == [False]
    assert found.measures["camera speed, off"] == []


def speeds(asked: Film, shown: Film) -> dict[str, list[float]]:
    frames = render(shown, 0, shown.frames)
    return subject_measures(asked, moving_sightings(asked, frames, read_film(asked, frames)))


def test_subjects_that_rest_have_no_speed_and_those_that_go_are_no_rest() -> None:
    moving = film_of(shot(chunks=2))
    resting = film_of(shot("still", "slow", replace(STAR, motion="hovers"), chunks=2))
    assert speeds(moving, resting)["subject speed, of asked"] == [0.0]
    assert speeds(resting, moving)["subject speed, hovering"][0] > 0.3
    assert speeds(resting, resting)["subject speed, hovering"] == [0.0]


def test_asked_speeds_are_those_of_each_motion() -> None:
    asked = asked_speeds(FILM, 1)
    assert asked["heart", "white"] == 0
    assert asked["kite", "red"] > 0.2
    still = replace(FILM, shots=(replace(FILM.shots[1], camera="left", chunks=1),))
    assert asked_speeds(still, 0) == asked  # neither camera nor length matters


@pytest.mark.parametrize("seed", range(4))
def test_an_asked_speed_is_the_mean_over_a_turn(seed: int) -> None:
    """13 sin(w t) goes 13 sin(2 w) / pi a frame, measured over 4; a turn takes 56 to 72."""
    slow, fast = (13 / np.pi * np.sin(4 * np.pi / frames) for frames in (72, 56))
    asked = asked_speeds(replace(FILM, seed=seed), 0)["star", "green"]
    assert 0.97 * slow < asked < 1.03 * fast


def test_a_film_that_fades_drifts_beyond_the_truth() -> None:
    frames = true_frames().astype(np.float32)
    kept = np.linspace(1, 0.5, len(frames), dtype=np.float32)[:, None, None, None]
    grey = frames.mean((1, 2, 3), keepdims=True)
    faded = (grey + (frames - grey) * kept).round().astype(np.uint8)
    found = drift_measures(FILM, faded)
    for name in ("contrast", "detail"):
        (own,) = found[f"{name} drift, %"]
        (true,) = found[f"{name} drift of the truth, %"]
        assert found[f"{name} drift beyond the truth, %"] == [own - true]
        assert -60 < own - true < -30
    same = drift_measures(FILM, true_frames())
    assert same["saturation drift beyond the truth, %"] == [0.0]
    assert same["saturation drift, %"] == same["saturation drift of the truth, %"]


def test_means_of_several_films_have_the_interval_of_their_kind() -> None:
    films = [
        Findings({"sky": [True, False], "followed": []}, {"off": [1.0, 2.0], "none": []}),
        Findings({"sky": [True, True], "followed": []}, {"off": [6.0], "none": []}),
    ]
    found = intervals_of(films)
    assert list(found) == ["sky", "off"]
    assert (found["sky"].mean, found["sky"].count) == (0.75, 4)
    assert found["sky"].low == pytest.approx(0.3006, abs=1e-4)
    assert (found["off"].mean, found["off"].low, found["off"].high) == (3.0, 1.5, 6.0)
