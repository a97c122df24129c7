"""How well a film follows what was asked of it: its words, how it moves, whether it drifts.

Everything is read off the pictures by the detectors of the film world.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cfgen.metrics.drift import FIGURES, drift_of_ends, fifths
from cfgen.metrics.intervals import Interval, bootstrap_mean, wilson
from cfgen.train.film_world import detectors
from cfgen.train.film_world.detect_defects import DOUBLE
from cfgen.train.film_world.detect_landmarks import hidden_pixels, name_landmarks
from cfgen.train.film_world.detectors import PACE_FRAMES, MovingSighting, ShotReading
from cfgen.train.film_world.world import Film, landmark_boxes, render, subject_centres, velocity

Frames = NDArray[np.uint8]
Name = tuple[str, str]
"""Shape and colour."""

BY_COUNT = ("colour", "shape")
"""What is told apart by how many subjects a shot has."""
RATES = (
    *("sky", "ground"),
    *(f"{key}{which}" for key in BY_COUNT for which in ("", ", one", ", several")),
    *("camera", "camera read", "followed", "no trace", "no double edge"),
)
_PERIOD_FRAMES = 72
"""Frames of the slowest subject's turn."""
_LONG_ENOUGH = 7
"""Chunks that hold such a turn."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What is found in one film, or in several.

    Attributes:
        rates: whether each of several things is right.
        measures: figures with a unit of their own.
    """

    rates: dict[str, list[bool]]
    measures: dict[str, list[float]]


def findings_of(film: Film, frames: Frames) -> Findings:
    """Everything that the detectors say of a film's frames, [film.frames, H, W, 3] uint8 RGB.

    Rates are those of RATES. Those of `detectors.KEYS` count once a shot, `colour` and `shape` also
    apart for shots of one subject and of several; `camera read` is whether a shot's camera could be
    measured at all; `followed` counts once for each change of prompt, `no trace` for each subject
    that left, `no double edge` for each sighting of a subject whose speed is known.

    Measures: those of `still_measures`, `camera_measures`, `subject_measures` and `drift_measures`.
    """
    readings = detectors.read_film(film, frames)
    moving = detectors.moving_sightings(film, frames, readings)
    rates: dict[str, list[bool]] = {key: [] for key in RATES}
    for number, reading in enumerate(readings):
        count = "one" if len(film.shots[number].subjects) == 1 else "several"
        for key, right in detectors.score_shot(film, number, reading).items():
            rates[key].append(right)
            if key in BY_COUNT:
                rates[f"{key}, {count}"].append(right)
        follows = detectors.followed(film, frames, number)
        if follows is not None:
            rates["followed"].append(follows)
        rates["camera read"].append(bool(np.isfinite(reading.camera.units)))
    left = detectors.traces(film, frames, readings)
    rates["no trace"] = [not detectors.has_trace(share) for share in left]
    doubled = detectors.double_edges(frames, moving)
    rates["no double edge"] = [bool(strength < DOUBLE) for strength in doubled]
    measures = {
        **camera_measures(film, readings),
        **subject_measures(film, moving),
        **drift_measures(film, frames),
        **still_measures(film, frames, readings),
    }
    return Findings(rates, measures)


def camera_measures(film: Film, readings: Sequence[ShotReading]) -> dict[str, list[float]]:
    """How fast cameras go, against the speed that was asked for, where it could be measured.

    Returns:
        `camera speed, of asked`: a ratio, once for each shot whose camera is to move; negative the
        wrong way. `camera speed, off`: units a frame, once for each shot, still ones too. The
        detector's steps are a quarter of a unit.
    """
    ratios, off = [], []
    for shot, reading in zip(film.shots, readings, strict=True):
        measured, asked = reading.camera.units, velocity(shot)
        if not np.isfinite(measured):
            continue
        off.append(abs(measured - asked))
        if asked:
            ratios.append(measured / asked)
    return {"camera speed, of asked": ratios, "camera speed, off": off}


def subject_measures(film: Film, moving: Sequence[MovingSighting]) -> dict[str, list[float]]:
    """How fast subjects go, against what their words ask for.

    A subject may be at any point of its turn, so its speed is compared with the mean over a turn of
    the same subject in the world.

    Returns:
        `subject speed, of asked`: a ratio, once for each shot and subject that is to move, mean of
        its sightings. `subject speed, hovering`: units a frame, for those that are to stay.
    """
    speeds: dict[tuple[int, Name], list[float]] = defaultdict(list)
    for each in moving:
        pace = float(np.hypot(*each.velocity))
        speeds[each.shot, (each.seen.shape, each.seen.colour)].append(pace)
    ratios, hovering = [], []
    for (number, name), found in speeds.items():
        asked = asked_speeds(film, number).get(name)
        if asked is None:
            continue
        mean = float(np.mean(found))
        if asked:
            ratios.append(mean / asked)
        else:
            hovering.append(mean)
    return {"subject speed, of asked": ratios, "subject speed, hovering": hovering}


def asked_speeds(film: Film, number: int) -> dict[Name, float]:
    """How far each subject of a shot goes, in units a frame, over `PACE_FRAMES` frames of a turn.

    0 for one that hovers.
    """
    shot = replace(film.shots[number], chunks=_LONG_ENOUGH, cut=True)
    alone = replace(film, shots=(shot,))
    at = subject_centres(alone, np.arange(_PERIOD_FRAMES + PACE_FRAMES))
    places = np.array([[(x, y) for _, x, y, _ in frame] for frame in at])
    steps = np.linalg.norm(places[PACE_FRAMES:] - places[:-PACE_FRAMES], axis=2)
    means = (steps.mean(0) / PACE_FRAMES).tolist()
    return {(s.shape, s.colour): mean for s, mean in zip(shot.subjects, means, strict=True)}


def drift_measures(film: Film, frames: Frames) -> dict[str, list[float]]:
    """How saturation, contrast and detail drift, in percent: the last fifth against the first.

    The world's own film drifts too, by what its shots show, so its drift stands beside.

    Returns:
        For each of `metrics.drift.FIGURES`: `NAME drift, %`, `NAME drift of the truth, %` and
        their difference, `NAME drift beyond the truth, %`.
    """
    first, last = fifths(film.frames)
    own = drift_of_ends(*([frames[i] for i in part] for part in (first, last)))
    true = drift_of_ends(*([_true_frame(film, i) for i in part] for part in (first, last)))
    found = {}
    for name in FIGURES:
        if name in own and name in true:
            found[f"{name} drift, %"] = [own[name]]
            found[f"{name} drift of the truth, %"] = [true[name]]
            found[f"{name} drift beyond the truth, %"] = [own[name] - true[name]]
    return found


def _true_frame(film: Film, number: int) -> Frames:
    frame: Frames = render(film, number, number + 1)[0]
    return frame


def still_measures(
    film: Film, frames: Frames, readings: Sequence[ShotReading]
) -> dict[str, list[float]]:
    """How restless still shots are, in levels of 255; see `detect_defects.Flicker`."""
    found = detectors.still_flicker(film, frames, readings)
    return {
        "change of still pictures": [each.change for each in found],
        "second difference": [each.second for each in found],
        "4-frame pattern": [each.pattern for each in found],
    }


def landmarks_named(film: Film, frames: Frames) -> list[bool]:
    """Whether each landmark of the last frame is named right; a model cannot know them."""
    at = film.frames - 1
    boxes, sky = landmark_boxes(film, at), film.shots[-1].sky
    named = name_landmarks(frames[at], boxes, sky, hidden_pixels(film, at))
    return [each.is_right for each in named]


def intervals_of(films: Sequence[Findings]) -> dict[str, Interval]:
    """The mean of everything that was found in several films; what no film shows is left out.

    Rates have intervals of Wilson, measures those of a bootstrap over films.
    """
    found = {}
    for key in _keys(each.rates for each in films):
        values = [right for each in films for right in each.rates.get(key, [])]
        if values:
            found[key] = wilson(sum(values), len(values))
    for key in _keys(each.measures for each in films):
        by_film = [each.measures.get(key, []) for each in films]
        if any(by_film):
            found[key] = bootstrap_mean(by_film)
    return found


def _keys(tables: Iterable[Mapping[str, object]]) -> list[str]:
    """The keys of all tables, in the order in which they come first."""
    return list(dict.fromkeys(key for table in tables for key in table))
