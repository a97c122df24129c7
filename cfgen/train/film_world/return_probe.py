"""The return test over many films, ways and policies; every score is kept as soon as it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfgen.errors import UsageError
from cfgen.files.json_lines import append_json_line, read_json_lines
from cfgen.train.film_world.return_memory import POLICIES, Policy, SlowFastSizes, may_batch
from cfgen.train.film_world.return_run import (
    Model,
    Player,
    Renoise,
    digest_of_run,
    load_model,
    primed_return,
    schedule_of,
    truth_of,
)
from cfgen.train.film_world.return_test import AWAY_S, WAYS, Case, make_case, score_return

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
        steps: noise levels of a chunk, spread evenly.
        timesteps: those levels, in (0, 1000], where they are not even; then `steps` is not read.
        shift: warps them, as in a render.
        renoise: how a chunk gets to its next level: `predicted`, by the noise that the prediction
            implies, for a base; `fresh`, by new noise, for a student of few steps.
        guidance: scale of classifier-free guidance; 1 for none.
    """

    films: int = 24
    ways: tuple[Literal["cut", "pan"], ...] = WAYS
    away: tuple[float, ...] = AWAY_S
    policies: tuple[Policy, ...] = POLICIES
    batch: int = 6
    elsewhere: bool = True
    steps: int = 8
    timesteps: tuple[float, ...] = ()
    shift: float = 3.0
    renoise: Renoise = "predicted"
    guidance: float = 3.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Cases that are played together under a policy.

    Attributes:
        policy: the memory.
        cases: of one way and time away.
        numbers: the number of each one's film.
        keys: the keys of their scores.
    """

    policy: str
    cases: list[Case]
    numbers: list[int]
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
                        part = slice(i, i + size)
                        yield Batch(policy, cases[part], list(group[part]), keys[part])


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
    wanted = {key for batch in plan for key in batch.keys}
    done = wanted & {line["key"] for line in read_json_lines(file)}
    for batch in plan:
        left = [i for i, key in enumerate(batch.keys) if key not in done]
        if not left:
            continue
        frames = maker(batch.policy, [batch.cases[i] for i in left])
        for i, made in zip(left, frames, strict=True):
            case = batch.cases[i]
            line = {"key": batch.keys[i], "film": batch.numbers[i], "way": case.way}
            line |= {"away_s": case.away_s, "policy": batch.policy}
            append_json_line(file, line | dataclasses.asdict(score_return(case, made)))
        done.update(batch.keys)
        yield len(done), len(wanted)


def asked_of(
    settings: ProbeSettings, file: Path, policies: Sequence[str] | None = None
) -> list[Line]:
    """The scores of a file that these settings ask for."""
    plan = plan_of(settings, settings.policies if policies is None else policies)
    keys = {key for batch in plan for key in batch.keys}
    return [line for line in read_json_lines(file) if line["key"] in keys]


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
        UsageError: the noise levels are none.
    """
    s = settings
    schedule = schedule_of(s.steps, s.timesteps, shift=s.shift, renoise=s.renoise)
    return load_model(folder, schedule, s.guidance, device)


def digest_of(folder: Path | None, settings: ProbeSettings, sizes: SlowFastSizes) -> str:
    """A digest of what decides a score: the settings and the model's weights."""
    kept = dataclasses.asdict(settings) | dataclasses.asdict(sizes)
    for key in ("films", "batch", "ways", "away", "policies"):
        del kept[key]
    return digest_of_run(folder, kept)
