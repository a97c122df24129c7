"""Option types that commands share, and the Typer apps they live in.

Values that the loader reads stay text here, so that a flag, a variable and a YAML file are judged
by the same rules and refused in the same words.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from cfgen.cli import completion
from cfgen.cli.command import FILM, MODEL, OUTPUT, RARE, RESUME, SPEED
from cfgen.cli.console import Console
from cfgen.config.keys import FLAGS
from cfgen.config.loader import Resolved, load
from cfgen.config.values import RawValue
from cfgen.pipeline.model_preset import recipe_of
from cfgen.video.formats import ENDINGS

_KEYS = {flag: key for key, flag in FLAGS.items()}


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


def takes(*flags: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command flags, in the order of its help.

    It is called with those that are among its parameters; the others are read from its context, as
    `console_of` and `resolved_of` do.

    Args:
        flags: Option types of this module.
    """
    added = [_parameter(flag) for flag in flags]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(**given: object) -> None:
            command(**{name: given[name] for name in own.parameters})

        names = {parameter.name for parameter in added}
        kept = [each for name, each in own.parameters.items() if name not in names]
        vars(run)["__signature__"] = own.replace(parameters=[*kept, *added])
        return run

    return give


def _parameter(flag: Any) -> inspect.Parameter:
    """A flag as a parameter of a command, called as its long name: `--set` is `set`."""
    kind, option = get_args(flag)
    name = (option.default, *option.param_decls)[-1].removeprefix("--").replace("-", "_")
    return inspect.Parameter(
        f"{name}_" if iskeyword(name) else name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if kind is bool else None,
        annotation=flag,
    )


def console_of(ctx: typer.Context) -> Console:
    """The console of the running command, in the form that its flags ask for."""
    console = cast(Console, ctx.obj)
    forms = ("json", "quiet", "verbose", "debug")
    console.configure(**{name: bool(ctx.params.get(name)) for name in forms})
    return console


def resolved_of(ctx: typer.Context, prompt: str | None = None) -> Resolved:
    """What the flags of the running command, presets and files make of a render.

    Args:
        ctx: That of a command which takes `PLANNED`.
        prompt: What the film shows, if the command is told.

    Raises:
        PresetError, UsageError: A value cannot be used.
    """
    given = {
        param.opts[-1]: ctx.params[str(param.name)] for param in ctx.command.params if param.name
    }
    given["PROMPT"] = prompt
    flags = {key: _raw(given[flag]) for key, flag in FLAGS.items() if flag in given}
    assignments, file = ctx.params["set"] or (), ctx.params["config"]
    run_file = None if file is None else Path(file)
    return load(flags, assignments=assignments, run_file=run_file, recipe=recipe_of)


def _raw(given: Any) -> RawValue | None:
    """What a flag was given, as a source holds it; None if it was not."""
    if isinstance(given, bool):
        return "true" if given else None
    return lora_list(list(given)) if isinstance(given, list | tuple) else given


def option(flags: str, metavar: str | None, panel: str, about: str, **more: Any) -> Any:
    """An option of a command, in a panel of its help."""
    names = flags.split(", ")
    return typer.Option(*names, metavar=metavar, help=about, rich_help_panel=panel, **more)


def _switch(flags: str, panel: str, about: str) -> Any:
    return Annotated[bool, _keyed(flags, None, panel, about)]


def _value(
    flags: str,
    metavar: str,
    panel: str,
    about: str,
    *,
    kind: Any = str | None,
    default: str = "",
    offered: Callable[..., object] | None = None,
) -> Any:
    kinds: Any = Annotated
    return kinds[kind, _keyed(flags, metavar, panel, about, default, autocompletion=offered)]


def _keyed(
    flags: str, metavar: str | None, panel: str, about: str, default: str = "", **more: Any
) -> Any:
    """An option whose help tells its default and the key that sets the same value."""
    key = _KEYS.get(flags.rpartition(", ")[2])
    facts = [f"default: {default}"] if default else []
    facts += [f"key: {key}"] if key else []
    words = f"{about}  [{'; '.join(facts)}]" if facts else about
    return option(flags, metavar, panel, words, **more)


Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT", help="What the video shows, in quotes; - reads it from stdin."
    ),
]
Duration = _value(
    "--duration", "TIME", FILM, "Playing time: 12.5, 30s, 2m30s, 1h5m or 1:05.", default="10s"
)
Shots = _value(
    "--shot",
    "SHOT",
    FILM,
    "A shot of the film, '8s: a red kite' or '6s cut: a blue boat'; may be repeated, instead "
    "of PROMPT and --duration. What a shot begins with: continue, recache, flush, cut or fresh.",
    kind=list[str] | None,
)
Seed = _value(
    "--seed",
    "N",
    FILM,
    "A whole number that fixes all noise. Without it, cfgen chooses one at random and tells which.",
)
Seeds = _value(
    "--seeds",
    "N",
    FILM,
    "Several films of the prompt as one batch, with a contact sheet to choose from: a number of "
    "seeds, counted up from --seed or 1, or a list such as 1,7,9.",
)
Size = _value("--size", "WxH", FILM, "Frame size in pixels, one that the model was trained for.")
Fps = _value(
    "--fps",
    "RATE",
    FILM,
    "Playback rate. Another rate than the model's own makes motion faster or slower.",
)
Image = _value("--image", "FILE", FILM, "A picture that the video begins with: its first frame.")
LastImage = _value(
    "--last-image",
    "FILE",
    FILM,
    "A picture that the video ends with, for presets that make films from their end, as "
    "framepack-inverted.",
)
Video = _value("--video", "FILE", FILM, "A film that the video goes on from.")
VideoFrom = _value("--from", "TIME", FILM, "Where its past begins in it.", default="its start")
VideoTo = _value("--to", "TIME", FILM, "Where the video goes on from it.", default="its end")
KeepInput = _switch("--keep-input", FILM, "Show that part first, with sound; --duration counts it.")
Audio = _value("--audio", "FILE", FILM, "A file with sound, which is the video's.")
AudioOffset = _value(
    "--audio-offset", "TIME", FILM, "Where in it the sound begins.", default="its start"
)
AudioLoop = _switch("--audio-loop", FILM, "Repeat it if it ends before the video does.")
AudioFade = _value("--audio-fade", "TIME", FILM, "Fade it out in that time at its end.")
_FITS = "Other proportions of the picture or film: cut (crop), or filled with black (pad)."
FitOption = _value(
    "--fit", "HOW", FILM, _FITS, default="crop", offered=completion.values_of("begin.fit")
)
Config = _value("--config", "FILE", FILM, "A YAML file with values for this run.", kind=Path | None)
Set = _value(
    "--set",
    "KEY=VALUE",
    FILM,
    "Set any key, such as memory.tau=0.9; may be repeated. `cfgen presets keys` lists the keys.",
    kind=list[str] | None,
    offered=completion.assignments,
)
Preset = _value(
    "--preset",
    "NAME",
    MODEL,
    "The preset to start from; `cfgen presets list` lists them.",
    default="mini",
    offered=completion.presets,
)
Model = _value(
    "-m, --model",
    "PATH",
    MODEL,
    "Weights of the generator: a file, a folder, or owner/name[/file] in the cache of "
    "Hugging Face.",
    offered=completion.models,
)
Loras = _value(
    "--lora",
    "PATH[:STRENGTH]",
    MODEL,
    "A LoRA, such as style.safetensors:0.8; may be repeated. These replace the preset's "
    "own LoRAs; none removes them.",
    kind=list[str] | None,
    offered=completion.models,
)
TextEncoder = _value(
    "--text-encoder",
    "PATH",
    MODEL,
    "The UMT5 text encoder: a file or a folder.",
    offered=completion.models,
)
Tokenizer = _value(
    "--tokenizer",
    "PATH",
    MODEL,
    "The text encoder's tokenizer, if its own file holds none.",
    offered=completion.models,
)
Vae = _value(
    "--vae", "PATH", MODEL, "Weights of the video autoencoder (VAE).", offered=completion.models
)
Memory = _value(
    "--memory",
    "POLICY",
    SPEED,
    "What the model keeps of earlier chunks: full, window, recency, relax, slow_fast or "
    "compressed.",
    offered=completion.values_of("memory.policy"),
)
KvCache = _value(
    "--kv-cache",
    "HOW",
    SPEED,
    "How the KV cache is stored: auto (as computed), bf16, int8 (keys in 8 bits) or fp8 "
    "(keys and values in 8 bits).",
    default="auto",
    offered=completion.values_of("memory.kv_cache"),
)
Backend = _value(
    "--backend",
    "NAME",
    SPEED,
    "What computes attention and the rest: auto, torch, triton or reference.",
    default="auto",
    offered=completion.values_of("backend"),
)
Vram = _value("--vram", "BYTES", SPEED, "GPU memory to stay within, such as 12G.")
Offload = _value(
    "--offload",
    "WHAT",
    SPEED,
    "What waits in main memory while a GPU renders: none, blocks, all, or auto (as "
    "little as --vram allows).",
    default="auto",
    offered=completion.values_of("placement.offload"),
)
Parallel = _value(
    "--parallel",
    "N",
    SPEED,
    "Render the film with N GPUs, a process each, which share out its tokens and attention heads; "
    "on a CPU, with N processes.",
    default="1",
)
Resume = _switch("--resume", RESUME, "Go on with this render if it was interrupted, else begin it.")
Snapshot = _value(
    "--snapshot",
    "MODE",
    RESUME,
    "What is kept so that the render can be resumed: full (latents and memory), latents "
    "(the memory is worked out again from them) or off (nothing).",
    default="full",
    offered=completion.values_of("snapshot.mode"),
)
DiskBudget = _value(
    "--disk-budget", "BYTES", RESUME, "Disk space for snapshots of the memory.", default="2GB"
)
Clean = _switch("--clean", RESUME, "Remove the run folder once the video is finished.")
Preview = _switch(
    "--preview",
    OUTPUT,
    "Keep preview.mp4, which plays while it grows, and its newest frame, preview.jpg, in the run "
    "folder. Terminals with sixel or kitty graphics show the frame, with `pip install "
    "cfgen[preview]`.",
)
Output = _value(
    "-o, --output",
    "FILE",
    OUTPUT,
    f"The video, an {ENDINGS}. Without it, the name is made from prompt and seed, in this folder.",
)
Format = _value(
    "--format",
    "KIND",
    OUTPUT,
    "The kind of file: mp4, mkv, webm, mov, gif, or png: a folder with a picture a frame.",
    default="that of the output's name, or mp4",
    offered=completion.values_of("encode.format"),
)
CodecOption = _value(
    "--codec",
    "NAME",
    OUTPUT,
    "How frames are coded: h264, h265, av1, vp9, prores or ffv1.",
    default="vp9 in webm, else h264",
    offered=completion.values_of("encode.codec"),
)
Quality = _value(
    "--quality",
    "Q",
    OUTPUT,
    "draft, good or best, or a CRF of the codec, such as 20: less is better, and larger.",
    default="good",
    offered=completion.values_of("encode.quality"),
)
Bits = _value(
    "--bits",
    "N",
    OUTPUT,
    "Bits of a sample in the file, 8, 10, or 16 in png, rounded from what the decoder makes.",
    default="10 for prores, else 8",
)
Interpolate = _value(
    "--interpolate",
    "RATE",
    OUTPUT,
    "Frames a second of the file: ffmpeg's minterpolate works out frames between those that are "
    "rendered, at the end, in 8 bits. --fps alone never does.",
)
Yes = _switch("-y, --yes", OUTPUT, "Overwrite the output if it exists.")
DryRun = _switch("--dry-run", OUTPUT, "Check everything and show the plan; render nothing.")
Json = Annotated[
    bool,
    option("--json", None, OUTPUT, "Print one JSON object per line to stdout, the result last."),
]
Quiet = Annotated[
    bool, option("-q, --quiet", None, OUTPUT, "Print only results, warnings and errors.")
]
Verbose = _switch("-v, --verbose", OUTPUT, "Print more, such as where every value comes from.")
Rng = _value(
    "--rng",
    "ORDER",
    RARE,
    "How noise is drawn: keyed (by seed, chunk and step) or reference (in the order of "
    "the published code).",
    default="keyed",
    offered=completion.values_of("rng"),
)
CommitReads = _value(
    "--commit-reads",
    "WHAT",
    RARE,
    "What a finished chunk attends to while it is written into memory: all of it; fast, "
    "its newest part; or newest:9, the newest 9 latent frames.",
    offered=completion.values_of("memory.commit_reads"),
)
Compile = _switch(
    "--compile", RARE, "Let torch.compile fuse what it can; the render begins a minute later."
)
AllowChanged = _value(
    "--allow-changed",
    "NAME",
    RARE,
    "Resume although cfgen_version or ffmpeg_version has changed; may be repeated.",
    kind=list[str] | None,
    offered=completion.harmless,
)
Debug = Annotated[bool, option("--debug", None, RARE, "Show the traceback of every error.")]

_MODEL = (Preset, Model, Loras, TextEncoder, Tokenizer, Vae)
_BEGIN = (Image, Video, VideoFrom, VideoTo, KeepInput, FitOption, LastImage)
_SHAPE = (Size, Fps, Memory, CommitReads, Offload, Vram, Parallel, Backend, KvCache)
_FILE = (Format, CodecOption, Quality, Bits, Interpolate)
_RUN = (*_FILE, Yes, Preview, Resume, AllowChanged, Snapshot, DiskBudget, Clean, DryRun)

PLANNED = (*_MODEL, Duration, Shots, *_BEGIN, *_SHAPE, Set, Config)
"""Flags of what a plan depends on."""

_AUDIO = (Audio, AudioOffset, AudioLoop, AudioFade)
_WHAT = (Duration, Shots, Seed, Seeds, *_BEGIN, *_AUDIO)
RENDERED = (Output, *_MODEL, *_WHAT, *_SHAPE, Compile, Rng, Set, Config, *_RUN)
"""Flags of a render."""

DECODED = (Vae, *_AUDIO, *_FILE, Yes, AllowChanged)
"""Flags of what is made of latents."""

SHOWN = (Json, Quiet, Verbose, Debug)
"""Flags of how a command shows what it does."""
