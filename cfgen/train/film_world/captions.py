"""Captions of the film world: a grammar rich in synonyms and word order, and the words it knows.

A caption describes one shot. Landmarks, phases and times never stand in one.
"""

from __future__ import annotations

import re

import numpy as np

from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.world import Film, Subject

COLOUR_WORDS = {
    "red": ("red", "red", "scarlet", "crimson"),
    "orange": ("orange", "orange", "tangerine"),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green", "green", "emerald"),
    "blue": ("blue", "blue", "cobalt"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "magenta"),
    "white": ("white", "white", "snow-white"),
}
SHAPE_WORDS = {
    "balloon": ("balloon", "balloon", "hot-air balloon"),
    "kite": ("kite", "kite", "paper kite"),
    "star": ("star", "star", "five-pointed star"),
    "heart": ("heart", "heart", "valentine heart"),
    "cube": ("cube", "box", "square"),
    "airplane": ("airplane", "plane", "aeroplane"),
    "bird": ("bird", "bird", "songbird"),
    "fish": ("fish", "fish", "flying fish"),
    "rocket": ("rocket", "rocket", "spaceship"),
    "umbrella": ("umbrella", "umbrella", "parasol"),
    "butterfly": ("butterfly", "butterfly", "moth"),
}
MOTION_WORDS = {
    "drifts": (
        "drifts",
        "drifts from side to side",
        "sways",
        "glides back and forth",
        "swings to and fro",
    ),
    "bobs": ("bobs", "bobs up and down", "floats up and down", "rises and falls", "bounces gently"),
    "circles": (
        "circles",
        "flies in circles",
        "loops around",
        "goes round and round",
        "turns in circles",
    ),
    "hovers": ("hovers", "hangs still", "stays in place", "rests in the air", "hovers quietly"),
}
PARTICIPLES = {
    "drifts": ("drifting", "drifting from side to side", "swaying", "flying back and forth"),
    "bobs": ("bobbing", "bobbing up and down", "floating up and down", "bouncing gently"),
    "circles": ("circling", "flying in circles", "looping around", "going round and round"),
    "hovers": ("hovering", "hanging still", "floating in place", "resting in the air"),
}
"""The motions as in "a red kite hovering over the sea"."""
GROUND_WORDS = {
    "grass": ("grassy hills", "green meadows", "a green field", "grassland", "rolling green hills"),
    "snow": ("snowy hills", "snow-covered hills", "winter fields", "a snowy plain", "snow"),
    "sand": ("desert dunes", "sandy hills", "the desert", "golden sand", "sand dunes"),
    "lavender": (
        "lavender fields",
        "fields of lavender",
        "lavender hills",
        "a lavender meadow",
        "lavender",
    ),
    "autumn": ("an autumn forest", "autumn woods", "autumn trees", "a fall forest", "autumn hills"),
    "sea": ("the sea", "the ocean", "the seaside", "the shore", "a beach by the sea"),
    "tulips": (
        "tulip fields",
        "fields of tulips",
        "a flower meadow",
        "tulips",
        "a field of flowers",
    ),
    "canyon": ("a red canyon", "the canyon", "red rocks", "canyon land", "rocky red hills"),
}
SKY_WORDS = {
    "dawn": (
        "at dawn",
        "at sunrise",
        "in the early morning",
        "under a pale morning sky",
        "at daybreak",
    ),
    "day": ("by day", "at noon", "under a blue sky", "on a sunny day", "in bright daylight"),
    "sunset": ("at sunset", "at dusk", "in the evening", "under an orange sky", "as the sun sets"),
    "night": ("at night", "by moonlight", "under the stars", "under a starry sky", "at midnight"),
    "overcast": (
        "on a cloudy day",
        "under a grey sky",
        "in gloomy weather",
        "under overcast skies",
        "on a grey day",
    ),
    "storm": (
        "in a storm",
        "under dark clouds",
        "before a thunderstorm",
        "in stormy weather",
        "under a stormy sky",
    ),
}
CAMERA_WORDS = {
    "still": (
        "the camera is still",
        "the camera stays still",
        "static camera",
        "locked-off shot",
        "fixed camera",
    ),
    "slow right": (
        "the camera pans slowly to the right",
        "a slow pan right",
        "slow pan to the right",
        "the camera moves slowly right",
        "panning right slowly",
    ),
    "slow left": (
        "the camera pans slowly to the left",
        "a slow pan left",
        "slow pan to the left",
        "the camera moves slowly left",
        "panning left slowly",
    ),
    "fast right": (
        "the camera pans quickly to the right",
        "a fast pan right",
        "fast pan to the right",
        "the camera pans right",
        "panning right",
    ),
    "fast left": (
        "the camera pans quickly to the left",
        "a fast pan left",
        "fast pan to the left",
        "the camera pans left",
        "panning left",
    ),
}
RETURN_WORDS = ("again", "back", "once more", "back again")
_ARTICLES = ("a", "a", "a", "one", "a single", "a bright", "a big")
_EMPTY_WORDS = ("are", "as", "in", "is", "it", "its", "of", "on", "there", "to", "with")
"""Words that say nothing of what is to be seen; a warning about them would be noise."""


def caption(film: Film, shot: int, seed: int, *, complete: bool = False) -> str:
    """One caption of a shot; another seed gives other words and another order.

    Args:
        film: what is to be described.
        shot: which of its shots.
        seed: chooses among synonyms and orders.
        complete: name everything. Otherwise a sky, a ground or a still camera is left out now and
            then.
    """
    rng = rng_for(seed, "caption")
    here = film.shots[shot]

    def choose(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    leave_out = 0.0 if complete else 0.06
    place = film.places[here.place]
    sky = "" if rng.uniform() < leave_out else choose(SKY_WORDS[here.sky])
    ground = choose(("over ", "above ")) + choose(GROUND_WORDS[place.ground])
    ground = "" if rng.uniform() < leave_out else ground
    name = "still" if here.camera == "still" else f"{here.speed} {here.camera}"
    silent = name == "still" and rng.uniform() < 2.5 * leave_out
    camera = "" if silent else choose(CAMERA_WORDS[name])
    subject = _subjects(here.subjects, rng)
    orders = (
        (f"{subject} {ground} {sky}", camera),
        (sky, f"{subject} {ground}", camera),
        (camera, f"{subject} {ground} {sky}"),
        (ground, f"{subject} {sky}", camera),
        (sky, camera, f"{subject} {ground}"),
        (f"{subject} {sky} {ground}", camera),
    )
    parts = orders[int(rng.integers(len(orders)))]
    shown_before = here.cut and any(each.place == here.place for each in film.shots[:shot])
    if shown_before and rng.uniform() < 0.5:
        parts = (choose(RETURN_WORDS), *parts)
    return ", ".join(" ".join(part.split()) for part in parts if part.strip())


def _subjects(subjects: tuple[Subject, ...], rng: np.random.Generator) -> str:
    participles = rng.uniform() < 0.4
    motions = PARTICIPLES if participles else MOTION_WORDS
    phrases = []
    for subject in subjects:
        words = (
            COLOUR_WORDS[subject.colour],
            SHAPE_WORDS[subject.shape],
            motions[subject.motion],
        )
        colour, shape, motion = (options[int(rng.integers(len(options)))] for options in words)
        article = _ARTICLES[int(rng.integers(len(_ARTICLES)))]
        if article == "a" and colour[0] in "aeiou":
            article = "an"
        phrases.append(f"{article} {colour} {shape} {motion}")
    joint = (" and ", ", " if participles else " while ")[int(rng.integers(2))]
    return joint.join([", ".join(phrases[:-1]), phrases[-1]] if phrases[1:] else phrases)


def vocabulary() -> list[str]:
    """Every word that a caption can hold, and words without a meaning of their own, sorted."""
    motions = (MOTION_WORDS, PARTICIPLES)
    tables = (COLOUR_WORDS, SHAPE_WORDS, *motions, GROUND_WORDS, SKY_WORDS, CAMERA_WORDS)
    phrases = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    phrases += [*RETURN_WORDS, *_ARTICLES, *_EMPTY_WORDS, "an", "and", "while", "over", "above"]
    return sorted({word for phrase in phrases for word in words_of(phrase)})


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, hyphens split, punctuation dropped."""
    return re.findall(r"[^\W\d_]+", text.lower())
