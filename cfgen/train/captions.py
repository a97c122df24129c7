"""Captions of the film world: a grammar rich in synonyms and word order, and the words it knows.

Landmarks, phases and turning points never stand in a caption.
"""

from __future__ import annotations

import re

import numpy as np

from cfgen.train.world import Film, Subject, rng_for

COLOUR_WORDS = {
    "red": ("red", "red", "scarlet", "crimson"),
    "orange": ("orange", "orange", "tangerine"),
    "yellow": ("yellow", "yellow", "lemon-yellow"),
    "green": ("green", "green", "emerald"),
    "blue": ("blue", "blue", "cobalt"),
    "pink": ("pink", "pink", "magenta"),
}
SHAPE_WORDS = {
    "balloon": ("balloon", "balloon", "hot-air balloon"),
    "kite": ("kite", "kite", "paper kite"),
    "star": ("star", "star", "five-pointed star"),
    "cube": ("cube", "box", "square"),
    "heart": ("heart", "heart", "valentine heart"),
}
MOTION_WORDS = {
    "drifts": (
        "drifts",
        "drifts from side to side",
        "sways",
        "glides back and forth",
        "drifts slowly",
    ),
    "bobs": ("bobs", "bobs up and down", "floats up and down", "rises and falls", "bounces gently"),
    "circles": (
        "circles",
        "flies in circles",
        "loops around",
        "goes round and round",
        "circles slowly",
    ),
    "hovers": ("hovers", "hangs still", "stays in place", "rests in the air", "hovers quietly"),
}
GROUND_WORDS = {
    "grass": ("grassy hills", "green meadows", "a green field", "grassland", "rolling green hills"),
    "snow": ("snowy hills", "snow-covered hills", "white winter fields", "a snowy plain", "snow"),
    "sand": ("desert dunes", "sandy hills", "the desert", "golden sand", "sand dunes"),
    "lavender": (
        "lavender fields",
        "fields of lavender",
        "purple hills",
        "a purple meadow",
        "lavender hills",
    ),
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
}
CAMERA_WORDS = {
    "still": (
        "the camera is still",
        "the camera stays still",
        "static camera",
        "locked-off shot",
        "fixed camera",
    ),
    "right": (
        "the camera pans right",
        "panning right",
        "camera moving to the right",
        "a slow pan to the right",
        "the view travels right",
    ),
    "left": (
        "the camera pans left",
        "panning left",
        "camera moving to the left",
        "a slow pan to the left",
        "the view travels left",
    ),
    "right-left": (
        "the camera pans right and then back left",
        "panning right, then left",
        "the camera sweeps right and returns",
        "a pan to the right and back again",
        "the view travels right, then comes back",
    ),
    "left-right": (
        "the camera pans left and then back right",
        "panning left, then right",
        "the camera sweeps left and returns",
        "a pan to the left and back again",
        "the view travels left, then comes back",
    ),
}
_ARTICLES = ("a", "a", "a", "one", "a single", "a bright", "a big")
_EMPTY_WORDS = ("are", "as", "in", "is", "it", "its", "of", "on", "there", "to", "with")
"""Words that say nothing of what is to be seen; a warning about them would be noise."""


def caption(film: Film, seed: int, *, complete: bool = False) -> str:
    """One caption of the film; another seed gives other words and another order.

    Args:
        film: what is to be described.
        seed: chooses among synonyms and orders.
        complete: name everything. Otherwise a sky, a ground or a still camera is left out now and
            then.
    """
    rng = rng_for(seed, "caption")

    def choose(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    leave_out = 0.0 if complete else 0.1
    sky = "" if rng.uniform() < leave_out else choose(SKY_WORDS[film.sky])
    ground = (
        ""
        if rng.uniform() < leave_out
        else choose(("over ", "above ")) + choose(GROUND_WORDS[film.ground])
    )
    silent = film.camera == "still" and rng.uniform() < 2.5 * leave_out
    camera = "" if silent else choose(CAMERA_WORDS[film.camera])
    subject = _subjects(film.subjects, rng)
    orders = (
        (f"{subject} {ground} {sky}", camera),
        (sky, f"{subject} {ground}", camera),
        (camera, f"{subject} {ground} {sky}"),
        (ground, f"{subject} {sky}", camera),
        (sky, camera, f"{subject} {ground}"),
        (f"{subject} {sky} {ground}", camera),
    )
    parts = orders[int(rng.integers(len(orders)))]
    return ", ".join(" ".join(part.split()) for part in parts if part.strip())


def _subjects(subjects: tuple[Subject, ...], rng: np.random.Generator) -> str:
    phrases = []
    for subject in subjects:
        words = (
            COLOUR_WORDS[subject.colour],
            SHAPE_WORDS[subject.shape],
            MOTION_WORDS[subject.motion],
        )
        colour, shape, motion = (options[int(rng.integers(len(options)))] for options in words)
        article = _ARTICLES[int(rng.integers(len(_ARTICLES)))]
        if article == "a" and colour[0] in "aeiou":
            article = "an"
        phrases.append(f"{article} {colour} {shape} {motion}")
    joint = (" and ", " while ")[int(rng.integers(2))]
    return joint.join(phrases)


def vocabulary() -> list[str]:
    """Every word that a caption can hold, and words without a meaning of their own, sorted."""
    tables = (COLOUR_WORDS, SHAPE_WORDS, MOTION_WORDS, GROUND_WORDS, SKY_WORDS, CAMERA_WORDS)
    phrases = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    phrases += [*_ARTICLES, *_EMPTY_WORDS, "an", "and", "while", "over", "above"]
    return sorted({word for phrase in phrases for word in words_of(phrase)})


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, hyphens split, punctuation dropped."""
    return re.findall(r"[^\W\d_]+", text.lower())
