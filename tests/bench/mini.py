"""Measures how well the films of `mini` follow their prompts, by the detectors of the film world.

    python tests/bench/mini.py --clips 64 --duration 10 --held-out --sheet sheet.png
    python tests/bench/mini.py --clips 16 --duration 60 --held-out
    python tests/bench/mini.py --clips 200 --ground-truth             the detectors' own score
    python tests/bench/mini.py --clips 200 --ground-truth --damage    the same after blur and x264

Every clip's reading is appended to a file under `--work` as soon as it is made, and the same
command goes on from there; another model, configuration or detector starts another file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from kept import RESULTS, machine
from rich.console import Console
from rich.table import Table

import cfgen
from cfgen.errors import CfgenError
from cfgen.train.captions import caption
from cfgen.train.probes import KEYS, measure, score, seconds_right
from cfgen.train.world import FPS, Film, render, sample_film

FIRST_SEED = 7_000_000
TARGETS = {"sky": 0.95, "ground": 0.95, "colour": 0.85, "camera": 0.85}
WINDOW_S = 10
SHEET_CLIPS, SHEET_FRAMES = 6, 5
#: What decides a clip's pixels or their reading, besides the configuration and the model's files.
SOURCES = (
    *("train/world.py", "train/drawing.py", "train/captions.py", "train/probes*.py"),
    *("rollout/*.py", "model/*.py", "memory/*.py", "ops/**/*.py", "checkpoint/**/*.py"),
    *("renderer/source.py", "pipeline/build.py", "pipeline/models.py"),
)

Frames = np.ndarray
Line = dict[str, Any]
shown = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Clip:
    """One film and the prompt that asks for it."""

    index: int
    seed: int
    film: Film
    prompt: str


def clips_of(count: int, *, held_out: bool) -> list[Clip]:
    """The first `count` clips of a fixed list."""
    clips = []
    for index in range(count):
        seed = FIRST_SEED + index
        film = sample_film(seed, held_out=held_out)
        clips.append(Clip(index, seed, film, caption(film, seed, complete=True)))
    return clips


@dataclass(frozen=True)
class Source:
    """Where the frames of a clip come from, with a name and a digest that tell it from others."""

    name: str
    digest: str
    frames: Callable[[Clip, float], Iterator[Frames]]


def model_source(preset: str, assignments: list[str]) -> Source:
    """cfgen's own pipeline, without the video file."""
    from cfgen.config.loader import load
    from cfgen.config.schema import RenderConfig, digest
    from cfgen.pipeline.build import build_source
    from cfgen.pipeline.job import RenderJob
    from cfgen.pipeline.models import OpenedModel

    def configured(prompt: str, duration_s: float, seed: int) -> RenderConfig:
        flags = {
            "preset": preset,
            "prompt": prompt,
            "duration": f"{duration_s}s",
            "seed": str(seed),
        }
        alone = {"XDG_CONFIG_HOME": os.devnull}
        return load(flags, assignments=assignments, environ=alone).config

    def frames(clip: Clip, duration_s: float) -> Iterator[Frames]:
        config = configured(clip.prompt, duration_s, clip.seed)
        for _, _, made in build_source(RenderJob(config)).chunks():
            yield made

    config = configured("a prompt", 1, 0)
    model = OpenedModel(config.model)
    weights = json.dumps([model.digests, model.text_digest])
    beside = model.files.generator.with_name("config.json")
    files = [beside] if beside.is_file() else []
    return Source(preset, digest_of(files, digest(config) + weights), frames)


def world_source(*, damage: bool) -> Source:
    """The films themselves, as they are or damaged."""

    def frames(clip: Clip, duration_s: float) -> Iterator[Frames]:
        total = round(duration_s * FPS)
        slices = [(at, min(at + 32, total)) for at in range(0, total, 32)]
        made = (render(clip.film, *each) for each in slices)
        yield from [damaged(np.concatenate(list(made)), clip.seed)] if damage else made

    name = "ground-truth-damaged" if damage else "ground-truth"
    return Source(name, digest_of([], name), frames)


def damaged(frames: Frames, seed: int) -> Frames:
    """Blur (sigma 0.7 pixels), noise (sigma 4 levels), then x264 at crf 28 in 4:2:0 and back."""
    from cfgen.video.ffmpeg import find_ffmpeg

    taps = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 0.7**2))
    soft = np.pad(frames.astype(np.float32), ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    for axis in (1, 2):
        views = np.lib.stride_tricks.sliding_window_view(soft, 7, axis=axis)
        soft = views @ (taps / taps.sum()).astype(np.float32)
    soft += np.random.default_rng(seed).normal(0, 4, frames.shape)
    levels = np.clip(soft + 0.5, 0, 255).astype(np.uint8)
    program, raw = [str(find_ffmpeg().path), "-v", "error"], ["-f", "rawvideo", "-pix_fmt", "rgb24"]
    size = ["-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", str(FPS)]
    x264 = ["-c:v", "libx264", "-crf", "28", "-threads", "1", "-pix_fmt", "yuv420p"]
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "clip.mp4")
        there = [*program, *raw, *size, "-i", "-", *x264, file]
        subprocess.run(there, input=levels.tobytes(), check=True)
        back = subprocess.run([*program, "-i", file, *raw, "-"], capture_output=True, check=True)
    return np.frombuffer(back.stdout, np.uint8).reshape(frames.shape)


def digest_of(files: list[Path], words: str) -> str:
    """Digest of the files, of `words` and of the code that decides the figures."""
    package = Path(cfgen.__file__).parent
    sources = sorted(path for pattern in SOURCES for path in package.glob(pattern))
    total = hashlib.sha256(words.encode())
    for path in [*sources, *files]:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def lines_of(file: Path) -> dict[int, Line]:
    """What a file of readings holds, by clip; a last line that was cut off is dropped from it."""
    if not file.exists():
        return {}
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    return {line["index"]: line for line in map(json.loads, whole.splitlines())}


def measured(clip: Clip, source: Source, duration_s: float, strip: Path) -> Line:
    """Make one clip, measure it, and keep a strip of its frames."""
    began = time.perf_counter()
    frames = np.concatenate(list(source.frames(clip, duration_s)))
    made_s = time.perf_counter() - began
    reading = measure(frames, FPS)
    read = asdict(reading)
    save_strip(frames, strip)
    return {
        "index": clip.index,
        "seed": clip.seed,
        "prompt": clip.prompt,
        "frames": len(frames),
        "made_s": round(made_s, 2),
        "right": score(clip.film, reading),
        "seconds_right": seconds_right(clip.film, reading),
        "details": read.pop("details"),
        "read": read,
    }


def save_strip(frames: Frames, file: Path) -> None:
    """Some frames of a clip, from its first to its last, side by side."""
    import PIL.Image

    chosen = np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)
    PIL.Image.fromarray(np.concatenate(list(frames[chosen]), axis=1)).save(file)


def save_sheet(lines: list[Line], strips: list[Path], file: Path) -> None:
    """Strips under their prompts and what was read in them."""
    import PIL.Image
    import PIL.ImageDraw

    images = [PIL.Image.open(strip) for strip in strips]
    width, rows = images[0].width, [image.height + 34 for image in images]
    sheet = PIL.Image.new("RGB", (width, sum(rows)), "white")
    pen, top = PIL.ImageDraw.Draw(sheet), 0
    for line, image, tall in zip(lines, images, rows, strict=True):
        read = line["read"]
        subjects = ", ".join(f"{colour} {shape or '?'}" for colour, shape in read["subjects"])
        found = f"{read['sky']}, {read['ground']}, {subjects or 'no subject'}, {read['camera']}"
        pen.text((4, top + 2), line["prompt"], fill="black")
        pen.text((4, top + 17), f"read: {found}; {wrong_in(line)}", fill="gray")
        sheet.paste(image, (0, top + 34))
        top += tall
    sheet.save(file)


def wrong_in(line: Line) -> str:
    return f"wrong: {', '.join(key for key in KEYS if not line['right'][key]) or 'nothing'}"


def wilson(right: int, total: int) -> tuple[float, float]:
    """95% interval of a share, by Wilson's score."""
    z = 1.959964
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * ((share * (1 - share) + spread / 4) / total) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def figures_of(lines: list[Line]) -> Line:
    """Shares with their intervals, and how consistent clips are, on the whole and as they go on."""
    shares = {}
    for key in KEYS:
        right = sum(line["right"][key] for line in lines)
        low, high = wilson(right, len(lines))
        share, interval = round(right / len(lines), 4), [round(low, 4), round(high, 4)]
        shares[key] = {"right": right, "share": share, "interval": interval}
    seconds = [line["seconds_right"] for line in lines]
    starts = range(0, max(map(len, seconds)), WINDOW_S)
    windows = [[s for each in seconds for s in each[at : at + WINDOW_S]] for at in starts]
    frames, made_s = (sum(line[key] for line in lines) for key in ("frames", "made_s"))
    return {
        "clips": len(lines),
        "shares": shares,
        "consistency": round(float(np.mean([np.mean(each) for each in seconds])), 4),
        "consistency_by_10_s": [round(float(np.mean(window)), 4) for window in windows],
        "frames_per_s": round(frames / max(made_s, 0.01), 1),
    }


def table_of(figures: Line, title: str) -> Table:
    """The figures for the terminal."""
    table = Table("", "right", "share", "95% interval", "target", title=title, min_width=60)
    for key, each in figures["shares"].items():
        low, high = each["interval"]
        target = f">= {TARGETS[key]:.0%}" if key in TARGETS else "reported"
        right = f"{each['right']} of {figures['clips']}"
        table.add_row(key, right, f"{each['share']:.1%}", f"{low:.1%} - {high:.1%}", target)
    table.add_row("consistency", "", f"{figures['consistency']:.1%}", "", "reported")
    by_window = figures["consistency_by_10_s"]
    for i, share in enumerate(by_window if len(by_window) > 1 else []):
        table.add_row(f"  from {i * WINDOW_S} s", "", f"{share:.1%}", "", "")
    return table


def report_of(settings: Line, figures: Line, lines: list[Line]) -> Line:
    missed = [line for line in lines if not all(line["right"].values())]
    kept = ("seed", "prompt", "right", "read")
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "machine": machine(),
        "figures": figures,
        "wrong": [{key: line[key] for key in kept} for line in missed],
    }


def parsed(arguments: list[str]) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of each clip")
    parser.add_argument("--held-out", action="store_true", help="what training never saw")
    parser.add_argument("--ground-truth", action="store_true", help="the world, not the model")
    parser.add_argument("--damage", action="store_true", help="with --ground-truth: damage it")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="values")
    parser.add_argument("--sheet", type=Path, help=f"PNG of the first {SHEET_CLIPS} clips")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-mini"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.clips < 1 or options.duration <= 0:
        parser.error("--clips and --duration must be above 0")
    if options.damage and not options.ground_truth:
        parser.error("--damage is for --ground-truth")
    return options


def readings(clips: list[Clip], source: Source, duration_s: float, file: Path) -> list[Line]:
    """A line for each clip, from `file` where that has it; new ones are appended to it."""
    done = lines_of(file)
    for clip in clips:
        strip = strip_of(file, clip)
        if clip.index in done and strip.exists():
            continue
        done[clip.index] = line = measured(clip, source, duration_s, strip)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        shown.print(f"{clip.index + 1}/{len(clips)} {wrong_in(line)} | {clip.prompt}")
    return [done[clip.index] for clip in clips]


def strip_of(file: Path, clip: Clip) -> Path:
    return file.with_name(f"{file.stem}-{clip.index}.png")


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    if options.ground_truth:
        source = world_source(damage=options.damage)
    else:
        source = model_source(options.preset, options.values)
    films = "held-out" if options.held_out else "seen"
    name = f"{source.name}-{films}-{options.duration:g}s"
    file = options.work / f"{name}-{source.digest}.jsonl"
    for folder in (options.work, options.results):
        folder.mkdir(parents=True, exist_ok=True)
    clips = clips_of(options.clips, held_out=options.held_out)
    lines = readings(clips, source, options.duration, file)
    figures = figures_of(lines)
    settings: Line = {"source": source.name, "digest": source.digest, "films": films}
    settings |= {"duration_s": options.duration, "first_seed": FIRST_SEED}
    result = options.results / f"{name}-{options.clips}.json"
    report = json.dumps(report_of(settings, figures, lines), indent=1)
    result.write_text(report + "\n", encoding="utf-8")
    Console(highlight=False).print(table_of(figures, f"{name}, {options.clips} clips"))
    if options.sheet:
        strips = [strip_of(file, clip) for clip in clips]
        save_sheet(lines[:SHEET_CLIPS], strips[:SHEET_CLIPS], options.sheet)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CfgenError as error:
        sys.exit(str(error))
