"""From a configuration to objects: the last place that sees one, and the only `match` on names."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

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
    to_mapping,
)
from cfgen.errors import BudgetError, CheckpointError, SetupError
from cfgen.fingerprint import arithmetic, processor, prompt_digest, weights_and_versions
from cfgen.memory.base import Table
from cfgen.memory.kv_cache import KVCache
from cfgen.memory.paged import PagedMemory, Surprise
from cfgen.memory.slow_fast import ReleaseTable, SlowFastTable
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Conditioning, Generator
from cfgen.model.prompts import Encode, embeddings
from cfgen.model.vae import TinyAutoencoder
from cfgen.ops.reference import Rope
from cfgen.ops.select import build_ops
from cfgen.render.events import Loaded, Warned
from cfgen.render.ffmpeg import find_ffmpeg
from cfgen.render.folder import RunRecord
from cfgen.render.output import run_of
from cfgen.render.plan import Plan
from cfgen.render.run import Render
from cfgen.render.source import FrameSource
from cfgen.render.writer import VideoWriter
from cfgen.rollout import Guidance
from cfgen.schedule import FewStepSchedule, KeyedNoise, Noise, ReferenceNoise

GENERATOR_FILE = "diffusion_pytorch_model.safetensors"
VAE_FILE = "tae.safetensors"
MOST_THREADS = 8
"""CPU threads by default, at most: what fixes the pixels should differ little between machines."""


@dataclass
class Models:
    """The generator and decoder that were loaded last; a batch renders many clips with them."""

    key: tuple[object, ...] = ()
    loaded: tuple[Generator, TinyAutoencoder] | None = None

    def load(
        self, folder: Path, *, dtype: torch.dtype, device: torch.device
    ) -> tuple[Generator, TinyAutoencoder]:
        """Those of a model folder, read again only if another was asked for before."""
        files = (folder / GENERATOR_FILE, folder / VAE_FILE)
        key = (dtype, device, *map(file_digest, files))
        if self.loaded is None or self.key != key:
            self.loaded = None  # both at once may be more than fits
            generator = load_generator(files[0], dtype=dtype, device=device)
            vae = load_vae(files[1], dtype=dtype).to(device)
            self.key, self.loaded = key, (generator, vae)
        return self.loaded


def build_render(
    config: RenderConfig, plan: Plan, *, overwrite: bool = False, models: Models | None = None
) -> Render:
    """Build a render: the writer first, so that a missing ffmpeg is found before any model loads.

    Args:
        config: What to render.
        plan: Its plan.
        overwrite: Whether the video may replace a file.
        models: Where loaded models are kept from one render to the next.

    Raises:
        CfgenError: Something that the configuration names is missing, damaged or cannot run here.
    """
    ffmpeg = find_ffmpeg()
    began = time.monotonic()
    recorded = settled(config)
    if config.output is None or config.seed is None:
        raise ValueError("a render needs an output and a seed")
    folder = model_folder(config.model.path)
    facts = weights_and_versions(folder / GENERATOR_FILE, folder / VAE_FILE)
    path = run_of(config.output)
    writer = VideoWriter(
        config.output,
        width=plan.geometry.width,
        height=plan.geometry.height,
        fps=plan.geometry.fps,
        ffmpeg=ffmpeg,
        quality=config.encode.quality,
        metadata={**_words(recorded), **facts},
        parts=path / "segments",
    )
    source = build_source(config, plan, models)
    backend = f"{source.memory.ops.name} on {device_of(config)}, {_dtype_words(config)}"
    return Render(
        source=source,
        writer=writer,
        path=path,
        record=RunRecord(
            output=config.output.name,
            overwrite=overwrite,
            config=to_mapping(recorded),
            fingerprint={
                **facts,
                "text_sha256": _text_digest(folder),
                "prompt_sha256": prompt_digest(source.conditioning, source.guidance),
                "processor": processor(device_of(config)),
                "arithmetic": arithmetic(device_of(config), dtype_of(config)),
                "backend": source.memory.ops.name,
                "ffmpeg_version": ffmpeg.version,
            },
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        mode=config.snapshot.mode,
        budget_nbytes=config.snapshot.disk_budget,
        clean=config.snapshot.clean,
        loaded=Loaded(model=config.model.path, backend=backend, seconds=time.monotonic() - began),
        warnings=unknown_words(folder, config.prompt),
    )


def build_source(config: RenderConfig, plan: Plan, models: Models | None = None) -> FrameSource:
    """Load a model and put together all that makes frames. Pins the threads of this process.

    Raises:
        CfgenError: The model is missing, damaged or of other sizes, or the memory does not fit.
    """
    torch.set_num_threads(threads_of(config))
    device, dtype = device_of(config), dtype_of(config)
    folder = model_folder(config.model.path)
    ops = build_ops(config.backend)
    text = encoded(folder, prompts_of(config))  # first: the encoder is freed before the model comes
    generator, vae = (models or Models()).load(folder, dtype=dtype, device=device)
    geometry = plan.geometry
    if generator.geometry.in_dim != geometry.channels or vae.latent_channels != geometry.channels:
        raise CheckpointError(
            f"generator and autoencoder in {folder} have {generator.geometry.in_dim} and "
            f"{vae.latent_channels} latent channels, the plan {geometry.channels}",
            "use files that belong together",
        )
    conditioning, guidance = read_prompt(config, generator, text)
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
        conditioning=conditioning,
        vae=vae,
        plan=plan,
        guidance=guidance,
    )


def prompts_of(config: RenderConfig) -> list[str]:
    """What of a render must be encoded: its prompt, and the empty one for guidance."""
    return [config.prompt] if config.schedule.guidance == 1 else [config.prompt, ""]


def read_prompt(
    config: RenderConfig, generator: Generator, text: Mapping[str, Tensor] | None = None
) -> tuple[Conditioning, Guidance | None]:
    """A render's prompt as the layers of a generator read it, and without it for guidance.

    Args:
        config: The render.
        generator: Its generator.
        text: What `encoded` gives; worked out if None.
    """
    text = text or encoded(model_folder(config.model.path), prompts_of(config))
    with torch.inference_mode():
        read = {p: generator.condition(text[p].to(generator.device)) for p in prompts_of(config)}
    scale = config.schedule.guidance
    return read[config.prompt], None if scale == 1 else Guidance(read[""], scale)


def build_memory(
    config: MemoryConfig, generator: Generator, plan: Plan, *, dtype: torch.dtype, backend: str
) -> PagedMemory:
    """An empty memory of a policy for a generator; `backend` is a name that `build_ops` takes.

    Raises:
        BudgetError: It is larger than what is free.
    """
    sizes = generator.geometry
    grid = sizes.grid(plan.geometry.latent_height, plan.geometry.latent_width)
    tables = [build_table(config, plan.latent_frames) for _ in range(sizes.num_layers)]
    shape = (1, grid[0] * grid[1], sizes.num_heads, sizes.head_dim)
    pages = tables[0].capacity + 1  # a released table copies a page before it drops one
    needed = 2 * sizes.num_layers * pages * math.prod(shape) * dtype.itemsize
    _require_memory(needed, generator.device)
    pool = KVCache(sizes.num_layers, pages, shape, dtype=dtype, device=generator.device)
    return PagedMemory(tables, pool, build_ops(backend), rope=Rope(sizes.head_dim), grid=grid)


def _require_memory(needed: int, device: torch.device) -> None:
    """Refuse a KV cache that does not fit, while nothing is lost by it.

    Raises:
        BudgetError: It is larger than what is free.
    """
    if device.type == "cuda":
        free, place = torch.cuda.mem_get_info(device)[0], str(device)
    else:
        free, place = psutil.virtual_memory().available, "this machine"
    if needed > free:
        raise BudgetError(
            f"the KV cache takes {needed / 1e6:.1f} MB and {place} has {free / 1e6:.1f} MB free",
            "choose --memory slow_fast or window, whose cache does not grow with the clip, or make "
            "the memory's sizes or --duration smaller",
        )


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
            fresh = config.schedule.renoise == "fresh"
            draws = len(config.schedule.timesteps) - 1 if fresh else 0
            return ReferenceNoise(config.seed, shape, draws=draws)


def encoded(folder: Path, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Embedded prompts, [1, text_len, text_dim] float32 each; the encoder is freed afterwards."""
    key = _text_digest(folder)

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


def _text_digest(folder: Path) -> str:
    """Digest of everything that an embedded prompt depends on besides its text."""
    parts = [folder / "text_encoder" / "config.json", folder / "text_encoder" / "model.safetensors"]
    parts += [folder / "tokenizer" / "tokenizer.json", folder / "config.json"]
    return hashlib.sha256("".join(file_digest(part) for part in parts).encode()).hexdigest()


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


def settled(config: RenderConfig) -> RenderConfig:
    """The configuration with what `auto` and None mean on this machine, its device by kind."""
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16" if dtype_of(config) is torch.bfloat16 else "float32"
    )
    kind = device_of(config).type
    return dataclasses.replace(config, device=kind, dtype=dtype, threads=threads_of(config))


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


def _words(config: RenderConfig) -> dict[str, str]:
    """What the video is, for the container and the sidecar."""
    return {
        "title": config.prompt,
        "prompt": config.prompt,
        "seed": str(config.seed),
        "preset": config.preset,
        "config_sha256": digest(config),
        "threads": str(config.threads),
        "dtype": config.dtype,
    }
