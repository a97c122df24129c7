"""Does a model remember a place that a film comes back to? The return test as a command.

    python tests/bench/returns.py MODEL_FOLDER --json returns.json
    python tests/bench/returns.py MODEL_FOLDER --policy full --policy window-12-3 --away 4 --away 16
    python tests/bench/returns.py --truth                 the test's own score: hit rate 1
    python tests/bench/returns.py --chance                pictures of another place: at chance
    python tests/bench/returns.py MODEL_FOLDER --influence 16       the intervention curve
    python tests/bench/returns.py MODEL_FOLDER --closed   whole films from their prompts alone

Every film's score is appended to a file under `--work` as soon as it is made, and the same command
goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cfgen.errors import CfgenError
from cfgen.schedule import FewStepSchedule
from cfgen.train.film_world import return_memory as memories
from cfgen.train.film_world import return_run as running
from cfgen.train.film_world import return_test as test
from cfgen.train.film_world.world import render

TIMESTEPS = tuple(range(1000, 0, -125))
Line = dict[str, Any]
shown = Console(stderr=True, highlight=False, soft_wrap=True)


def model_of(options: argparse.Namespace) -> running.Model:
    """The model folder with the noise levels that were asked for."""
    steps = options.timesteps or TIMESTEPS
    schedule = FewStepSchedule.from_timesteps(steps, shift=options.shift, renoise="predicted")
    device = torch.device(options.device)
    return running.load_model(options.model, schedule, options.guidance, device)


def batches(policy: str, count: int, size: int) -> Iterator[list[int]]:
    """Numbers of films that are played together."""
    size = size if memories.may_batch(policy) else 1
    yield from ([*range(at, min(at + size, count))] for at in range(0, count, size))


def lines_of(file: Path) -> dict[str, Line]:
    """What a file of scores holds, by key; a last line that was cut off is dropped from it."""
    if not file.exists():
        return {}
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    return {line["key"]: line for line in map(json.loads, whole.splitlines())}


Maker = Callable[[str, list[test.Case]], list[np.ndarray]]


def primed_maker(model: running.Model, options: argparse.Namespace) -> Maker:
    """Frames of returns after the truth."""
    sizes, known = sizes_of(options), {}

    def truth(case: test.Case) -> torch.Tensor:
        if case not in known:
            known[case] = running.truth_of(case, model.vae)
        return known[case]

    def made(policy: str, cases: list[test.Case]) -> list[np.ndarray]:
        truths = torch.cat([truth(case) for case in cases])
        return running.primed_return(running.Player(model, policy, cases, truths, sizes))

    return made


def world_maker(number: int) -> Maker:
    """Frames of the world itself: 0 the truth, any other number another place."""

    def made(_policy: str, cases: list[test.Case]) -> list[np.ndarray]:
        films = [test.other_world(case.film, number) for case in cases]
        spans = [case.frames for case in cases]
        return [render(f, s.start, s.stop) for f, s in zip(films, spans, strict=True)]

    return made


def sizes_of(options: argparse.Namespace) -> memories.SlowFastSizes:
    return memories.SlowFastSizes(
        sink=options.sink, slow=options.slow, fast=options.fast, tau=options.tau
    )


def scored(options: argparse.Namespace, maker: Maker, file: Path) -> list[Line]:
    """A line for each film, way, time away and policy; from `file` where that has it."""
    done, wanted = lines_of(file), []
    plan = [(w, t, p) for w in options.way for t in options.away for p in options.policy]
    for way, away, policy in plan:
        for numbers in batches(policy, options.films, options.batch):
            keys = [f"{way}/{away:g}/{policy}/{n}/{options.begin_there}" for n in numbers]
            wanted += keys
            if all(key in done for key in keys):
                continue
            elsewhere = not options.begin_there
            cases = [test.make_case(way, away, n, elsewhere=elsewhere) for n in numbers]
            for key, case, frames in zip(keys, cases, maker(policy, cases), strict=True):
                score = test.score_return(case, frames)
                line = {"key": key, "way": way, "away_s": away, "policy": policy}
                done[key] = line | dataclasses.asdict(score)
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(done[key]) + "\n")
            shown.print(f"{way}, {away:g} s, {policy}: film {numbers[-1] + 1}/{options.films}")
    return [done[key] for key in wanted]


def figures_of(lines: list[Line]) -> list[Line]:
    """Figures for each way, policy and time away, and effective contexts."""
    names = {field.name for field in dataclasses.fields(test.ReturnScore)}
    groups: dict[tuple[str, str], dict[float, list[test.ReturnScore]]] = {}
    for line in lines:
        score = test.ReturnScore(**{name: line[name] for name in names})
        by_time = groups.setdefault((line["way"], line["policy"]), {})
        by_time.setdefault(line["away_s"], []).append(score)
    found = []
    for (way, policy), by_time in groups.items():
        figures = {away: test.figures_of(scores) for away, scores in sorted(by_time.items())}
        above = {away: each["above_control"] for away, each in figures.items()}
        context = test.effective_context(above)
        for away, each in figures.items():
            row = {"way": way, "policy": policy, "away_s": away, "effective_context_s": context}
            found.append(row | each)
    return found


def table_of(rows: list[Line], title: str) -> Table:
    table = Table(title=title)
    for name in ("way", "policy", "away", "films", "hits", "control", "PSNR", "control"):
        table.add_column(name)
    for name in ("wins", "first", "above control", "effective context"):
        table.add_column(name)
    for r in rows:
        table.add_row(
            *(r["way"], r["policy"], f"{r['away_s']:g} s", str(r["films"])),
            *(f"{r['hit_rate']:.0%}", f"{r['control_rate']:.0%}"),
            *(f"{r['psnr']:.1f}", f"{r['control_psnr']:.1f}"),
            *(f"{r['win_rate']:.2f}", f"{r['first_places']:.0%}", f"{r['above_control']:.0%}"),
            f"{r['effective_context_s']:g} s",
        )
    return table


def influence_curves(model: running.Model, options: argparse.Namespace) -> list[Line]:
    """For each policy, the mean change of the next chunk by the age of the replaced frame."""
    rows = []
    for policy in options.policy:
        by_age: dict[int, list[float]] = {}
        for number in range(options.films):
            case = test.make_case("cut", options.influence, number)
            truth = running.truth_of(case, model.vae)
            player = running.Player(model, policy, [case], truth, sizes_of(options))
            player.prime(case.first)
            for frame, change in player.influence(case.first).items():
                by_age.setdefault(3 * case.first - frame, []).append(change)
            shown.print(f"{policy}: film {number + 1}/{options.films}")
        curve = {age: float(np.mean(by_age[age])) for age in sorted(by_age)}
        rows.append({"policy": policy, "change_by_age": curve})
    return rows


def closed_loops(model: running.Model, options: argparse.Namespace) -> list[Line]:
    """Whole films from their prompts: does the return look like the film's own departure?"""
    rows = []
    plan = [(w, t, p) for w in options.way for t in options.away for p in options.policy]
    for way, away, policy in plan:
        pairs = []
        for number in range(options.films):
            case = test.make_case(way, away, number, elsewhere=not options.begin_there)
            shape = running.truth_of(case, model.vae)
            films = [
                running.whole_films(
                    running.Player(model, policy, [case], shape, sizes_of(options), noise_seed=s)
                )[0]
                for s in (0, 1)
            ]
            left = test.first_frame(case.left + 1) - 1
            pairs.append(test.own_return(films[0][left], films[0][-1], films[1][left]))
            shown.print(f"closed, {way}, {away:g} s, {policy}: {number + 1}/{options.films}")
        own, other = np.array(pairs).T
        row = {"way": way, "policy": policy, "away_s": away, "films": len(pairs)}
        row |= {"psnr_own": float(own.mean()), "psnr_other": float(other.mean())}
        rows.append(row | {"wins": float((own > other).mean())})
    return rows


def parsed(arguments: list[str]) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("model", type=Path, nargs="?", help="model folder")
    parser.add_argument("--truth", action="store_true", help="the world instead of a model")
    parser.add_argument("--chance", action="store_true", help="another place instead of a model")
    parser.add_argument("--closed", action="store_true", help="from prompts alone, nothing given")
    parser.add_argument("--influence", type=float, metavar="S", help="after so many seconds away")
    parser.add_argument("--films", type=int, default=24)
    parser.add_argument("--way", action="append", choices=test.WAYS)
    parser.add_argument("--away", action="append", type=float, help="seconds away")
    parser.add_argument("--policy", action="append", choices=memories.POLICIES)
    parser.add_argument("--begin-there", action="store_true", help="no other place comes first")
    parser.add_argument("--batch", type=int, default=6, help="films at once, where it can be")
    parser.add_argument("--timesteps", type=float, nargs="+")
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--guidance", type=float, default=3.0)
    for name, value in (("sink", 3), ("slow", 6), ("fast", 6)):
        parser.add_argument(f"--{name}", type=int, default=value, help="latent frames")
    parser.add_argument("--tau", type=float, default=0.9994)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-returns"))
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(arguments)
    if sum((options.model is not None, options.truth, options.chance)) != 1:
        parser.error("give one of: a model folder, --truth, --chance")
    if options.model is None and (options.closed or options.influence):
        parser.error("--closed and --influence need a model folder")
    if options.films < 1 or options.batch < 1:
        parser.error("--films and --batch must be 1 or more")
    options.way = options.way or list(test.WAYS)
    options.away = options.away or list(test.AWAY_S)
    options.policy = options.policy or list(memories.POLICIES)
    if options.model is None:
        options.policy = ["none"]
    return options


def settings_of(options: argparse.Namespace) -> str:
    """A digest of what decides a score: the settings and the model's weights."""
    kept = ("shift", "guidance", "timesteps", "sink", "slow", "fast", "tau", "truth", "chance")
    total = hashlib.sha256(json.dumps([getattr(options, name) for name in kept]).encode())
    for path in sorted(options.model.rglob("*.safetensors")) if options.model else []:
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    model = model_of(options) if options.model else None
    if model is not None and (options.influence or options.closed):
        rows = (influence_curves if options.influence else closed_loops)(model, options)
        Console().print_json(json.dumps(rows))
    else:
        maker = world_maker(50 if options.chance else 0)
        maker = maker if model is None else primed_maker(model, options)
        rows = figures_of(scored(options, maker, options.work / f"{settings_of(options)}.jsonl"))
        Console(highlight=False).print(table_of(rows, str(options.model or "the world itself")))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CfgenError as error:
        sys.exit(str(error))
