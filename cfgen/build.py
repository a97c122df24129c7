"""From a configuration to objects: the last place that sees one, and the only `match` on names."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cfgen import __version__
from cfgen.checkpoint.container import read_json
from cfgen.checkpoint.load import digest as file_digest
from cfgen.checkpoint.load import load_generator, load_text_encoder, load_vae
from cfgen.config.catalog import model_folder
from cfgen.config.schema import (
    FullMemory,
    MemoryConfig,
    RenderConfig,
    SlowFastMemory,
    WindowMemory,
    digest,
)
from cfgen.errors import CheckpointError, SetupError
from cfgen.memory.base import Table
from cfgen.memory.kv_cache import KVCache
from cfgen.memory.paged import PagedMemory, Surprise
from cfgen.memory.slow_fast import ReleaseTable, SlowFastTable
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator
from cfgen.model.prompts import Encode, embeddings
from cfgen.ops.reference import Rope
from cfgen.ops.select import build_ops
from cfgen.render.events import Loaded, Warned
from cfgen.render.ffmpeg import find_ffmpeg
from cfgen.render.plan import Plan
from cfgen.render.run import FrameSource, Render
from cfgen.render.writer import VideoWriter
from cfgen.rollout import Guidance
from cfgen.schedule import FewStepSchedule, KeyedNoise, Noise, ReferenceNoise

GENERATOR_FILE = "diffusion_pytorch_model.safetensors"
VAE_FILE = "tae.safetensors"
MOST_THREADS = 8
"""CPU threads by default, at most: what fixes the pixels should differ little between machines."""


def build_render(config: RenderConfig, plan: Plan) -> Render:
    """Build a render: the writer first, so that a missing ffmpeg is found before any model loads.

    Raises:
        CfgenError: Something that the configuration names is missing, damaged or cannot run here.
    """
    if config.output is None or config.seed is None:
        raise ValueError("a render needs an output and a seed")
    ffmpeg = find_ffmpeg()
    began = time.monotonic()
    folder = model_folder(config.model.path)
    digests = {name: file_digest(folder / name) for name in (GENERATOR_FILE, VAE_FILE)}
    writer = VideoWriter(
        config.output,
        width=plan.geometry.width,
        height=plan.geometry.height,
        fps=plan.geometry.fps,
        ffmpeg=ffmpeg,
        quality=config.encode.quality,
        metadata=_metadata(config, digests),
    )
    source = build_source(config, plan)
    backend = f"{source.memory.ops.name} on {device_of(config)}, {_dtype_words(config)}"
    loaded = Loaded(model=config.model.path, backend=backend, seconds=time.monotonic() - began)
    return Render(
        source=source, writer=writer, loaded=loaded, warnings=unknown_words(folder, config.prompt)
    )


def build_source(config: RenderConfig, plan: Plan) -> FrameSource:
    """Load a model and put together all that makes frames. Pins the threads of this process."""
    torch.set_num_threads(threads_of(config))
    device, dtype = device_of(config), dtype_of(config)
    folder = model_folder(config.model.path)
    ops = build_ops(config.backend)
    scale = config.schedule.guidance
    text = encoded(folder, [config.prompt] if scale == 1 else [config.prompt, ""])
    generator = load_generator(folder / GENERATOR_FILE, dtype=dtype, device=device)
    vae = load_vae(folder / VAE_FILE, dtype=dtype).to(device)
    geometry = plan.geometry
    if generator.geometry.in_dim != geometry.channels or vae.latent_channels != geometry.channels:
        raise CheckpointError(
            f"generator and autoencoder in {folder} have {generator.geometry.in_dim} and "
            f"{vae.latent_channels} latent channels, the plan {geometry.channels}",
            "use files that belong together",
        )
    with torch.inference_mode():
        read = {prompt: generator.condition(text[prompt].to(device)) for prompt in text}
    return FrameSource(
        generator=generator,
        memory=build_memory(config.memory, generator, plan, dtype=dtype, backend=ops.name),
        schedule=FewStepSchedule.from_timesteps(
            config.schedule.timesteps,
            shift=config.schedule.shift,
            warped=config.schedule.warp,
            renoise=config.schedule.renoise,
        ),
        noise=build_noise(config, plan),
        conditioning=read[config.prompt],
        vae=vae,
        plan=plan,
        guidance=None if scale == 1 else Guidance(read[""], scale),
    )


def build_memory(
    config: MemoryConfig, generator: Generator, plan: Plan, *, dtype: torch.dtype, backend: str
) -> PagedMemory:
    """An empty memory of a policy for a generator; `backend` is a name that `build_ops` takes."""
    sizes = generator.geometry
    grid = sizes.grid(plan.geometry.latent_height, plan.geometry.latent_width)
    tables = [build_table(config, plan.latent_frames) for _ in range(sizes.num_layers)]
    shape = (1, grid[0] * grid[1], sizes.num_heads, sizes.head_dim)
    pages = tables[0].capacity + 1  # a released table copies a page before it drops one
    pool = KVCache(sizes.num_layers, pages, shape, dtype=dtype, device=generator.device)
    return PagedMemory(tables, pool, build_ops(backend), rope=Rope(sizes.head_dim), grid=grid)


def build_table(config: MemoryConfig, latent_frames: int) -> Table[Tensor]:
    """One layer's table for a clip of `latent_frames`."""
    match config:
        case FullMemory():
            return WindowTable(latent_frames, commit_reads=config.commit_reads)
        case WindowMemory():
            return WindowTable(
                config.size,
                sink=config.sink,
                relative=config.positions == "relative",
                commit_reads=config.commit_reads,
            )
        case SlowFastMemory(variant="release"):
            return ReleaseTable(
                sink=config.sink,
                slow=config.slow,
                fast=config.fast,
                decide=Surprise(config.tau),
                commit_reads=config.commit_reads,
            )
        case SlowFastMemory():
            return SlowFastTable(
                sink=config.sink,
                slow=config.slow,
                fast=config.fast,
                decide=Surprise(config.tau),
                interval=config.interval,
                min_gap=config.min_gap,
                against="previous" if config.variant == "paper" else "admitted",
                commit_reads=config.commit_reads,
            )


def build_noise(config: RenderConfig, plan: Plan) -> Noise:
    """Where a render's noise comes from."""
    if config.seed is None:
        raise ValueError("noise needs a seed")
    match config.rng:
        case "keyed":
            return KeyedNoise(config.seed)
        case "reference":
            g = plan.geometry
            shape = (1, plan.latent_frames, g.channels, g.latent_height, g.latent_width)
            return ReferenceNoise(config.seed, shape)


def encoded(folder: Path, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Embedded prompts, [1, text_len, text_dim] float32 each; the encoder is freed afterwards."""
    parts = [folder / "text_encoder" / "config.json", folder / "text_encoder" / "model.safetensors"]
    parts += [folder / "tokenizer" / "tokenizer.json", folder / "config.json"]
    key = hashlib.sha256("".join(file_digest(part) for part in parts).encode()).hexdigest()

    def load_encoder() -> Encode:
        text_len = read_json(folder / "config.json").get("text_len", 512)
        if not isinstance(text_len, int) or text_len < 1:
            raise CheckpointError(
                f"{folder / 'config.json'}: text_len must be a whole number above 0, "
                f"got {text_len!r}",
                "restore the model folder",
            )
        encoder = load_text_encoder(
            folder / "text_encoder", folder / "tokenizer" / "tokenizer.json", text_len=text_len
        )
        return encoder.eval()

    return embeddings(prompts, encoder=key, load=load_encoder, folder=cache_folder() / "text")


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/cfgen`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfgen"


def unknown_words(folder: Path, prompt: str) -> tuple[Warned, ...]:
    """A warning if a model tells which words it knows and the prompt has others."""
    path = folder / "mini.json"
    if not path.is_file():
        return ()
    facts = read_json(path)
    known, knows = facts.get("words"), facts.get("knows")
    if not isinstance(known, list) or not isinstance(knows, str):
        raise CheckpointError(
            f"{path} must tell the model's words (a list) and what it knows (a sentence)",
            "restore the model folder",
        )
    words = re.findall(r"[^\W\d_]+", prompt.lower())
    strange = list(dict.fromkeys(word for word in words if word not in known))
    if not strange:
        return ()
    return (
        Warned(
            message=f"the model has never seen {', '.join(map(repr, strange))} and may ignore it",
            hint=f"it knows: {knows}",
        ),
    )


def device_of(config: RenderConfig) -> torch.device:
    """The device of a render.

    Raises:
        SetupError: A CUDA device is asked for and there is none.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise SetupError(
            f"device {config.device} is not there: torch sees no CUDA GPU", "use --set device=cpu"
        )
    return torch.device(config.device)


def threads_of(config: RenderConfig) -> int:
    """CPU threads of a render: what is asked for, else one a core, up to `MOST_THREADS`."""
    return config.threads or min(MOST_THREADS, os.cpu_count() or 1)


def dtype_of(config: RenderConfig) -> torch.dtype:
    """The number type of matrices: what is asked for, else bfloat16 where the device has it."""
    if config.dtype == "auto":
        native = device_of(config).type == "cuda" or (
            torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def _dtype_words(config: RenderConfig) -> str:
    return str(dtype_of(config)).removeprefix("torch.")


def _metadata(config: RenderConfig, digests: dict[str, str]) -> dict[str, str]:
    """Texts for the container and the sidecar: what is needed to make the video again."""
    return {
        "title": config.prompt,
        "prompt": config.prompt,
        "seed": str(config.seed),
        "preset": config.preset,
        "config_sha256": digest(config),
        "generator_sha256": digests[GENERATOR_FILE],
        "vae_sha256": digests[VAE_FILE],
        "cfgen_version": __version__,
        "torch_version": torch.__version__,
        "machine": platform.machine(),
        "threads": str(threads_of(config)),
        "dtype": _dtype_words(config),
    }
