"""`cfgen train`: train a model of our own, stage by stage, in slices of minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
import yaml

from cfgen.cli import options
from cfgen.cli.console import Console
from cfgen.config.catalog import presets_folder
from cfgen.config.values import nearest
from cfgen.errors import CheckpointError, PresetError, Problem, UsageError

if TYPE_CHECKING:
    from cfgen.train.loop import Progress

T = TypeVar("T")

app = options.command_app()


@app.command()
def train(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to train: mini.")],
    stage: Annotated[
        Literal["tokenizer", "vae", "base"],
        typer.Option("--stage", help="The stage; each needs those before it."),
    ],
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.01, help="Stop after this long, state saved.")
    ] = 60.0,
    work: Annotated[
        Path, typer.Option("--work", metavar="FOLDER", help="Where state and model are kept.")
    ] = Path("mini-training"),
    assignments: options.Set = None,
    json_lines: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a model of our own, in slices: the same command again goes on where it stopped.

    The model folder is FOLDER/model: render with it by --set model.path=FOLDER/model.

    \b
    Examples:
      cfgen train mini --stage tokenizer
      cfgen train mini --stage vae --minutes 30
      cfgen train mini --stage base --minutes 120
    """
    console = options.console_of(ctx)
    console.configure(json=json_lines, quiet=quiet, debug=debug)
    values = _values(name, assignments or [])
    model = work / "model"
    if stage == "tokenizer":
        from cfgen.train.tokenizer_stage import train_tokenizer

        size = train_tokenizer(model).get_vocab_size()
        console.result(str(model), {"model": str(model), "vocabulary": size})
        return
    last = None
    for last in _slice(stage, values, work, minutes):
        _show(console, stage, last)
    step = last.step if last else 0
    _plot(console, work / stage)
    console.result(str(model), {"model": str(model), "stage": stage, "step": step})


def _slice(
    stage: str, values: dict[str, dict[str, object]], work: Path, minutes: float
) -> Iterator[Progress]:
    """Build a stage and train it for a while."""
    import torch

    from cfgen.checkpoint.load import load_vae
    from cfgen.model.text_encoder import load_tokenizer
    from cfgen.train.base_stage import BaseSettings, BaseStage
    from cfgen.train.export import Exporter
    from cfgen.train.latents import LatentStore
    from cfgen.train.loop import LoopSettings, train
    from cfgen.train.vae_stage import VaeSettings, VaeStage

    model = work / "model"
    loop = _filled(LoopSettings, values[f"{stage}.loop"], f"{stage}.loop")
    if stage == "vae":
        vae_settings = _filled(VaeSettings, values["vae"], "vae")
        yield from train(VaeStage(vae_settings, model), work, loop, minutes=minutes)
        return
    if not (model / "tae.safetensors").is_file():
        raise CheckpointError(
            f"{model} has no autoencoder", "train it first: cfgen train mini --stage vae"
        )
    settings = _filled(BaseSettings, values["base"], "base")
    sizes = _filled(VaeSettings, values["vae"], "vae")
    vae = load_vae(model / "tae.safetensors", dtype=torch.bfloat16)
    store = LatentStore(work / "latents", vae, width=sizes.width, height=sizes.height)
    tokenizer = load_tokenizer(model / "tokenizer" / "tokenizer.json")
    yield from train(
        BaseStage(settings, store, tokenizer, Exporter(model)), work, loop, minutes=minutes
    )


def _values(name: str, assignments: list[str]) -> dict[str, dict[str, object]]:
    """Read `train.NAME.yaml` and lay `KEY=VALUE` over it; keys are checked by `_filled`."""
    path = presets_folder() / f"train.{name}.yaml"
    if not path.is_file():
        known = sorted(p.name.split(".")[1] for p in presets_folder().glob("train.*.yaml"))
        raise UsageError(f"there is nothing to train called {name!r}{nearest(name, known)}")
    values: dict[str, dict[str, object]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        section, _, field = key.rpartition(".")
        if not separator or section not in values:
            sections = ", ".join(values)
            raise UsageError(f"--set {assignment}: use SECTION.KEY=VALUE, sections: {sections}")
        values[section][field] = yaml.safe_load(text)
    return values


def _filled(kind: type[T], values: dict[str, object], section: str) -> T:
    """Make a settings dataclass of a section of the YAML, refusing keys that it does not have."""
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    problems = [
        Problem(key=f"{section}.{key}", reason=f"no such key{nearest(key, known)}")
        for key in values
        if key not in known
    ]
    if problems:
        raise PresetError(problems)
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return kind(**plain)


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
