"""`cfgen render`: one prompt, one video."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import sys
from pathlib import Path

import typer

from cfgen.cli import options
from cfgen.cli.console import Console
from cfgen.cli.naming import default_name
from cfgen.cli.plan import estimate_disk, plan_of, show_plan
from cfgen.cli.resume import go_on
from cfgen.cli.run_render import run_render, tell_result
from cfgen.config.loader import Resolved, load
from cfgen.config.schema import RenderConfig
from cfgen.config.values import RawValue
from cfgen.errors import BudgetError, UsageError
from cfgen.files.reading import read_stream
from cfgen.files.writing import disk_errors
from cfgen.pipeline.model_preset import recipe_of
from cfgen.runs.folder import is_run, require_own
from cfgen.timeline import Plan
from cfgen.units import bytes_words
from cfgen.video.output import check_output, refuse_existing, run_of, target_of

_SPARE_DISK_NBYTES = 16_000_000

app = options.command_app()


@app.command()
def render(
    ctx: typer.Context,
    prompt: options.Prompt = None,
    output: options.Output = None,
    preset: options.Preset = None,
    model: options.Model = None,
    loras: options.Loras = None,
    text_encoder: options.TextEncoder = None,
    tokenizer: options.Tokenizer = None,
    vae: options.Vae = None,
    duration: options.Duration = None,
    seed: options.Seed = None,
    size: options.Size = None,
    fps: options.Fps = None,
    memory: options.Memory = None,
    commit_reads: options.CommitReads = None,
    offload: options.Offload = None,
    vram: options.Vram = None,
    backend: options.Backend = None,
    kv_cache: options.KvCache = None,
    compiled: options.Compile = False,
    rng: options.Rng = None,
    assignments: options.Set = None,
    config_file: options.Config = None,
    overwrite: options.Yes = False,
    resume: options.Resume = False,
    allow_changed: options.AllowChanged = None,
    snapshot: options.Snapshot = None,
    disk_budget: options.DiskBudget = None,
    clean: options.Clean = False,
    dry_run: options.DryRun = False,
    json_lines: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Render a video from a prompt.

    The path of the video goes to stdout, progress to stderr. A .json file beside the video tells
    how it was made. The same command with the same seed makes the same frames again.

    \b
    Examples:
      cfgen render "a red balloon drifts over snowy hills" --duration 30s -o a.mp4
      echo "a blue boat on a calm sea" | cfgen render - --seed 7
      cfgen render "a kite over green hills" --duration 10m --dry-run
    """
    console = options.console_of(ctx)
    console.configure(json=json_lines, quiet=quiet, verbose=verbose, debug=debug)
    flags: dict[str, RawValue | None] = {
        "prompt": _prompt_text(prompt),
        "output": output,
        "preset": preset,
        "duration": duration,
        "seed": seed,
        "size": size,
        "fps": fps,
        "memory.policy": memory,
        "model.path": model,
        "model.loras": options.lora_list(loras),
        "model.text_encoder": text_encoder,
        "model.tokenizer": tokenizer,
        "model.vae": vae,
        "memory.commit_reads": commit_reads,
        "placement.offload": offload,
        "placement.vram": vram,
        "backend": backend,
        "memory.kv_cache": kv_cache,
        "compile": "true" if compiled else None,
        "rng": rng,
        "snapshot.mode": snapshot,
        "snapshot.disk_budget": disk_budget,
        "snapshot.clean": "true" if clean else None,
    }
    resolved = load(flags, assignments=assignments or (), run_file=config_file, recipe=recipe_of)
    config = _completed(resolved.config)
    assert config.output is not None
    if allow_changed and not resume:
        raise UsageError("--allow-changed goes with --resume", "add --resume, or leave it out")
    if resume and resolved.config.output is None and resolved.config.seed is None:
        raise UsageError(
            "--resume must know which render is meant",
            "name its video with -o, or give its --seed; `cfgen resume` finds the one in a folder",
        )
    if resume and is_run(run_of(config.output)) and not dry_run:
        allowed = frozenset(allow_changed or ())
        go_on(console, run_of(config.output), asked=resolved.config, allow_changed=allowed)
        return
    plan = plan_of(config)
    if not (resume and is_run(run_of(config.output))):
        check_place(config, plan, overwrite=overwrite)
    _tell_values(console, resolved, config)
    if dry_run:
        from cfgen.pipeline.memory_estimate import check
        from cfgen.pipeline.preflight import warnings_of

        check(config, plan)
        for warning in warnings_of(config):
            console.show(warning)
        show_plan(console, config, plan, every_chunk=verbose)
    else:
        finished = run_render(console, config, plan, overwrite=overwrite)
        tell_result(console, finished, config)


def _prompt_text(prompt: str | None) -> str | None:
    """Read the prompt from stdin if it is ``-``, and lay it out on one line."""
    if prompt is None:
        return None
    text = read_stream(sys.stdin) if prompt == "-" else prompt
    return " ".join(text.split())


def _completed(config: RenderConfig) -> RenderConfig:
    """Return `config` with a prompt, a seed and an output.

    Raises:
        UsageError: There is no prompt.
    """
    if not config.prompt.strip():
        raise UsageError(
            "the prompt is empty",
            hint='say what the video shows: cfgen render "a red balloon drifts over snowy hills"',
        )
    seed = secrets.randbelow(2**31) if config.seed is None else config.seed
    output = config.output or Path(default_name(config.prompt, seed))
    if output.is_symlink():  # what it leads to is meant, and stands beside its own run folder
        output = target_of(output)
    return dataclasses.replace(config, seed=seed, output=output)


def check_place(config: RenderConfig, plan: Plan, *, overwrite: bool) -> None:
    """Refuse, before anything is loaded, an output that cannot or must not be written.

    Raises:
        UsageError: The output is no .mp4.
        OutputRefused: It exists, or its folder is missing or not writable.
        BudgetError: The disk is too small.
    """
    output = config.output
    assert output is not None
    check_output(output)
    if not overwrite:
        refuse_existing(output, run_of(output))
    elif run_of(output).is_dir():
        with disk_errors(run_of(output)):
            require_own(run_of(output))
    needed = estimate_disk(config, plan).disk_nbytes + _SPARE_DISK_NBYTES
    free = shutil.disk_usage(output.absolute().parent).free
    if free < needed:
        raise BudgetError(
            f"the disk of {output} has {bytes_words(free)} free and the render needs about "
            f"{bytes_words(needed)}, of which {bytes_words(_SPARE_DISK_NBYTES)} are a reserve",
            hint="free some space, choose another disk with -o, or shorten --duration; a smaller "
            "--disk-budget or --snapshot latents keeps less",
        )


def _tell_values(console: Console, resolved: Resolved, config: RenderConfig) -> None:
    console.note(f"preset {config.preset}, {resolved.origins['preset']}")
    if resolved.config.seed is None:
        console.note(f"seed {config.seed} (chosen at random; --seed {config.seed} repeats it)")
    for key, value, origin in resolved.rows():
        console.detail(f"{key} = {value}  ({origin})")
