"""What `cfgen score` says of films of a minute by `mini`, and how long it takes.

    python tests/bench/score.py                      `--memory window` and `slow_fast`, seed 1
    python tests/bench/score.py --folder DIR         films that are there already are not made again

Of the first film there are three more, lossless, for scale: its first frame throughout (`still`),
red and blue exchanged in its second half (`cut`), and its saturation raised by five percent of the
first a second (`ramp`). `seconds` is the time that `cfgen score` takes with start-up, `cpu_s` that
of its processes on a core.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kept import PROMPT, RESULTS, keep

from cfgen.scoring.source import FilmSource, open_film
from cfgen.video.ffmpeg import Ffmpeg, find_ffmpeg

MEMORIES = ("window", "slow_fast")
SEED = "1"
A_SECOND = 0.05

Frame = npt.NDArray[np.uint8]
Figures = dict[str, Any]


def rendered(folder: Path, memory: str, prompt: str, seconds: int) -> tuple[Path, float | None]:
    """A film by `mini`, and the seconds it took; None if it was there."""
    film = folder / f"{memory}-{SEED}.mp4"
    if film.exists():
        return film, None
    began = time.perf_counter()
    _cfgen("render", prompt, "--duration", f"{seconds}s", "--seed", SEED, "--memory", memory,
           "-o", str(film))  # fmt: skip
    return film, time.perf_counter() - began


def still(film: FilmSource) -> Iterator[Frame]:
    """The first frame, as often as there are frames."""
    first = next(film.frames())
    return (first for _ in film.frames())


def cut(film: FilmSource) -> Iterator[Frame]:
    """The first half, and then again with its channels exchanged."""
    for number, frame in enumerate(film.frames()):
        yield frame if number < film.packets // 2 else frame[..., ::-1]


def ramp(film: FilmSource) -> Iterator[Frame]:
    """Each pixel's distance from its greatest channel grows, so that S of HSV does."""
    for number, frame in enumerate(film.frames()):
        highest = frame.max(axis=-1, keepdims=True).astype(np.float32)
        gain = 1 + A_SECOND * number / float(film.fps)
        yield np.round(highest - gain * (highest - frame)).clip(0, 255).astype(np.uint8)


MADE: dict[str, Callable[[FilmSource], Iterator[Frame]]] = {
    "still": still,
    "cut": cut,
    "ramp": ramp,
}


def written(ffmpeg: Ffmpeg, source: FilmSource, frames: Iterator[Frame], path: Path) -> Path:
    """A lossless film of these frames."""
    size = f"{source.facts.width}x{source.facts.height}"
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", size]
    raw += ["-framerate", str(source.fps), "-i", "pipe:0"]
    argv = [*ffmpeg.prefix(), *raw, "-c:v", "ffv1", "-pix_fmt", "bgr0", str(path)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE)
    assert child.stdin is not None
    for frame in frames:
        child.stdin.write(np.ascontiguousarray(frame).data)
    child.stdin.close()
    if child.wait():
        raise SystemExit(f"ffmpeg could not write {path}")
    return path


def scored(film: Path) -> Figures:
    """What the command says of a film, and the seconds that it takes."""
    began, worked = time.perf_counter(), _worked()
    told = json.loads(_cfgen("score", str(film), "--chunk-frames", "12", "--json"))
    seconds, worked = time.perf_counter() - began, _worked() - worked
    (found,) = told["data"]["films"]
    drift = {name: each["ratio"] for name, each in found["summary"]["drift"].items()}
    events = {name: len(each) for name, each in found["events"].items()}
    names = ("motion", "flicker", "seam_ratio", "seam_pulse", "wrap_psnr_db", "si", "ti")
    latents = found["latents"] or {}
    return {
        "seconds": round(seconds, 1),
        "cpu_s": round(worked, 1),
        **{name: _short(found["summary"][name]) for name in names},
        "drift": {name: _short(value) for name, value in drift.items()},
        "events": events,
        "latent_spread": _short(_last(latents.get("spread"))),
        "latent_shift": _short(_last(latents.get("shift"))),
        "alarms": found["alarms"],
    }


def _cfgen(*arguments: str) -> str:
    argv = [sys.executable, "-m", "cfgen", *arguments]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def _worked() -> float:
    """CPU seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _last(values: list[float] | None) -> float | None:
    """Mean of the last fifth."""
    return float(np.mean(values[len(values) * 4 // 5 :])) if values else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def main() -> None:
    """Render, score, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--prompt", default=PROMPT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        folder = given.folder or Path(own)
        films = {
            memory: rendered(folder, memory, given.prompt, given.seconds) for memory in MEMORIES
        }
        found: Figures = {}
        for memory, (film, seconds) in films.items():
            took = None if seconds is None else round(seconds, 1)
            found[memory] = {"render_s": took, **scored(film)}
        ffmpeg = find_ffmpeg()
        source = open_film(ffmpeg, films[MEMORIES[0]][0])
        for name, make in MADE.items():
            film = written(ffmpeg, source, make(source), folder / f"{name}.mkv")
            found[name] = scored(film)
    film_facts = {"prompt": given.prompt, "seconds": given.seconds, "seed": SEED}
    keep(RESULTS / "score.json", {"film": film_facts, "films": found})


if __name__ == "__main__":
    main()
