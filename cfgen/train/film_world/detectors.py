"""Reads films of the world of shots: what each shot shows, and how it compares with what was asked.

The detectors know the world's drawing and nothing of any model, so that they can tell how well a
model's films follow their prompts. What fits nothing the world can show reads as None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfgen.train.film_world.detect_camera import UNKNOWN, Motion, camera_of
from cfgen.train.film_world.detect_defects import TRACE, Flicker, double_edge, flicker, trace_of
from cfgen.train.film_world.detect_scene import ground_of, sky_of, to_view
from cfgen.train.film_world.detect_subjects import Sighting, find_subjects
from cfgen.train.film_world.world import (
    FADE_FRAMES,
    FIRST_CHUNK_LACKS,
    FLIGHT_FRAMES,
    FRAMES_PER_CHUNK,
    Film,
    camera_path,
    shot_starts_in_frames,
)

Frames = NDArray[np.uint8]
Image = NDArray[np.float32]

KEYS = ("sky", "ground", "colour", "shape", "camera")
SAMPLES = 4
"""Most frames of a shot in which subjects are looked for."""
PACE_FRAMES = 4
"""Frames between the two that tell how fast a subject moves."""
FOLLOW_CHUNKS = 2
"""Chunks within which a change of the prompt should show."""
_SURE = 4.0
"""Evidence beyond which one sample counts no more."""
_MISSING = -3.0
"""What a sample without a subject tells against it."""
_SETTLED = 4


@dataclass(frozen=True, slots=True)
class ShotReading:
    """What a shot shows, in the words of `world.py`; None where nothing fits.

    Attributes:
        sky: word of SKIES.
        ground: word of GROUNDS.
        camera: the camera's motion.
        subjects: (shape, colour) of each subject, sorted.
        sightings: subjects in each frame that was sampled, by frame number.
    """

    sky: str | None
    ground: str | None
    camera: Motion
    subjects: tuple[tuple[str, str], ...]
    sightings: dict[int, list[Sighting]]


def read_shot(frames: Frames, *, first: int = 0, settled: int = 0, faded: int = 0) -> ShotReading:
    """Read consecutive frames of one shot.

    Args:
        frames: [T, H, W, 3] uint8 RGB.
        first: number of the first frame, for `sightings`.
        settled: frames after which its subjects have taken their places.
        faded: frames after which its sky has become what it is.
    """
    views = to_view(frames)
    scene = views[min(faded, len(views) - 1) :: 4]
    sky = sky_of(scene)
    begin = min(max(settled, _SETTLED), len(views) - 1)
    count = min(SAMPLES, 1 + (len(views) - 1 - begin) // 8)
    chosen = np.unique(np.linspace(begin, len(views) - 1, count).round().astype(int)).tolist()
    sightings = {first + i: find_subjects(views[i]) for i in chosen}
    return ShotReading(
        sky=sky,
        ground=ground_of(scene, sky),
        camera=camera_of(views) if len(views) > 4 else UNKNOWN,
        subjects=lasting(list(sightings.values())),
        sightings=sightings,
    )


def lasting(samples: Sequence[Sequence[Sighting]]) -> tuple[tuple[str, str], ...]:
    """Subjects that the samples show on the whole, each as (shape, colour), sorted."""
    evidence: dict[str, float] = {}
    votes: dict[str, Counter[str]] = {}
    for sample in samples:
        seen = {each.colour: each for each in reversed(sample)}
        for colour, each in seen.items():
            sure = min(each.evidence, _SURE) - _MISSING
            evidence[colour] = evidence.get(colour, 0.0) + sure
            votes.setdefault(colour, Counter())[each.shape] += round(100 * sure)
    none = -_MISSING * len(samples)
    kept = [colour for colour, sure in evidence.items() if sure > none]
    return tuple(sorted((votes[colour].most_common(1)[0][0], colour) for colour in kept))


def shot_spans(film: Film) -> list[tuple[int, int]]:
    """First frame and end of each shot."""
    starts = [*shot_starts_in_frames(film), film.frames]
    return list(zip(starts, starts[1:], strict=False))


def read_film(film: Film, frames: Frames) -> list[ShotReading]:
    """Read a film shot by shot, [film.frames, H, W, 3] uint8 RGB."""
    readings = []
    for number, (begin, end) in enumerate(shot_spans(film)):
        shot, before = film.shots[number], film.shots[number - 1] if number else None
        goes_on = before is not None and not shot.cut
        flies = goes_on and before is not None and before.subjects != shot.subjects
        fades = goes_on and before is not None and before.sky != shot.sky
        readings.append(
            read_shot(
                frames[begin:end],
                first=begin,
                settled=FLIGHT_FRAMES + _SETTLED if flies else 0,
                faded=FADE_FRAMES if fades else 0,
            )
        )
    return readings


def score_shot(film: Film, number: int, reading: ShotReading) -> dict[str, bool]:
    """Which of KEYS a reading has right.

    What a shot is too short to show is left out: a sky that is still fading, subjects that still
    fly. `colour`: every subject's colour and none besides. `shape`: every shape on its own colour.
    """
    shot = film.shots[number]
    before = film.shots[number - 1] if number and not shot.cut else None
    begin, end = shot_spans(film)[number]
    wanted = sorted((each.shape, each.colour) for each in shot.subjects)
    speed = None if shot.camera == "still" else shot.speed
    right = {
        "ground": reading.ground == film.places[shot.place].ground,
        "camera": (reading.camera.camera, reading.camera.speed) == (shot.camera, speed),
    }
    if before is None or before.sky == shot.sky or end - begin > FADE_FRAMES + _SETTLED:
        right["sky"] = reading.sky == shot.sky
    elif before.sky != shot.sky:
        del right["ground"]
    flown = end - begin > FLIGHT_FRAMES + _SETTLED
    if before is None or before.subjects == shot.subjects or flown:
        right["colour"] = sorted(c for _, c in wanted) == sorted(c for _, c in reading.subjects)
        right["shape"] = wanted == sorted(reading.subjects)
    return {key: right[key] for key in KEYS if key in right}


def followed(film: Film, frames: Frames, number: int) -> bool | None:
    """Whether a shot shows what its prompt asks for within `FOLLOW_CHUNKS` chunks.

    None for the first shot, for one that is too short to tell, and where the sky fades, which
    takes longer.
    """
    begin, end = shot_spans(film)[number]
    start = begin + FOLLOW_CHUNKS * FRAMES_PER_CHUNK
    shot, before = film.shots[number], film.shots[number - 1]
    if number == 0 or end - start < 9 or (not shot.cut and before.sky != shot.sky):
        return None
    reading = read_shot(frames[start : min(end, start + FRAMES_PER_CHUNK)], first=start)
    return all(score_shot(film, number, reading).values())


def traces(film: Film, frames: Frames, readings: Sequence[ShotReading]) -> list[float]:
    """For every subject that left on the way, how much of it still shows at the shot's end, 0..1.

    All of it where it is found again, anywhere; else what its outline shows where it was. Where
    another subject stands now, the outline tells nothing, and it is gone unless it is found. Shots
    that end before it is gone, and subjects that were never found, are left out.
    """
    path = camera_path(film, film.frames)
    left = []
    for number, (begin, end) in enumerate(shot_spans(film)):
        shot = film.shots[number]
        if number == 0 or shot.cut or end - begin <= FLIGHT_FRAMES + _SETTLED:
            continue
        last, before = end - 1, readings[number - 1]
        view = to_view(frames[last : last + 1])[0]
        now = find_subjects(view)
        still_there = {(s.shape, s.colour) for s in now}
        here = {(s.shape, s.colour) for s in shot.subjects}
        for at, sightings in list(before.sightings.items())[-1:]:
            for seen in sightings:
                name = (seen.shape, seen.colour)
                if seen.evidence < 0 or name in here or name not in before.subjects:
                    continue
                moved = float(path[last] - path[at])
                if name in still_there:
                    left.append(1.0)
                elif any(np.hypot(s.x - seen.x, s.y - seen.y) < 30 for s in now):
                    left.append(0.0)
                else:
                    left.append(trace_of(view, seen, moved))
    return left


@dataclass(frozen=True, slots=True)
class MovingSighting:
    """A subject that was found in two frames close to each other.

    Attributes:
        shot: number of the shot.
        frame: number of the frame that it was sampled in.
        seen: the subject there.
        velocity: how far it goes right and down a frame, in view units.
    """

    shot: int
    frame: int
    seen: Sighting
    velocity: tuple[float, float]


def moving_sightings(
    film: Film, frames: Frames, readings: Sequence[ShotReading]
) -> list[MovingSighting]:
    """Every sighting of a shot's lasting subjects that is also found `PACE_FRAMES` frames before.

    Positions are whole units, so a speed is exact to a quarter of a unit a frame.
    """
    found = []
    for number, reading in enumerate(readings):
        for at, sightings in reading.sightings.items():
            before = at - PACE_FRAMES if at >= PACE_FRAMES else at + PACE_FRAMES
            lasting_here = [s for s in sightings if (s.shape, s.colour) in reading.subjects]
            if before >= film.frames or not lasting_here:
                continue
            there = find_subjects(to_view(frames[before : before + 1])[0])
            for seen in lasting_here:
                same = [s for s in there if (s.shape, s.colour) == (seen.shape, seen.colour)]
                if same:
                    span = at - before
                    velocity = (seen.x - same[0].x) / span, (seen.y - same[0].y) / span
                    found.append(MovingSighting(number, at, seen, velocity))
    return found


def double_edges(frames: Frames, moving: Sequence[MovingSighting]) -> list[float]:
    """For every sighting of a subject that moves, how strong a second copy of it is, 0..1."""
    return [
        double_edge(to_view(frames[each.frame : each.frame + 1])[0], each.seen, each.velocity)
        for each in moving
    ]


def still_flicker(film: Film, frames: Frames, readings: Sequence[ShotReading]) -> list[Flicker]:
    """Flicker of every still shot of at least two chunks, away from its subjects."""
    found = []
    for number, (begin, end) in enumerate(shot_spans(film)):
        shot = film.shots[number]
        begin = begin if shot.cut else begin + FADE_FRAMES + _SETTLED
        if shot.camera != "still" or end - begin < 2 * FRAMES_PER_CHUNK - FIRST_CHUNK_LACKS:
            continue
        quiet = np.zeros(frames.shape[1:3], bool)
        quiet[int(0.72 * frames.shape[1]) :] = True  # below every subject
        found.append(flicker(frames[begin:end], quiet))
    return found


def has_trace(share: float) -> bool:
    """Whether what is left of a subject is a trace."""
    return share >= TRACE
