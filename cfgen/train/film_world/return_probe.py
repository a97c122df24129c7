"""The return test over many films, ways and policies; every score is kept as soon as it is made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfgen.errors import UsageError
from cfgen.files.reading import open_binary, read_text
from cfgen.files.writing import append, write_file
from cfgen.plain_text import aligned
from cfgen.rollout.schedule import FewStepSchedule
from cfgen.train.film_world.return_memory import POLICIES, Policy, SlowFastSizes, may_batch
from cfgen.train.film_world.return_run import Model, Player, load_model, primed_return, truth_of
from cfgen.train.film_world.return_test import (
    AWAY_S,
    WAYS,
    Case,
    ReturnScore,
    effective_context,
    make_case,
    score_return,
)
from cfgen.train.film_world.return_test import figures_of as means_of

Line = dict[str, Any]
Maker = Callable[[str, list[Case]], list[NDArray[np.uint8]]]
"""Policy and cases to the frames of their returns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSettings:
    """What is tried.

    Attributes:
        films: films of each way and time away.
        ways: how films leave and come back.
        away: seconds away.
        policies: memories that one set of weights is run under.
        batch: films at once, where a policy allows it.
        elsewhere: whether films begin at another place, so that the sink does not know the first.
        steps: noise levels of a chunk.
        shift: warps them, as in a render.
        guidance: scale of classifier-free guidance.
        tau: threshold of slow memory.
        admission_layers: layers that decide together under `slow_fast-cfgen`; none: each its own.
    """

    films: int = 24
    ways: tuple[Literal["cut", "pan"], ...] = WAYS
    away: tuple[float, ...] = AWAY_S
    policies: tuple[Policy, ...] = POLICIES
    batch: int = 6
    elsewhere: bool = True
    steps: int = 8
    shift: float = 3.0
    guidance: float = 3.0
    tau: float = 0.9994
    admission_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Cases that are played together under a policy, and the keys of their scores."""

    policy: str
    cases: list[Case]
    keys: list[str]


def plan_of(settings: ProbeSettings, policies: Sequence[str]) -> Iterator[Batch]:
    """All that is to be played: every way, time and policy with the first films, then the next."""
    s = settings
    groups = [range(at, min(at + s.batch, s.films)) for at in range(0, s.films, s.batch)]
    for group in groups:
        for way in s.ways:
            for away in s.away:
                cases = [make_case(way, away, n, elsewhere=s.elsewhere) for n in group]
                for policy in policies:
                    keys = [f"{way}/{away:g}/{policy}/{n}" for n in group]
                    size = len(cases) if may_batch(policy) else 1
                    for i in range(0, len(cases), size):
                        yield Batch(policy, cases[i : i + size], keys[i : i + size])


def scores(
    settings: ProbeSettings, maker: Maker, file: Path, policies: Sequence[str] | None = None
) -> Iterator[tuple[int, int]]:
    """Score all films, going on where `file` ends.

    Args:
        settings: what is tried.
        maker: makes the frames of returns.
        file: where each score is appended as a line.
        policies: instead of those of the settings.

    Yields:
        How many scores there are and how many there will be, after every batch that was made.

    Raises:
        UsageError: a number of films or of films at once that is not positive.
    """
    if min(settings.films, settings.batch, settings.steps) < 1:
        raise UsageError("films, batch and steps of the return test must be 1 or more")
    plan = list(plan_of(settings, settings.policies if policies is None else policies))
    done = {line["key"] for line in lines_of(file)}
    total = sum(len(batch.keys) for batch in plan)
    for batch in plan:
        if done.issuperset(batch.keys):
            continue
        made = maker(batch.policy, batch.cases)
        for key, case, frames in zip(batch.keys, batch.cases, made, strict=True):
            if key not in done:
                line = {"key": key, "way": case.way, "away_s": case.away_s, "policy": batch.policy}
                line |= dataclasses.asdict(score_return(case, frames))
                with append(file) as out:
                    out.write(f"{json.dumps(line)}\n".encode())
        done.update(batch.keys)
        yield len(done), total


def asked_of(
    settings: ProbeSettings, file: Path, policies: Sequence[str] | None = None
) -> list[Line]:
    """The scores of a file that these settings ask for."""
    plan = plan_of(settings, settings.policies if policies is None else policies)
    keys = {key for batch in plan for key in batch.keys}
    return [line for line in lines_of(file) if line["key"] in keys]


def lines_of(file: Path) -> list[Line]:
    """What a file of scores holds; a last line that was cut off is dropped from it."""
    if not file.exists():
        return []
    text = read_text(file)
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_file(file, whole.encode(), shared=True)
    return [json.loads(line) for line in whole.splitlines()]


def model_maker(model: Model, sizes: SlowFastSizes) -> Maker:
    """Frames of a model's returns after the truth."""
    known: dict[Case, Tensor] = {}

    def truth(case: Case) -> Tensor:
        if case not in known:
            known[case] = truth_of(case, model.vae)
        return known[case]

    def made(policy: str, cases: list[Case]) -> list[NDArray[np.uint8]]:
        truths = torch.cat([truth(case) for case in cases])
        return primed_return(Player(model, policy, cases, truths, sizes))

    return made


def probed_model(folder: Path, settings: ProbeSettings, device: torch.device) -> Model:
    """The model of a folder, with noise levels and guidance of the settings.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    timesteps = np.linspace(1000, 0, settings.steps, endpoint=False).tolist()
    schedule = FewStepSchedule.from_timesteps(timesteps, shift=settings.shift, renoise="predicted")
    return load_model(folder, schedule, settings.guidance, device)


def digest_of(folder: Path | None, settings: ProbeSettings, sizes: SlowFastSizes) -> str:
    """A digest of what decides a score: the settings and the model's weights."""
    kept = dataclasses.asdict(settings) | dataclasses.asdict(sizes)
    for key in ("films", "batch", "ways", "away", "policies"):
        del kept[key]
    total = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for path in sorted(folder.rglob("*.safetensors")) if folder else []:
        with open_binary(path) as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def rows_of(lines: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Figures for each way, policy and time away, and effective contexts."""
    names = [field.name for field in dataclasses.fields(ReturnScore)]
    groups: dict[tuple[str, str], dict[float, list[ReturnScore]]] = {}
    for line in lines:
        score = ReturnScore(**{name: line[name] for name in names})
        by_time = groups.setdefault((line["way"], line["policy"]), {})
        by_time.setdefault(line["away_s"], []).append(score)
    found = []
    for (way, policy), by_time in groups.items():
        figures = {away: means_of(made) for away, made in sorted(by_time.items())}
        context = effective_context({away: f["above_control"] for away, f in figures.items()})
        for away, each in figures.items():
            row = {"way": way, "policy": policy, "away_s": away, "effective_context_s": context}
            found.append(row | each)
    return found


HEADS = (
    *("way", "policy", "away", "films", "hits", "control", "PSNR", "control", "wins", "first"),
    *("above control", "effective context"),
)


def cells_of(row: Line) -> tuple[str, ...]:
    """A row in words, under HEADS."""
    return (
        *(row["way"], row["policy"], f"{row['away_s']:g} s", str(row["films"])),
        *(f"{row['hit_rate']:.0%}", f"{row['control_rate']:.0%}"),
        *(f"{row['psnr']:.1f}", f"{row['control_psnr']:.1f}", f"{row['win_rate']:.2f}"),
        *(f"{row['first_places']:.0%}", f"{row['above_control']:.0%}"),
        f"{row['effective_context_s']:g} s",
    )


def table_of(rows: Sequence[Line]) -> str:
    """Rows as a table of text, one line each."""
    return "\n".join(aligned([HEADS, *map(cells_of, rows)]))
