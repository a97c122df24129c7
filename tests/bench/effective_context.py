"""How long models and memories keep a place: the return test of every row of a table.

    python tests/bench/effective_context.py tests/bench/effective_context.yaml --json table.json
    python tests/bench/effective_context.py TABLE.yaml --svg hits.svg --only base --only student
    python tests/bench/effective_context.py TABLE.yaml --no-run         what there is so far

A table is a YAML file with a list `rows`. Each has `name`, `model` (a model folder, relative to the
file), `policy`, and may have `label`, `steps` or `timesteps`, `shift`, `renoise` and `guidance`, as
`probe` of `cfgen train --stage probe` has them, and `slow`, `tau`, `admits`, `admission_layers`, as
its `probe.memory`; with `like: NAME`, all of these but `name` and `label` are those of an earlier
row where it does not say its own.

Films leave a place by a cut or a pan and come back after 2 to 24 seconds. Every film's score is
appended to a file under `--work` as soon as it is made; the same command goes on, and rows of one
model and settings share a file.

`effective context` is the longest time up to which at least three quarters of the films show more
of the truth than of another place; its interval of 95 percent and those of the hit rates are a
bootstrap over films. A row whose model folder is missing is left out, and said.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
import yaml
from rich.console import Console

from cfgen.config.values import RawValue, nearest, parse_value
from cfgen.errors import CheckpointError, PresetError, Problem, UsageError
from cfgen.files.reading import read_text
from cfgen.files.writing import write_file
from cfgen.plain_text import aligned
from cfgen.train.film_world import return_figures as figures
from cfgen.train.film_world import return_probe as probe
from cfgen.train.film_world.return_memory import Policy, SlowFastSizes, memory_of
from cfgen.train.film_world.return_run import Renoise
from cfgen.train.film_world.return_test import AWAY_S, WAYS, make_case

Line = dict[str, Any]
shown = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """A model under a memory; values are those of `ProbeSettings` and `SlowFastSizes`.

    Attributes:
        name: by which `--only` knows it.
        label: what table and plot call it; the name if empty.
        model: its folder.
        policy: the memory.
    """

    name: str
    model: Path
    policy: Policy
    label: str = ""
    steps: int = 8
    timesteps: tuple[float, ...] = ()
    shift: float = 3.0
    renoise: Renoise = "predicted"
    guidance: float = 3.0
    slow: int = 6
    tau: float = 0.9994
    admits: Literal["first", "chunk"] = "first"
    admission_layers: tuple[int, ...] = ()

    @property
    def sizes(self) -> SlowFastSizes:
        return SlowFastSizes(
            slow=self.slow,
            tau=self.tau,
            admits=self.admits,
            admission_layers=self.admission_layers,
        )

    def settings(self, options: argparse.Namespace) -> probe.ProbeSettings:
        return probe.ProbeSettings(
            films=options.films,
            ways=tuple(options.ways),
            away=tuple(options.away),
            policies=(self.policy,),
            batch=options.batch,
            steps=self.steps,
            timesteps=self.timesteps,
            shift=self.shift,
            renoise=self.renoise,
            guidance=self.guidance,
        )


REQUIRED = ("name", "model", "policy")


def read_table(path: Path) -> list[TableRow]:
    """The rows of a table.

    Raises:
        PresetError: lists everything that is wrong in it.
        UsageError: the file cannot be read, or is no table.
    """
    try:
        text = read_text(path)
        tree, node = (read(text, Loader=yaml.BaseLoader) for read in (yaml.load, yaml.compose))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"the table {path} cannot be read: {error}") from None
    if not isinstance(tree, dict) or list(tree) != ["rows"] or not isinstance(tree["rows"], list):
        raise UsageError(f"the table {path} must have the key 'rows' alone, a list of rows")
    problems: list[Problem] = []
    lines = [each.start_mark.line + 1 for each in node.value[0][1].value]
    earlier: dict[str, dict[str, RawValue]] = {}
    rows = []
    for number, (values, line) in enumerate(zip(tree["rows"], lines, strict=True), 1):
        key, where = f"rows.{number}", f"{path}:{line}"
        try:
            whole = _with_those_of(earlier, values)
        except ValueError as error:
            problems.append(Problem(key=f"{key}.like", reason=str(error), where=where))
        else:
            rows.append(_row(whole, key, where, problems))
    for what in ("name", "label"):
        given = [getattr(row, what) for row in rows if row is not None]
        for each in sorted({each for each in given if given.count(each) > 1}):
            reason = f"two rows have the {what} {each!r}: each needs its own"
            problems.append(Problem(key="rows", reason=reason, where=f"{path}:1"))
    if not rows:
        problems.append(Problem(key="rows", reason="must hold a row or more", where=f"{path}:1"))
    if problems:
        raise PresetError(problems)
    found = [row for row in rows if row is not None]
    return [dataclasses.replace(row, model=path.parent / row.model) for row in found]


def _with_those_of(earlier: dict[str, dict[str, RawValue]], values: RawValue) -> RawValue:
    """A row's values with those of the row that it is like; kept by its name in `earlier`.

    Raises:
        ValueError: no row before it has that name.
    """
    if not isinstance(values, dict):
        return values
    own = dict(values)
    if (like := own.pop("like", None)) is not None:
        if not isinstance(like, str) or like not in earlier:
            raise ValueError(f"names no row before it, got {like!r}{nearest(str(like), earlier)}")
        own = {**earlier[like], "name": "", "label": "", **own}
    if isinstance(name := own.get("name"), str):
        earlier[name] = own
    return own


def _row(values: RawValue, key: str, where: str, problems: list[Problem]) -> TableRow | None:
    def wrong(at: str, reason: str) -> None:
        problems.append(Problem(key=at, reason=reason, where=where))

    if not isinstance(values, dict):
        wrong(key, f"must have keys of its own: {', '.join(REQUIRED)} and others")
        return None
    hints, before, typed = get_type_hints(TableRow), len(problems), {}
    for name, tree in values.items():
        if name not in hints:
            wrong(f"{key}.{name}", f"is not a known key{nearest(name, hints)}")
            continue
        try:
            typed[name] = parse_value(hints[name], tree)
        except ValueError as error:
            wrong(f"{key}.{name}", str(error))
    for name in REQUIRED:
        if not values.get(name):
            wrong(key, f"lacks {name!r}")
    if len(problems) > before:
        return None
    row = TableRow(**typed)
    return dataclasses.replace(row, label=row.label or row.name)


def chosen(rows: Sequence[TableRow], only: Sequence[str]) -> list[TableRow]:
    """The rows of these names; all without names."""
    names = [row.name for row in rows]
    for name in only:
        if name not in names:
            raise UsageError(
                f"the table has no row {name!r}{nearest(name, names)}", f"rows: {', '.join(names)}"
            )
    return [row for row in rows if not only or row.name in only]


def require_playable(row: TableRow, options: argparse.Namespace) -> None:
    """Refuse a row that cannot be played before hours are spent on the others.

    Raises:
        CheckpointError: a file of the model is damaged, or it lacks kernels that the policy needs.
        UsageError: a value of the row cannot be used with the model.
    """
    try:
        settings = row.settings(options)
        model = probe.probed_model(row.model, settings, torch.device(options.device))
        case = make_case(settings.ways[0], settings.away[0], 0)
        memory_of(row.policy, case, model.generator, _PROBED_SIZE, row.sizes)
    except CheckpointError as error:
        raise CheckpointError(f"row {row.name!r}: {error.message}", error.hint) from None
    except UsageError as error:
        raise UsageError(f"row {row.name!r}: {error.message}", error.hint) from None


_PROBED_SIZE = (12, 20)
"""Rows and columns of latents that a memory is tried with; a memory is empty until it is used."""


def scores_of(row: TableRow, options: argparse.Namespace) -> list[Line]:
    """The scores of a row, going on where the last run ended."""
    settings = row.settings(options)
    file = options.work / f"{probe.digest_of(row.model, settings, row.sizes)}.jsonl"
    if options.run:
        model = probe.probed_model(row.model, settings, torch.device(options.device))
        for done, total in probe.scores(settings, probe.model_maker(model, row.sizes), file):
            shown.print(f"{row.name}: {done}/{total}")
    return probe.asked_of(settings, file)


def table_of(lines: Sequence[Line], away: Sequence[float], films: int) -> str:
    """A line for each row and way: effective context, then hit rate and PSNR by time away.

    A figure of fewer films than were asked for has their number behind it.
    """
    times = [f"{each:g} s" for each in away]
    heads = ["row", "policy", "way", "effective context"]
    heads += [*(f"hits {each}" for each in times), "control"]
    heads += [*(f"dB {each}" for each in times), "control"]
    rows = []
    for name, way in dict.fromkeys((line["name"], line["way"]) for line in lines):
        own = [line for line in lines if (line["name"], line["way"]) == (name, way)]
        by_time = {line["away_s"]: line for line in own}
        rows.append(
            [own[0]["label"], own[0]["policy"], way, figures.context_text(own[0])]
            + [_cell(by_time.get(each), "hit_rate", "{:.0%}", films) for each in away]
            + [f"{_mean(own, 'control_rate'):.0%}"]
            + [_cell(by_time.get(each), "psnr", "{:.1f}", films) for each in away]
            + [f"{_mean(own, 'control_psnr'):.1f}"]
        )
    return "\n".join(aligned([heads, *rows], right=range(4, len(heads))))


def _cell(line: Line | None, key: str, form: str, films: int) -> str:
    if line is None:
        return "-"
    told = form.format(line[key])
    return told if line["films"] == films else f"{told} ({line['films']})"


def _mean(lines: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(line[key] for line in lines) / len(lines)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("table", type=Path, help="YAML file of rows")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this row")
    parser.add_argument("--no-run", dest="run", action="store_false", help="make no film")
    parser.add_argument("--films", type=int, default=32, help="of each way and time away")
    parser.add_argument("--way", dest="ways", action="append", choices=WAYS)
    parser.add_argument("--away", action="append", type=float, help="seconds away")
    parser.add_argument("--batch", type=int, default=6, help="films at once, where it can be")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-returns"))
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--svg", type=Path, help="where the plot of hit rates goes")
    options = parser.parse_args(arguments)
    options.ways = options.ways or WAYS
    options.away = sorted(options.away or AWAY_S)
    return options


def with_models(table: Sequence[TableRow]) -> tuple[list[TableRow], dict[str, str]]:
    """The rows whose model folder is there, and of each other one, by name, what is missing."""
    rows = [row for row in table if row.model.is_dir()]
    missing = {
        row.name: f"left out: {row.name}: there is no model folder {row.model}"
        for row in table
        if row not in rows
    }
    return rows, missing


def main(arguments: Sequence[str]) -> None:
    options = parsed(arguments)
    table = chosen(read_table(options.table), options.only)
    rows, missing = with_models(table)
    for line in missing.values():
        shown.print(line)
    if not rows:
        raise UsageError(f"no row of {options.table} has a model folder", "train or copy one there")
    options.work.mkdir(parents=True, exist_ok=True)
    for row in rows if options.run else ():
        require_playable(row, options)
    lines: list[Line] = []
    for row in rows:
        found = figures.rows_of(scores_of(row, options))
        named = {"name": row.name, "label": row.label, "model": str(row.model)}
        lines += [named | line for line in found]
        if not found:
            missing[row.name] = f"left out: {row.name} has no score yet"
    if not lines:
        raise UsageError(f"no row of {options.table} has a score yet", "leave out --no-run")
    text = table_of(lines, options.away, options.films)
    sys.stdout.write("\n".join([text, *missing.values(), ""]))
    if options.json:
        told = {"films": options.films, "rows": lines, "left_out": missing}
        write_file(options.json, f"{json.dumps(told, indent=1, allow_nan=False)}\n".encode())
    if options.svg:
        from cfgen.train.film_world.return_plot import plot_hits

        plot_hits(lines, options.svg)


if __name__ == "__main__":
    from kept import run  # beside this file, when it is the script that runs

    run(main)
