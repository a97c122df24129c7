"""From the names in a configuration to the files of a model, and from those to networks."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.identify.digests import cache_folder
from cfgen.checkpoint.identify.digests import digest as file_digest
from cfgen.checkpoint.lora.alpha import SIDECAR
from cfgen.checkpoint.lora.apply import Applied, apply_lora, open_lora
from cfgen.checkpoint.networks.fill import config_of, load_generator, open_generator, text_len_of
from cfgen.checkpoint.networks.geometry import read_geometry
from cfgen.checkpoint.networks.model_files import ModelFiles, find_files
from cfgen.checkpoint.networks.network import Network
from cfgen.checkpoint.networks.text_encoder import (
    find_text_encoder,
    load_text_encoder,
    open_text_encoder,
)
from cfgen.checkpoint.networks.vae import latent_sizes, load_vae, open_vae
from cfgen.config.presets import locate_model
from cfgen.config.schema import ModelConfig
from cfgen.config.values import parse_lora
from cfgen.errors import CheckpointError
from cfgen.hub import locate
from cfgen.model.generator import Generator, WanConfig
from cfgen.model.prompts import Encode, embeddings
from cfgen.model.tiled import TiledDecoder
from cfgen.model.vae import LATENT_MEAN, SPATIAL_STRIDE
from cfgen.pipeline.cpu_offload import offload_blocks
from cfgen.pipeline.missing_files import refuse_missing
from cfgen.pipeline.offload_plan import Offload

SMALL_ENCODER = 10**9
"""Numbers of a text encoder below which it computes in float32."""


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA on disk and how strongly it is applied."""

    path: Path
    strength: float


def files_of(model: ModelConfig) -> ModelFiles:
    """The files of a model; nothing is read.

    Raises:
        CheckpointError: One of them is nowhere.
    """
    refuse_missing(model)

    def given(text: str | None, what: str) -> Path | None:
        return None if text is None else locate(text, what=what)

    return find_files(
        locate_model(model.path),
        text_encoder=given(model.text_encoder, "text encoder"),
        vae=given(model.vae, "video autoencoder"),
        tokenizer=given(model.tokenizer, "tokenizer"),
    )


def geometry_of(model: ModelConfig) -> WanConfig:
    """Sizes of a model's generator; its weights are not read.

    Raises:
        CheckpointError: It is nowhere, or no Wan generator.
    """
    return sizes_in(generator_of(model))


def latents_of(model: ModelConfig) -> tuple[int, int]:
    """Channels of a model's latents and pixels along a cell: what its autoencoder decodes.

    They stand in the header of its file, which is read whenever it is on the disk, so no preset
    need say them, nor can say them wrong. A model whose files are nowhere is planned as the
    published ones, all of Wan2.1.

    Raises:
        CheckpointError: The autoencoder is damaged, or none that cfgen decodes with.
    """
    try:
        vae = files_of(model).vae
    except CheckpointError:
        return len(LATENT_MEAN), SPATIAL_STRIDE
    return latent_sizes(open_vae(vae))


def generator_of(model: ModelConfig) -> Network:
    """A model's generator as its file describes it; no weight is read.

    Raises:
        CheckpointError: It is nowhere, or no Wan generator.
    """
    refuse_missing(model)
    return open_generator(locate_model(model.path), prefer=model.prefer)


def sizes_in(network: Network) -> WanConfig:
    """Sizes of a generator that was opened."""
    weights = network.file.path
    return read_geometry(network.shapes, config_of(weights), weights=weights)


def loras_of(model: ModelConfig) -> list[LoraFile]:
    """The LoRAs of a model, in the order in which they are applied.

    Raises:
        CheckpointError: One of them is nowhere.
        UsageError: One is not written as `PATH` or `PATH:strength`.
    """
    named = [parse_lora(text) for text in model.loras]
    return [LoraFile(locate(path, what="LoRA"), strength) for path, strength in named]


def digests_of(model: ModelConfig) -> dict[str, str]:
    """SHA-256 of all weights that make frames, by what they are."""
    files = files_of(model)
    found = {
        "generator_sha256": digest_of(files.generator),
        "vae_sha256": digest_of(files.vae),
    }
    if (config := config_of(files.generator)) is not None:
        found["generator_config_sha256"] = file_digest(config[0])
    if loras := loras_of(model):
        each = [f"{digest_of(lora.path)}:{lora.strength!r}" for lora in loras]
        beside = (lora.path.with_name(SIDECAR) for lora in loras)
        each += [file_digest(path) for path in beside if path.is_file()]
        each.append(f"alpha {model.lora_alpha}")
        found["loras_sha256"] = hashlib.sha256(" ".join(each).encode()).hexdigest()
    return found


def digest_of(place: Path) -> str:
    """SHA-256 of a file; of a folder or an index, of all that belongs to it."""
    if place.is_dir():
        kinds = {".json", ".safetensors", ".gguf", ".pth", ".pt", ".bin", ".model"}
        parts = sorted(path for path in place.iterdir() if path.suffix in kinds)
    elif place.name.endswith(".index.json"):
        parts = list(open_container(place).files)
    else:
        return file_digest(place)
    text = "".join(f"{path.name} {file_digest(path)}\n" for path in parts)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """Generator and decoder of a model.

    Attributes:
        generator: With its LoRAs, and where its weights belong.
        decoder: Goes on in tiles when memory runs out.
        told: What is worth knowing of how they were loaded, a line each.
    """

    generator: Generator
    decoder: TiledDecoder
    told: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        generator = itertools.chain(self.generator.parameters(), self.generator.buffers())
        return sum(t.nbytes for t in itertools.chain(generator, self.decoder.parameters()))


def load_models(
    model: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    offload: Offload = "none",
) -> LoadedModels:
    """Generator and decoder of a model, LoRAs applied, weights placed.

    Raises:
        BackendUnavailable: The model's `matmul` is `native` and no layer can.
        CheckpointError: A file is damaged, or they do not belong together.
    """
    files = files_of(model)
    read = [
        (open_lora(lora.path, alpha=model.lora_alpha, prefer=model.prefer), lora.strength)
        for lora in loras_of(model)
    ]
    waits = torch.device("cpu") if offload != "none" else device
    generator = load_generator(
        files.generator,
        dtype=dtype,
        device=waits,
        expand=model.quantized == "expand",
        native=model.matmul == "native",
        prefer=model.prefer,
    )
    told: list[str] = []
    for lora, strength in read:
        applied = apply_lora(generator, lora, strength)
        told += [*lora.describe(), f"applied at {strength:g}: {_applied(applied)}"]
    vae = load_vae(
        files.vae,
        dtype=dtype,
        device=device,
        raw_latents=model.raw_latents,
    )
    if offload != "none":
        offload_blocks(generator, device)
    return LoadedModels(generator, TiledDecoder(vae, tile=model.vae_tile), tuple(told))


def _applied(done: Applied) -> str:
    parts = {"merged": done.merged, "kept beside quantized weights": done.unmerged}
    parts["of biases"] = done.biases
    return ", ".join(f"{number} {what}" for what, number in parts.items() if number)


def encoded(model: ModelConfig, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Embedded prompts, [1, text_len, text_dim] float32 each; the encoder is freed afterwards."""
    files = files_of(model)
    text_len = text_len_of(files.generator)

    def load_encoder() -> Encode:
        return load_text_encoder(
            files.text_encoder,
            files.tokenizer,
            text_len=text_len,
            dtype=text_dtype(open_text_encoder(files.text_encoder)),
        ).eval()

    return embeddings(
        prompts, encoder=text_digest(model), load=load_encoder, folder=cache_folder() / "text"
    )


def text_dtype(network: Network) -> torch.dtype:
    """Number type that a text encoder computes in: bfloat16, as Wan's, but float32 for small ones.

    Small are those whose embeddings cost nothing in float32.
    """
    numbers = sum(math.prod(shape) for shape in network.shapes.values())
    return torch.float32 if numbers < SMALL_ENCODER else torch.bfloat16


def text_digest(model: ModelConfig) -> str:
    """Digest of everything that an embedded prompt depends on besides its text."""
    files = files_of(model)
    parts = find_text_encoder(files.text_encoder, files.tokenizer).files
    text = "".join(file_digest(part) for part in parts) + str(text_len_of(files.generator))
    return hashlib.sha256(text.encode()).hexdigest()
