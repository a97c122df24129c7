"""Option types that commands share, and the Typer apps they live in.

Values that the loader reads stay text here, so that a flag, a variable and a YAML file are judged
by the same rules and refused in the same words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from cfgen.cli.console import Console
from cfgen.config.values import RawValue


def command_app(help_text: str | None = None) -> typer.Typer:
    """Return a Typer app for one module of commands, set up like all others."""
    return typer.Typer(
        help=help_text,
        add_completion=False,
        no_args_is_help=help_text is not None,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    )


def lora_list(given: list[str] | None) -> RawValue | None:
    """What `--lora` says, as a source holds it: None without it, nothing for `none`."""
    if not given:
        return None
    return [] if given == ["none"] else list[RawValue](given)


def console_of(ctx: typer.Context) -> Console:
    """Return the console of the running command."""
    return cast(Console, ctx.obj)


Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="What the video shows; - reads it from stdin."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="The video, an .mp4. Without it, a name made from prompt and seed, here.",
    ),
]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Overwrite the output if it exists.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with this render if it was interrupted, else begin it."),
]
AllowChanged = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-changed",
        metavar="NAME",
        help="Resume although cfgen_version or ffmpeg_version is another; may be repeated.",
    ),
]
Snapshot = Annotated[
    str | None,
    typer.Option(
        "--snapshot",
        metavar="MODE",
        help="What is kept to resume with: latents and the memory (full), latents alone, from "
        "which the memory is worked out again (latents), or nothing (off). [full]",
    ),
]
DiskBudget = Annotated[
    str | None,
    typer.Option("--disk-budget", metavar="BYTES", help="Disk for snapshots of the memory. [2GB]"),
]
Clean = Annotated[
    bool, typer.Option("--clean", help="Remove the run folder once the video is finished.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and show the plan; render nothing.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="NAME", help="Preset to start from; see `cfgen presets list`. [mini]"
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="PATH",
        help="Weights of the generator: a file, a folder, or owner/name[/file] in the cache of "
        "Hugging Face.",
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="PATH[:STRENGTH]",
        help="A LoRA, such as style.safetensors:0.8; may be repeated. They stand in place of the "
        "preset's own; none takes those away.",
    ),
]
Vae = Annotated[
    str | None, typer.Option("--vae", metavar="PATH", help="The video autoencoder's weights.")
]
TextEncoder = Annotated[
    str | None,
    typer.Option("--text-encoder", metavar="PATH", help="The UMT5 encoder: a file or a folder."),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", metavar="PATH", help="Its tokenizer, where its own file holds none."
    ),
]
CommitReads = Annotated[
    str | None,
    typer.Option(
        "--commit-reads",
        metavar="WHAT",
        help="What a finished chunk is written into memory with: all of it, or the fast part.",
    ),
]
Offload = Annotated[
    str | None,
    typer.Option(
        "--offload",
        metavar="WHAT",
        help="What waits in main memory while a GPU renders: none, blocks, all, or auto, which "
        "takes what --vram makes necessary. [auto]",
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="auto, torch, triton or reference: what computes attention and the rest. [auto]",
    ),
]
KvCache = Annotated[
    str | None,
    typer.Option(
        "--kv-cache",
        metavar="HOW",
        help="How the KV cache is kept: auto (as computed), bf16, int8 (keys in 8 bits) or fp8 "
        "(keys and values in 8 bits). [auto]",
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Let torch.compile fuse what it can; begins a minute later."),
]
Vram = Annotated[
    str | None,
    typer.Option("--vram", metavar="BYTES", help="GPU memory to stay within, such as 12G."),
]
Duration = Annotated[
    str | None,
    typer.Option(
        "--duration", metavar="TIME", help="Playing time: 12.5, 30s, 2m30s, 1h5m or 1:05. [10s]"
    ),
]
Seed = Annotated[
    str | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Whole number that fixes all noise. Without it one is chosen at random and told.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="WxH", help="Frame size in pixels, one that the model was trained for."
    ),
]
Fps = Annotated[
    str | None,
    typer.Option(
        "--fps",
        metavar="RATE",
        help="Playback rate only: another rate than the model's own makes motion faster or slower.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="POLICY",
        help="What is kept of earlier chunks: full, window or slow_fast.",
    ),
]
Rng = Annotated[
    str | None,
    typer.Option(
        "--rng",
        metavar="ORDER",
        help="Noise keyed by seed, chunk and step (keyed), or in the order of the reference "
        "repositories (reference). [keyed]",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any key, such as memory.tau=0.9; may be repeated. `cfgen presets show` lists "
        "the keys.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML file with values for this run."),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object a line on stdout, the result last.")
]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Nothing but results, warnings and errors.")
]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Say more, the origin of every value included.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Keep the traceback of every error.")]
