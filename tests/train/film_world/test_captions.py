"""Captions say what a shot shows and nothing that only memory may know."""

from __future__ import annotations

import pytest

from cfgen.train.film_world.captions import (
    CAMERA_WORDS,
    COLOUR_WORDS,
    GROUND_WORDS,
    MOTION_WORDS,
    PARTICIPLES,
    SHAPE_WORDS,
    SKY_WORDS,
    caption,
    vocabulary,
    words_of,
)
from cfgen.train.film_world.landmarks import FORMS
from cfgen.train.film_world.sampling import sample_film
from cfgen.train.film_world.subjects import SHAPES
from cfgen.train.film_world.world import COLOURS, GROUNDS, MOTIONS, SKIES


def test_every_word_of_the_world_can_be_said() -> None:
    assert set(COLOUR_WORDS) == set(COLOURS)
    assert set(SHAPE_WORDS) == set(SHAPES)
    assert set(MOTION_WORDS) == set(PARTICIPLES) == set(MOTIONS)
    assert set(GROUND_WORDS) == set(GROUNDS)
    assert set(SKY_WORDS) == set(SKIES)


def test_a_complete_caption_names_everything() -> None:
    for seed in range(60):
        film = sample_film(seed, chunks=6)
        for number, shot in enumerate(film.shots):
            text = caption(film, number, seed, complete=True)
            camera = "still" if shot.camera == "still" else f"{shot.speed} {shot.camera}"
            assert any(word in text for word in SKY_WORDS[shot.sky])
            assert any(word in text for word in GROUND_WORDS[film.places[shot.place].ground])
            assert any(word in text for word in CAMERA_WORDS[camera])
            for subject in shot.subjects:
                assert any(word in text for word in COLOUR_WORDS[subject.colour])
                assert any(word in text for word in SHAPE_WORDS[subject.shape])
                motions = MOTION_WORDS[subject.motion] + PARTICIPLES[subject.motion]
                assert any(word in text for word in motions)


@pytest.mark.parametrize(
    "table",
    [COLOUR_WORDS, SHAPE_WORDS, MOTION_WORDS, PARTICIPLES, GROUND_WORDS, SKY_WORDS, CAMERA_WORDS],
)
def test_no_phrase_stands_for_two_things(table: dict[str, tuple[str, ...]]) -> None:
    phrases = [phrase for options in table.values() for phrase in set(options)]
    assert len(phrases) == len(set(phrases))


def test_a_caption_says_the_speed_of_a_camera_and_each_binding_once() -> None:
    for seed in range(60):
        film = sample_film(seed, chunks=6)
        for number, shot in enumerate(film.shots):
            text = caption(film, number, seed, complete=True)
            assert ("slow" in text) == (shot.camera != "still" and shot.speed == "slow"), text
            for subject in shot.subjects:
                pairs = [
                    f" {colour} {shape} "
                    for colour in set(COLOUR_WORDS[subject.colour])
                    for shape in set(SHAPE_WORDS[subject.shape])
                ]
                assert sum(text.count(pair) for pair in pairs) == 1, text


def test_captions_differ_in_words_and_order() -> None:
    film = sample_film(5, chunks=6)
    said = {caption(film, 0, seed, complete=True) for seed in range(100)}
    assert len(said) > 95
    assert caption(film, 0, 7) == caption(film, 0, 7)


def test_landmarks_are_never_said() -> None:
    assert not set(FORMS) & set(vocabulary())


def test_only_a_place_shown_before_is_said_to_come_back() -> None:
    said = {True: 0, False: 0}
    for seed in range(80):
        film = sample_film(seed, chunks=8)
        for number, shot in enumerate(film.shots):
            before = {each.place for each in film.shots[:number]}
            back = caption(film, number, seed).startswith(("again", "back", "once more"))
            said[shot.cut and shot.place in before] += back
    assert said[False] == 0
    assert said[True] > 10


def test_the_vocabulary_holds_all_words_of_captions() -> None:
    known = set(vocabulary())
    for seed in range(100):
        film = sample_film(seed, chunks=6)
        assert set(words_of(caption(film, 0, seed))) <= known
