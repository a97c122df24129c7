"""Does a model remember a place that a film comes back to? The return test as a command.

    python tests/bench/returns.py MODEL_FOLDER --json returns.json
    python tests/bench/returns.py MODEL_FOLDER --policy full --policy window-12-3 --away 4 --away 16
    python tests/bench/returns.py STUDENT --steps 4 --shift 6 --guidance 1 --renoise fresh
    python tests/bench/returns.py --truth                 the test's own score: hit rate 1
    python tests/bench/returns.py --chance                pictures of another place: at chance
    python tests/bench/returns.py MODEL_FOLDER --reconstruct  the truth through its autoencoder
    python tests/bench/returns.py MODEL_FOLDER --influence 16       the intervention curve
    python tests/bench/returns.py MODEL_FOLDER --closed   whole films from their prompts alone

Every film's score is appended to a file under `--work` as soon as it is made, and the same command
goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console

from cfgen.train.film_world import return_figures as figures
from cfgen.train.film_world import return_memory as memories
from cfgen.train.film_world import return_probe as probe
from cfgen.train.film_world import return_run as running
from cfgen.train.film_world import return_test as test
from cfgen.train.film_world.world import render

Line = dict[str, Any]
shown = Console(stderr=True, highlight=False, soft_wrap=True)


def world_maker(number: int) -> probe.Maker:
    """Frames of the world itself: 0 the truth, any other number another place."""

    def made(_policy: str, cases: list[test.Case]) -> list[np.ndarray]:
        films = [test.other_world(case.film, number) for case in cases]
        spans = [case.frames for case in cases]
        return [render(f, s.start, s.stop) for f, s in zip(films, spans, strict=True)]

    return made


def autoencoder_maker(vae: running.Autoencoder) -> probe.Maker:
    """Frames of the world through an autoencoder."""

    def made(_policy: str, cases: list[test.Case]) -> list[np.ndarray]:
        films = [running.decoded(vae, running.truth_of(case, vae))[0] for case in cases]
        spans = [case.frames for case in cases]
        return [film[s.start : s.stop] for film, s in zip(films, spans, strict=True)]

    return made


def settings_of(options: argparse.Namespace) -> probe.ProbeSettings:
    names = [field.name for field in dataclasses.fields(probe.ProbeSettings)]
    return probe.ProbeSettings(**{name: getattr(options, name) for name in names})


def sizes_of(options: argparse.Namespace) -> memories.SlowFastSizes:
    names = [field.name for field in dataclasses.fields(memories.SlowFastSizes)]
    return memories.SlowFastSizes(**{name: getattr(options, name) for name in names})


def influence_curves(model: running.Model, options: argparse.Namespace) -> list[Line]:
    """For each policy, the mean change of the next chunk by the age of the replaced frame."""
    rows = []
    for policy in options.policies:
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
    plan = [(w, t, p) for w in options.ways for t in options.away for p in options.policies]
    for way, away, policy in plan:
        pairs = []
        for number in range(options.films):
            case = test.make_case(way, away, number, elsewhere=options.elsewhere)
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
    parser.add_argument("--reconstruct", action="store_true", help="only by its autoencoder")
    parser.add_argument("--closed", action="store_true", help="from prompts alone, nothing given")
    parser.add_argument("--influence", type=float, metavar="S", help="after so many seconds away")
    parser.add_argument("--films", type=int, default=24)
    parser.add_argument("--way", dest="ways", action="append", choices=test.WAYS)
    parser.add_argument("--away", action="append", type=float, help="seconds away")
    parser.add_argument("--policy", dest="policies", action="append", choices=memories.EVERY_POLICY)
    begin = {"dest": "elsewhere", "action": "store_false"}
    parser.add_argument("--begin-there", **begin, help="no other place comes first")
    parser.add_argument("--batch", type=int, default=6, help="films at once, where it can be")
    parser.add_argument("--steps", type=int, default=8, help="even noise levels of a chunk")
    parser.add_argument("--timesteps", type=float, nargs="+", default=(), help="instead of even")
    parser.add_argument("--shift", type=float, default=3.0)
    words = get_args(running.Renoise)
    parser.add_argument("--renoise", choices=words, default="predicted", help="fresh: a student")
    parser.add_argument("--guidance", type=float, default=3.0)
    for name, value in (("sink", 3), ("slow", 6), ("fast", 6)):
        parser.add_argument(f"--{name}", type=int, default=value, help="latent frames")
    parser.add_argument("--tau", type=float, default=0.9994)
    parser.add_argument("--admits", choices=("first", "chunk"), default="first")
    parser.add_argument("--admission-layers", type=int, nargs="+", default=())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-returns"))
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(arguments)
    if sum((options.model is not None, options.truth, options.chance)) != 1:
        parser.error("give one of: a model folder, --truth, --chance")
    ways = (options.closed, options.influence is not None, options.reconstruct)
    if any(ways) and (options.model is None or sum(ways) > 1):
        parser.error("--closed, --influence and --reconstruct need a model folder, and go alone")
    options.admission_layers = tuple(options.admission_layers)
    options.timesteps = tuple(options.timesteps)
    options.ways = options.ways or test.WAYS
    options.away = options.away or test.AWAY_S
    options.policies = options.policies or memories.POLICIES
    return options


def scored(options: argparse.Namespace, model: running.Model | None) -> list[Line]:
    """Figures of the returns, going on where the last run ended."""
    settings, sizes = settings_of(options), sizes_of(options)
    if model is not None and options.reconstruct:
        maker, policies = autoencoder_maker(model.vae), ("none",)
    elif model is None:
        maker, policies = world_maker(50 if options.chance else 0), ("none",)
    else:
        maker, policies = probe.model_maker(model, sizes), settings.policies
    kinds = {"chance-": options.chance, "truth-": options.truth, "coded-": options.reconstruct}
    kind = next((name for name, wanted in kinds.items() if wanted), "")
    file = options.work / f"{kind}{probe.digest_of(options.model, settings, sizes)}.jsonl"
    for done, total in probe.scores(settings, maker, file, policies):
        shown.print(f"{done}/{total}")
    return figures.rows_of(probe.asked_of(settings, file, policies))


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    settings = settings_of(options)
    model = probe.probed_model(options.model, settings, device) if options.model else None
    if model is not None and (options.influence or options.closed):
        rows = (influence_curves if options.influence else closed_loops)(model, options)
        Console().print_json(json.dumps(rows))
    else:
        rows = scored(options, model)
        sys.stdout.write(f"{figures.table_of(rows)}\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from kept import run  # beside this file, when it is the script that runs

    run(main)
