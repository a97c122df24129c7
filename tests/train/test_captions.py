from __future__ import annotations

import itertools
import re

import pytest

from cfgen.train.captions import (
    CAMERA_WORDS,
    COLOUR_WORDS,
    GROUND_WORDS,
    MOTION_WORDS,
    SHAPE_WORDS,
    SKY_WORDS,
    caption,
    vocabulary,
    words_of,
)
from cfgen.train.drawing import LANDMARKS
from cfgen.train.world import (
    CAMERAS,
    COLOURS,
    GROUNDS,
    MOTIONS,
    SHAPES,
    SKIES,
    Film,
    Subject,
    sample_film,
)

TABLES = {
    "sky": (SKY_WORDS, SKIES),
    "ground": (GROUND_WORDS, GROUNDS),
    "camera": (CAMERA_WORDS, CAMERAS),
    "colour": (COLOUR_WORDS, COLOURS),
    "shape": (SHAPE_WORDS, SHAPES),
    "motion": (MOTION_WORDS, MOTIONS),
}
SOME = [(sample_film(seed), seed) for seed in range(300)]


def names(text: str, phrases: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{re.escape(phrase)}\b", text) for phrase in phrases)


@pytest.mark.parametrize("table", TABLES)
def test_every_word_of_the_world_can_be_said(table: str) -> None:
    phrases, words = TABLES[table]
    assert set(phrases) == set(words)
    assert all(phrases.values())


@pytest.mark.parametrize("table", TABLES)
def test_no_phrase_means_two_things(table: str) -> None:
    phrases = TABLES[table][0]
    for one, other in itertools.combinations(phrases.values(), 2):
        assert not set(one) & set(other)


def test_one_seed_gives_one_caption() -> None:
    for film, seed in SOME[:20]:
        assert caption(film, seed) == caption(film, seed)


def test_another_seed_gives_other_words() -> None:
    film = sample_film(4)
    assert len({caption(film, seed) for seed in range(100)}) > 90


def test_a_complete_caption_names_everything() -> None:
    for film, seed in SOME:
        text = caption(film, seed, complete=True)
        assert names(text, SKY_WORDS[film.sky]), text
        assert names(text, GROUND_WORDS[film.ground]), text
        assert names(text, CAMERA_WORDS[film.camera]), text
        for subject in film.subjects:
            bodies = [
                f"{colour} {shape} {motion}"
                for colour in COLOUR_WORDS[subject.colour]
                for shape in SHAPE_WORDS[subject.shape]
                for motion in MOTION_WORDS[subject.motion]
            ]
            assert names(text, tuple(bodies)), text


def test_subjects_are_always_named_and_moving_cameras_too() -> None:
    for film, seed in SOME:
        text = caption(film, seed)
        for subject in film.subjects:
            assert names(text, COLOUR_WORDS[subject.colour])
            assert names(text, SHAPE_WORDS[subject.shape])
        if film.camera != "still":
            assert names(text, CAMERA_WORDS[film.camera]), text


def test_sky_ground_and_a_still_camera_are_left_out_now_and_then() -> None:
    film = Film("night", "sand", (Subject("kite", "red", "bobs"),), "still", 1)
    texts = [caption(film, seed) for seed in range(400)]
    for phrases, least, most in (
        (SKY_WORDS["night"], 0.04, 0.18),
        (GROUND_WORDS["sand"], 0.04, 0.18),
        (CAMERA_WORDS["still"], 0.15, 0.36),
    ):
        silent = sum(not names(text, phrases) for text in texts) / len(texts)
        assert least < silent < most


def test_orders_vary() -> None:
    film = Film("night", "sand", (Subject("kite", "red", "bobs"),), "left", 1)
    starts = {caption(film, seed, complete=True).split()[0] for seed in range(60)}
    assert {"over", "panning"} < starts
    assert starts & {"at", "by", "under"}
    assert starts & {"a", "one"}


def test_captions_are_tidy() -> None:
    for film, seed in SOME:
        for complete in (False, True):
            text = caption(film, seed, complete=complete)
            assert re.fullmatch(r"[a-z]+((, | |-)[a-z]+)*", text), text


def test_articles_fit_the_colour() -> None:
    colours = sorted({word for words in COLOUR_WORDS.values() for word in words})
    for film, seed in SOME:
        text = caption(film, seed)
        for article, colour in re.findall(rf"\b(an?) ({'|'.join(colours)})\b", text):
            assert (article == "an") == (colour[0] in "aeiou"), text


def test_the_vocabulary_holds_every_word_of_every_caption() -> None:
    known = set(vocabulary())
    said = {word for film, seed in SOME for word in words_of(caption(film, seed))}
    assert said <= known
    assert len(said) > 0.9 * len(known)


def test_the_vocabulary_is_sorted_and_holds_no_word_twice() -> None:
    words = vocabulary()
    assert words == sorted(set(words))
    assert all(words_of(word) == [word] for word in words)


def test_landmarks_are_never_named() -> None:
    assert not set(LANDMARKS) & set(vocabulary())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Hot-air balloon, at dusk!", ["a", "hot", "air", "balloon", "at", "dusk"]),
        ("camera  pans\nright 30s", ["camera", "pans", "right", "s"]),
        ("over_under Über", ["over", "under", "über"]),
        ("", []),
    ],
)
def test_words_are_lower_case_and_without_punctuation(text: str, words: list[str]) -> None:
    assert words_of(text) == words
