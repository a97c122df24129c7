"""`cfgen train`: train a model of our own, stage by stage, in slices of minutes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, get_type_hints

import typer
import yaml

from cfgen.cli import options
from cfgen.cli.console import Console
from cfgen.config import presets
from cfgen.config.values import RawValue, nearest, parse_value
from cfgen.errors import CheckpointError, PresetError, Problem, UsageError
from cfgen.files.reading import read_text
from cfgen.files.writing import write_file

if TYPE_CHECKING:
    from cfgen.train.film_world.return_probe import ProbeSettings
    from cfgen.train.flow_matching_stage import FlowMatchingSettings, FlowMatchingStage
    from cfgen.train.loop import LoopSettings, Progress
    from cfgen.train.training_memory import MemorySettings
    from cfgen.train.vae_stage import VaeSettings

T = TypeVar("T")
Values = dict[str, dict[str, RawValue]]

app = options.command_app()


@app.command()
def train(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to train: mini.")],
    stage: Annotated[
        Literal["tokenizer", "vae", "base", "probe"],
        typer.Option(
            "--stage", help="The stage; each needs the ones before it. probe only measures."
        ),
    ],
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes", min=0.01, help="Save the state and stop after this many minutes."
        ),
    ] = 60.0,
    work: Annotated[
        Path, typer.Option("--work", metavar="FOLDER", help="Where state and model are kept.")
    ] = Path("mini-training"),
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            metavar="FOLDER",
            help="Begin from the weights of this model folder; a run that has begun ignores it.",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any value of presets/train.mini.yaml, such as base.dim=256; may be repeated.",
        ),
    ] = None,
    json_lines: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a model of our own, in slices of minutes.

    The same command again goes on where the last one stopped. The model folder is FOLDER/model:
    render with it by --set model.path=FOLDER/model. Stage probe trains nothing: it plays films
    that leave a place and come back, and tells how much of the place the model shows again.

    \b
    Examples:
      cfgen train mini --stage tokenizer
      cfgen train mini --stage vae --minutes 30
      cfgen train mini --stage base --minutes 120
      cfgen train mini --stage probe --set probe.films=4
    """
    console = options.console_of(ctx)
    console.configure(json=json_lines, quiet=quiet, debug=debug)
    settings = _settings(_values(name, assignments or []))
    model = work / "model"
    if stage == "tokenizer":
        from cfgen.train.tokenizer_stage import train_tokenizer

        size = train_tokenizer(model).get_vocab_size()
        console.result(str(model), {"model": str(model), "vocabulary": size})
        return
    if stage == "probe":
        _probe(console, settings, work, minutes)
        return
    last = None
    for last in _slice(stage, settings, work, minutes, start):
        _show(console, stage, last)
    step = last.step if last else 0
    _plot(console, work / stage)
    console.result(str(model), {"model": str(model), "stage": stage, "step": step})


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """The values of every stage, so that a wrong one is found whichever stage is trained."""

    vae: VaeSettings
    vae_loop: LoopSettings
    base: FlowMatchingSettings
    base_loop: LoopSettings
    memory: MemorySettings
    probe: ProbeSettings


def _slice(
    stage: str, settings: _Settings, work: Path, minutes: float, start: Path | None
) -> Iterator[Progress]:
    """Build a stage and train it for a while."""
    from cfgen.train.loop import train
    from cfgen.train.vae_stage import VaeStage

    model = work / "model"
    loop = settings.vae_loop if stage == "vae" else settings.base_loop
    made: VaeStage | FlowMatchingStage
    if stage == "vae":
        made = VaeStage(settings.vae, model)
    else:
        _need_earlier_stages(model, work)
        made = _base_stage(settings, work)
    if start is not None and not (work / stage / "state.json").exists():
        made.begin_from(start)
    yield from train(made, work, loop, minutes=minutes)


def _need_earlier_stages(model: Path, work: Path) -> None:
    """Refuse stage `base` where what it stands on is missing."""
    for part, earlier in (("tae.safetensors", "vae"), ("tokenizer/tokenizer.json", "tokenizer")):
        if not (model / part).is_file():
            raise CheckpointError(
                f"{model / part} is missing: stage base needs it",
                f"make it first: cfgen train mini --stage {earlier} --work {work}",
            )


def _base_stage(settings: _Settings, work: Path) -> FlowMatchingStage:
    """Build stage `base` on what the stages before it left in the model folder."""
    import torch

    from cfgen.checkpoint.networks.vae import load_tiny
    from cfgen.model.text_encoder import load_tokenizer
    from cfgen.train.export import Exporter
    from cfgen.train.film_world.latents import LatentStore, encoder_digest
    from cfgen.train.flow_matching_stage import FlowMatchingStage

    model = work / "model"
    vae = load_tiny(model / "tae.safetensors", dtype=torch.bfloat16)
    store = LatentStore(
        work / "latents" / encoder_digest(vae)[:16],
        vae,
        width=settings.vae.width,
        height=settings.vae.height,
    )
    exporter = Exporter(model, store.vae.spatial_stride)
    tokenizer = load_tokenizer(model / "tokenizer" / "tokenizer.json")
    return FlowMatchingStage(settings.base, settings.memory, store, tokenizer, exporter)


def _probe(console: Console, settings: _Settings, work: Path, minutes: float) -> None:
    """Run the return test for a while; the same command goes on, as long as the weights stay."""
    import torch

    from cfgen.train.film_world import return_probe as probe
    from cfgen.train.film_world.return_memory import SlowFastSizes

    began = time.monotonic()
    wanted, memory, model = settings.probe, settings.memory, work / "model"
    sizes = SlowFastSizes(
        sink=memory.sink,
        slow=memory.slow,
        fast=memory.fast,
        tau=wanted.tau,
        admission_layers=wanted.admission_layers,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    maker = probe.model_maker(probe.probed_model(model, wanted, device), sizes)
    folder = work / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{probe.digest_of(model, wanted, sizes)}.jsonl"
    for done, total in probe.scores(wanted, maker, file):
        console.note(f"probe {done}/{total}")
        if time.monotonic() - began > 60 * minutes:
            break
    rows = probe.rows_of(probe.asked_of(wanted, file))
    facts = {"model": str(model), "stage": "probe", "scores": str(file), "rows": rows}
    write_file(folder / "returns.json", f"{json.dumps(facts, indent=1)}\n".encode(), shared=True)
    console.result(probe.table_of(rows), facts)


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


def _settings(values: Values) -> _Settings:
    """Make the settings of all stages.

    Raises:
        PresetError: A key or a value is wrong; lists every one of them.
    """
    from cfgen.train.film_world.return_probe import ProbeSettings
    from cfgen.train.flow_matching_stage import FlowMatchingSettings
    from cfgen.train.loop import LoopSettings
    from cfgen.train.training_memory import MemorySettings
    from cfgen.train.vae_stage import VaeSettings

    problems: list[Problem] = []
    made = _Settings(
        vae=_filled(VaeSettings, values["vae"], "vae", problems),
        vae_loop=_filled(LoopSettings, values["vae.loop"], "vae.loop", problems),
        base=_filled(FlowMatchingSettings, values["base"], "base", problems),
        base_loop=_filled(LoopSettings, values["base.loop"], "base.loop", problems),
        memory=_filled(MemorySettings, values["base.memory"], "base.memory", problems),
        probe=_filled(ProbeSettings, values["probe"], "probe", problems),
    )
    if problems:
        raise PresetError(problems)
    return made


def _filled(
    kind: type[T], values: Mapping[str, RawValue], section: str, problems: list[Problem]
) -> T:
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
