"""How well films of a model follow their prompts, by detectors of the film world.

    python tests/bench/film_world.py MODEL_FOLDER --films 64 --chunks 14 --json figures.json
    python tests/bench/film_world.py MODEL_FOLDER --films 16 --chunks 80
    python tests/bench/film_world.py --truth --films 64       the detectors' own score

Films are held out and have several shots; 14 chunks are 10 seconds, 80 are a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cfgen.errors import CfgenError
from cfgen.rollout.schedule import FewStepSchedule
from cfgen.train.film_world import detectors
from cfgen.train.film_world.detect_defects import DOUBLE
from cfgen.train.film_world.detect_landmarks import hidden_pixels, name_landmarks
from cfgen.train.film_world.return_memory import SlowFastSizes
from cfgen.train.film_world.return_run import Player, load_model, whole_films
from cfgen.train.film_world.return_test import Case
from cfgen.train.film_world.sampling import sample_film
from cfgen.train.film_world.world import Film, landmark_boxes, render

FIRST_SEED = 8_000_000
TARGETS = {"sky": 0.98, "ground": 0.98, "colour": 0.95, "shape": 0.9, "camera": 0.95}
TARGETS |= {"followed": 0.9, "no trace": 0.9}
shown = Console(stderr=True, highlight=False, soft_wrap=True)


def measured(film: Film, frames: np.ndarray, *, truth: bool) -> dict[str, list[float]]:
    """Everything that the detectors say of a film: 1 or 0 for what is right, or a measure."""
    found: dict[str, list[float]] = defaultdict(list)
    readings = detectors.read_film(film, frames)
    for number, reading in enumerate(readings):
        for key, right in detectors.score_shot(film, number, reading).items():
            found[key].append(float(right))
            if key in ("colour", "shape") and len(film.shots[number].subjects) > 1:
                found[f"{key}, several"].append(float(right))
        follows = detectors.followed(film, frames, number)
        if follows is not None:
            found["followed"].append(float(follows))
    left = detectors.traces(film, frames, readings)
    found["no trace"] += [float(not detectors.has_trace(share)) for share in left]
    doubled = detectors.double_edges(film, frames, readings)
    found["no double edge"] += [float(share < DOUBLE) for share in doubled]
    for each in detectors.still_flicker(film, frames, readings):
        found["change of still pictures"].append(each.change)
        found["second difference"].append(each.second)
        found["4-frame pattern"].append(each.pattern)
    if truth:
        at = film.frames - 1
        boxes, sky = landmark_boxes(film, at), film.shots[-1].sky
        named = name_landmarks(frames[at], boxes, sky, hidden_pixels(film, at))
        found["landmarks by name"] += [float(each.is_right) for each in named]
    return found


def films_of(count: int, chunks: int) -> list[Film]:
    """The first films of a fixed list of held-out ones."""
    return [sample_film(FIRST_SEED + i, chunks=chunks, held_out=True) for i in range(count)]


def figures_of(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        key: {"mean": float(np.mean(values)), "count": len(values)}
        for key, values in found.items()
        if values
    }


def table_of(figures: dict[str, dict[str, float]], title: str) -> Table:
    table = Table("", "mean", "of", "target", title=title)
    for key, each in figures.items():
        target = f">= {TARGETS[key]:.0%}" if key in TARGETS else ""
        table.add_row(key, f"{each['mean']:.3f}", str(int(each["count"])), target)
    return table


def parsed(arguments: list[str]) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("model", type=Path, nargs="?", help="model folder")
    parser.add_argument("--truth", action="store_true", help="the world instead of a model")
    parser.add_argument("--films", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=14, help="of 0.75 s each")
    parser.add_argument("--policy", default="slow_fast-cfgen")
    parser.add_argument("--timesteps", type=float, nargs="+")
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--tau", type=float, default=0.9994)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(arguments)
    if (options.model is not None) == options.truth:
        parser.error("give a model folder or --truth")
    return options


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    steps = options.timesteps or tuple(range(1000, 0, -125))
    schedule = FewStepSchedule.from_timesteps(steps, shift=options.shift, renoise="predicted")
    device = torch.device(options.device)
    model = None if options.truth else load_model(options.model, schedule, options.guidance, device)
    total: dict[str, list[float]] = defaultdict(list)
    for number, film in enumerate(films_of(options.films, options.chunks)):
        if model is None:
            frames = render(film, 0, film.frames)
        else:
            empty = latents_of(film, model)
            case = Case(film, "cut", 0, 0, 0)
            sizes = SlowFastSizes(tau=options.tau)
            frames = whole_films(Player(model, options.policy, [case], empty, sizes))[0]
        found = measured(film, frames, truth=model is None)
        for key, values in found.items():
            total[key] += values
        wrong = [k for k, v in found.items() if k in TARGETS and min(v, default=1) < 1]
        shown.print(f"{number + 1}/{options.films} wrong: {', '.join(wrong) or 'nothing'}")
    figures = figures_of(total)
    title = f"{options.model or 'the world itself'}, {options.films} films"
    Console(highlight=False).print(table_of(figures, title))
    if options.json:
        report: dict[str, Any] = {"films": options.films, "chunks": options.chunks}
        report |= {"model": str(options.model), "figures": figures}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def latents_of(film: Film, model: Any) -> torch.Tensor:
    """Zeros in the shape of a film's latents: [1, F, C, h, w]."""
    frame = torch.from_numpy(render(film, 0, 1)).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        one = model.vae.encode(frame.to(next(model.vae.parameters()).device))
    return torch.zeros(1, 3 * film.chunks, *one.shape[2:])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CfgenError as error:
        sys.exit(str(error))
