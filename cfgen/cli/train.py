"""`cfgen train`: train a model of our own, stage by stage, in slices of minutes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
import yaml

from cfgen.cli import options
from cfgen.cli.console import Console
from cfgen.config import presets
from cfgen.config.values import RawValue, nearest, parse_value
from cfgen.errors import PresetError, Problem, UsageError
from cfgen.files.reading import read_text

if TYPE_CHECKING:
    from cfgen.train.loop import Progress

Values = dict[str, dict[str, RawValue]]

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="What to train: mini, or context-forcing.")
]
StageName = Annotated[
    str,
    typer.Option(
        "--stage",
        metavar="STAGE",
        help="The stage: tokenizer, vae, base, decoder, teacher, dmd, cdmd. probe only measures.",
    ),
]
Minutes = Annotated[
    float,
    typer.Option("--minutes", min=0.01, help="Save the state and stop after this many minutes."),
]
Work = Annotated[
    Path, typer.Option("--work", metavar="FOLDER", help="Where state and model are kept.")
]
Start = Annotated[
    Path | None,
    typer.Option(
        "--start",
        metavar="FOLDER",
        help="Begin from the weights of this model folder; a run that has begun ignores it.",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any value of presets/train.NAME.yaml, such as base.dim=256; may be repeated.",
    ),
]
AsPlan = Annotated[
    bool, typer.Option("--plan", help="Tell what memory and time the stage will take, and stop.")
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="TFLOPS",
        min=1e-6,
        help="What --plan reckons time at, in TFLOP/s of a process; an estimate without it.",
    ),
]

app = options.command_app()


@app.command()
@options.takes(options.Json, options.Quiet, options.Debug)
def train(
    ctx: typer.Context,
    name: Name,
    stage: StageName,
    minutes: Minutes = 60.0,
    work: Work = Path("mini-training"),
    start: Start = None,
    assignments: Assignments = None,
    plan: AsPlan = False,
    rate: Rate = None,
) -> None:
    """Train a model of our own, in slices of minutes.

    The same command again goes on where the last one stopped. The model folder is FOLDER/model:
    render with it by --set model.path=FOLDER/model. Stages dmd and cdmd make students of few passes
    from it, FOLDER/dmd/model and FOLDER/cdmd/model: render with them by --config
    FOLDER/cdmd/render.yaml; FOLDER/cdmd/films shows what they make on the way. Stage probe trains
    nothing: it plays films that leave a place and come back, and tells how much of the place the
    model shows again.

    \b
    Examples:
      cfgen train mini --stage tokenizer
      cfgen train mini --stage vae --minutes 30
      cfgen train mini --stage base --minutes 120
      cfgen train mini --stage dmd --minutes 120
      cfgen train mini --stage probe --set probe.films=4
      cfgen train context-forcing --stage dmd --plan --set plan.device=A100
    """
    from cfgen.train.stages import STAGES, Job, planned

    console = options.console_of(ctx)
    values = _values(name, assignments or [])
    known = [each for each in STAGES if each in values]
    if stage not in known:
        raise UsageError(
            f"{name} has no stage {stage!r}{nearest(stage, known)}", f"stages: {', '.join(known)}"
        )
    job = Job(name, stage, _settings(values), work, minutes, start)
    if plan:
        told = planned(job, rate)
        console.result(told.text, told.facts)
        return
    entry = STAGES[stage]
    entry.check(job)
    result = entry.run(job, lambda progress: _show(console, stage, progress))
    _plot(console, work / stage)
    console.result(result.text, result.facts)


def _values(name: str, assignments: list[str]) -> Values:
    """Read `train.NAME.yaml` as text and lay `KEY=VALUE` over it; `_filled` checks the keys."""
    folder = presets.presets_folder()
    path = folder / f"train.{name}.yaml"
    if not path.is_file():
        known = sorted(p.name.split(".")[1] for p in folder.glob("train.*.yaml"))
        raise UsageError(
            f"there is nothing to train called {name!r}{nearest(name, known)}",
            f"what can be trained: {', '.join(known)}",
        )
    values: Values = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        section, _, field = key.strip().rpartition(".")
        if not separator or section not in values:
            sections = ", ".join(values)
            raise UsageError(f"--set {assignment}: use SECTION.KEY=VALUE, sections: {sections}")
        values[section][field] = text.strip()
    return values


def _settings(values: Values) -> dict[str, Any]:
    """Make the settings of all sections, so that a wrong one is found whichever stage is done.

    Raises:
        PresetError: A key or a value is wrong; lists every one of them.
    """
    from cfgen.train.stages import SECTIONS

    problems: list[Problem] = []
    made: dict[str, Any] = {}
    for section, given in values.items():
        if section in SECTIONS:
            made[section] = _filled(SECTIONS[section], given, section, problems)
        else:
            reason = f"is not a known section{nearest(section, SECTIONS)}"
            problems.append(Problem(key=section, reason=reason))
    if problems:
        raise PresetError(problems)
    return made


def _filled(
    kind: type, values: Mapping[str, RawValue], section: str, problems: list[Problem]
) -> object:
    """Make a settings dataclass of a section, leaving out what goes to `problems`."""
    hints = get_type_hints(kind)
    typed: dict[str, object] = {}
    for key, tree in values.items():
        where = f"{section}.{key}"
        if key not in hints:
            problems.append(Problem(key=where, reason=f"is not a known key{nearest(key, hints)}"))
            continue
        try:
            typed[key] = parse_value(hints[key], tree)
        except ValueError as error:
            problems.append(Problem(key=where, reason=str(error)))
            typed[key] = None
    return kind(**typed)


def _show(console: Console, stage: str, progress: Progress) -> None:
    figures = "  ".join(f"{key} {value:.4f}" for key, value in progress.figures.items())
    pace = progress.seconds / max(1, progress.step)
    console.note(f"{stage} {progress.step}/{progress.steps}  {pace:.2f} s/step  {figures}")
    console.event("train", {"stage": stage, "step": progress.step, **progress.figures})


def _plot(console: Console, folder: Path) -> None:
    """Draw the log, or say what is missing for it."""
    log = folder / "log.jsonl"
    if not log.exists():
        return
    try:
        from cfgen.train.plot import plot_log
    except ImportError:
        console.note("no plot of the losses: it needs matplotlib (pip install 'cfgen[train]')")
        return
    plot_log(log, folder / "loss.png")
