"""How well films of a model follow their prompts, move and hold, by detectors of the film world.

    python tests/bench/film_world.py MODEL_FOLDER --films 64 --chunks 14 --json figures.json
    python tests/bench/film_world.py MODEL_FOLDER --films 16 --chunks 80 --sheet films.png
    python tests/bench/film_world.py MODEL_FOLDER --part 1/2      a process's share of the films
    python tests/bench/film_world.py STUDENT --steps 4 --shift 6 --guidance 1 --renoise fresh
    python tests/bench/film_world.py --truth --films 64           the detectors' own score

Films are held out and have several shots; 14 chunks are 10 seconds, 80 are a minute. What is found
in a film is appended to a file under `--work` as soon as it is made, and the same command goes on
from there. Processes with `--part 1/N` to `N/N` share the films; each tells the figures of all
films that there are so far, and the command without `--part` tells those of all.

Rates have intervals of 95 percent by Wilson, measures by a bootstrap over films. Drift is the last
fifth of a film against its first, in percent; `beyond the truth` is what the world's own film of
the same prompts does not do. `metrics.levels` says what saturation, contrast and detail are.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from cfgen.errors import LockHeld, UsageError
from cfgen.files.json_lines import append_json_line, read_json_lines
from cfgen.files.writing import write_file
from cfgen.metrics.intervals import Interval
from cfgen.plain_text import aligned
from cfgen.train.film_world import return_run as running
from cfgen.train.film_world.adherence import (
    Findings,
    findings_of,
    intervals_of,
    landmarks_named,
)
from cfgen.train.film_world.return_memory import EVERY_POLICY, SlowFastSizes
from cfgen.train.film_world.return_test import Case
from cfgen.train.film_world.sampling import sample_film
from cfgen.train.film_world.world import Film, render, shot_of

Frames = NDArray[np.uint8]
Maker = Callable[[Film], Frames]

FORMAT = 1
"""Another number for findings that mean something else."""
FIRST_SEED = 8_000_000
SIZES = ("slow", "tau", "admits", "admission_layers")
"""Flags of slow-fast memory, as `SlowFastSizes` names them."""
SHEET_FILMS = 8
SHEET_FRAMES = 6
TARGETS = {"sky": 0.98, "ground": 0.98, "colour": 0.95, "colour, several": 0.85, "shape": 0.9}
TARGETS |= {"camera": 0.95, "followed": 0.9, "no trace": 0.9}
shown = Console(stderr=True, highlight=False, soft_wrap=True)


def film_of(number: int, chunks: int) -> Film:
    """A film of a fixed list of held-out ones."""
    return sample_film(FIRST_SEED + number, chunks=chunks, held_out=True)


def sheet_frames(film: Film) -> list[int]:
    """The frames of a film that the sheet shows, spread evenly from its first to its last."""
    return np.linspace(0, film.frames - 1, SHEET_FRAMES).round().astype(int).tolist()


class Kept:
    """What is kept of a run under a folder.

    Args:
        work: the folder.
        digest: tells the run from others.
        part: which share of the films this process makes, and of how many.
    """

    def __init__(self, work: Path, digest: str, part: tuple[int, int]) -> None:
        self._work, self._digest, self.part = work, digest, part
        suffix = "" if part == (1, 1) else f"-{part[0]}-of-{part[1]}"
        self._own = work / f"{digest}{suffix}.jsonl"

    def lock(self) -> FileLock:
        """Keeps a second process from the same share."""
        return FileLock(f"{self._own}.lock", timeout=0)

    def findings(self) -> dict[int, Findings]:
        """What every process found, by number of the film."""
        lines = [
            line
            for file in sorted(self._work.glob(f"{self._digest}*.jsonl"))
            for line in read_json_lines(file)
        ]
        return {line["film"]: Findings(line["rates"], line["measures"]) for line in lines}

    def add(self, number: int, frames: Frames, found: Findings, film: Film) -> None:
        """Keep what was found in a film, and the pictures that a sheet would show."""
        if number < SHEET_FILMS:
            strip = np.concatenate(frames[sheet_frames(film)], axis=1)
            write_picture(self.strip(number), strip)
        append_json_line(self._own, {"film": number} | dataclasses.asdict(found))

    def strip(self, number: int) -> Path:
        """Where a film's row of the sheet is."""
        return self._work / f"{self._digest}-film-{number}.png"


def write_picture(path: Path, pixels: Frames) -> None:
    """Write a PNG, [H, W, 3] uint8."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="png")
    write_file(path, content.getvalue(), shared=True)


def make(kept: Kept, maker: Maker, options: argparse.Namespace) -> None:
    """Make this process's share of the films that are not there yet."""
    done, (own, parts) = kept.findings(), kept.part
    for number in range(own - 1, options.films, parts):
        if number in done:
            continue
        film = film_of(number, options.chunks)
        frames = maker(film)
        found = findings_of(film, frames)
        if options.truth:
            found.rates["landmarks by name"] = landmarks_named(film, frames)
        kept.add(number, frames, found, film)
        wrong = [k for k, v in found.rates.items() if k in TARGETS and not all(v)]
        shown.print(f"film {number + 1}/{options.films} wrong: {', '.join(wrong) or 'nothing'}")


def model_maker(model: running.Model, options: argparse.Namespace) -> Maker:
    """Films of a model, from their prompts alone."""
    sizes = SlowFastSizes(**{name: getattr(options, name) for name in SIZES})

    def made(film: Film) -> Frames:
        case = Case(film, "cut", 0, 0, 0)
        empty = latents_of(film, model)
        return running.whole_films(running.Player(model, options.policy, [case], empty, sizes))[0]

    return made


def latents_of(film: Film, model: running.Model) -> torch.Tensor:
    """Zeros in the shape of a film's latents: [1, F, C, h, w]."""
    frame = torch.from_numpy(render(film, 0, 1)).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        one = model.vae.encode(frame.to(model.generator.device))
    return torch.zeros(1, 3 * film.chunks, *one.shape[2:])


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the films, but for the model's weights."""
    settings = {"format": FORMAT, "first_seed": FIRST_SEED, "chunks": options.chunks}
    if options.truth:
        return settings | {"truth": True}
    names = ("policy", "steps", "timesteps", "shift", "renoise", "guidance", *SIZES)
    return settings | {name: getattr(options, name) for name in names}


def sheet_of(kept: Kept, films: Sequence[int], target: Path, chunks: int) -> list[dict[str, Any]]:
    """Write the sheet, a row a film, and tell what its rows show."""
    rows = []
    for number in films:
        film = film_of(number, chunks)
        at = sheet_frames(film)
        shots = shot_of(film, film.frames)[at].tolist()
        captions = running.shot_captions(film)
        rows.append({"film": number, "frames": at, "shots": shots, "captions": captions})
        if not kept.strip(number).is_file():
            raise UsageError(f"{kept.strip(number)} is missing: give another folder as --work")
    strips = [np.asarray(Image.open(kept.strip(number))) for number in films]
    write_picture(target, np.concatenate(strips, axis=0))
    return rows


def table_of(figures: Mapping[str, Interval]) -> str:
    """A line for each figure, and for each target of which no film shows anything."""
    rows = [("", "mean", "95 % from", "to", "of", "target")]
    for key, each in figures.items():
        ends = ["" if end is None else f"{end:.3f}" for end in (each.low, each.high)]
        target = f">= {TARGETS[key]:.0%}" if key in TARGETS else ""
        rows.append((key, f"{each.mean:.3f}", *ends, str(each.count), target))
    for key in (key for key in TARGETS if key not in figures):
        rows.append((key, "-", "", "", "0", f">= {TARGETS[key]:.0%}"))
    return "\n".join(aligned(rows, right={1, 2, 3, 4}))


def part_of(text: str) -> tuple[int, int]:
    """K/N, K of 1 to N."""
    own, slash, parts = text.partition("/")
    if not (slash and own.isdecimal() and parts.isdecimal() and 1 <= int(own) <= int(parts)):
        raise argparse.ArgumentTypeError(f"use K/N with K from 1 to N, such as 1/2, not {text!r}")
    return int(own), int(parts)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("model", type=Path, nargs="?", help="model folder")
    parser.add_argument("--truth", action="store_true", help="the world instead of a model")
    parser.add_argument("--films", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=14, help="of 0.75 s each")
    parser.add_argument("--part", type=part_of, default=(1, 1), metavar="K/N", help="of the films")
    parser.add_argument("--policy", choices=EVERY_POLICY, default="slow_fast-cfgen")
    parser.add_argument("--steps", type=int, default=8, help="even noise levels of a chunk")
    parser.add_argument("--timesteps", type=float, nargs="+", default=(), help="instead of even")
    parser.add_argument("--shift", type=float, default=3.0)
    words = get_args(running.Renoise)
    parser.add_argument("--renoise", choices=words, default="predicted", help="fresh: a student")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--slow", type=int, default=6, help="key frames")
    parser.add_argument("--tau", type=float, default=0.9994)
    parser.add_argument("--admits", choices=("first", "chunk"), default="first")
    parser.add_argument("--admission-layers", type=int, nargs="+", default=())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-film-world"))
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="the first films")
    options = parser.parse_args(arguments)
    if (options.model is not None) == options.truth:
        parser.error("give a model folder or --truth")
    if min(options.films, options.chunks) < 1:
        parser.error("--films and --chunks must be 1 or more")
    options.admission_layers = tuple(options.admission_layers)
    options.timesteps = tuple(options.timesteps)
    return options


def maker_of(options: argparse.Namespace) -> Maker:
    if options.truth:
        return lambda film: render(film, 0, film.frames)
    o = options
    schedule = running.schedule_of(o.steps, o.timesteps, shift=o.shift, renoise=o.renoise)
    model = running.load_model(o.model, schedule, o.guidance, torch.device(o.device))
    return model_maker(model, options)


def main(arguments: Sequence[str]) -> None:
    options = parsed(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    maker, settings = maker_of(options), settings_of(options)
    kept = Kept(options.work, running.digest_of_run(options.model, settings), options.part)
    try:
        with kept.lock():
            make(kept, maker, options)
    except Timeout:
        own, parts = options.part
        raise LockHeld(
            f"another process makes part {own}/{parts} of these films in {options.work}",
            "wait for it, or share the films: --part 1/2 and --part 2/2",
        ) from None
    found = {n: each for n, each in sorted(kept.findings().items()) if n < options.films}
    figures = intervals_of(list(found.values()))
    told = f"{options.model or 'the world itself'}: {len(found)} of {options.films} films"
    sys.stdout.write(f"{told}\n{table_of(figures)}\n")
    report: dict[str, Any] = {"model": None if options.truth else str(options.model)}
    report |= {"settings": settings, "films": len(found), "of": options.films}
    report["figures"] = {key: dataclasses.asdict(each) for key, each in figures.items()}
    if options.sheet:
        first = [number for number in found if number < SHEET_FILMS]
        report["sheet"] = sheet_of(kept, first, options.sheet, options.chunks)
    if options.json:
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        write_file(options.json, f"{text}\n".encode())


if __name__ == "__main__":
    from kept import run  # beside this file, when it is the script that runs

    run(main)
