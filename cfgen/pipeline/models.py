"""A model as its files are: opened, recognised and described once, then loaded or estimated."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.formats.base import Container
from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.identify.digests import cache_folder
from cfgen.checkpoint.identify.digests import digest as file_digest
from cfgen.checkpoint.identify.preset_guess import refuse_unsupported
from cfgen.checkpoint.lora.alpha import SIDECAR
from cfgen.checkpoint.lora.apply import Applied, apply_lora
from cfgen.checkpoint.lora.read import Lora, open_lora
from cfgen.checkpoint.networks.fill import build_generator, config_of, open_generator, text_len_of
from cfgen.checkpoint.networks.geometry import read_geometry
from cfgen.checkpoint.networks.model_files import ModelFiles, find_files
from cfgen.checkpoint.networks.network import Network
from cfgen.checkpoint.networks.text_encoder import (
    TextFiles,
    build_text_encoder,
    open_text_encoder,
    text_files,
)
from cfgen.checkpoint.networks.vae import build_vae, latent_sizes, open_vae
from cfgen.config.presets import locate_model
from cfgen.config.schema import ModelConfig
from cfgen.config.values import parse_lora
from cfgen.errors import CheckpointError
from cfgen.files.reading import WEIGHTS
from cfgen.hub import locate
from cfgen.model.generator import Generator, WanConfig
from cfgen.model.latent_moments import LATENT_MEAN
from cfgen.model.prompts import embeddings
from cfgen.model.text_encoder import TextEncoder
from cfgen.model.tiled import TiledDecoder
from cfgen.model.vae import SPATIAL_STRIDE
from cfgen.pipeline.cpu_offload import offload_blocks
from cfgen.pipeline.missing_files import refuse_missing
from cfgen.pipeline.offload_plan import Offload

SMALL_ENCODER = 10**9
"""Numbers of a text encoder below which it computes in float32."""

Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA on disk and how strongly it is applied."""

    path: Path
    strength: float


class OpenedModel:
    """The files of a model. Each is opened when it is first asked for, and its header read once.

    Whatever is asked for raises CheckpointError if a file is nowhere, damaged or of another kind.

    Args:
        config: names the files.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._anew = False
        self._stamps: dict[Path, Stamp] = {}

    def hash_anew(self) -> None:
        """Believe no digest that an earlier process kept: frames are added to old ones."""
        self._anew = True

    @cached_property
    def files(self) -> ModelFiles:
        """Where the parts lie; nothing is read."""
        refuse_missing(self.config)

        def given(text: str | None, what: str) -> Path | None:
            return None if text is None else locate(text, what=what)

        return find_files(
            locate_model(self.config.path),
            text_encoder=given(self.config.text_encoder, "text encoder"),
            vae=given(self.config.vae, "video autoencoder"),
            tokenizer=given(self.config.tokenizer, "tokenizer"),
        )

    @property
    def is_here(self) -> bool:
        """Whether all files but LoRAs are on the disk."""
        try:
            return bool(self.files)
        except CheckpointError:
            return False

    @cached_property
    def lora_files(self) -> list[LoraFile]:
        """The LoRAs, in the order in which they are applied.

        Raises:
            CheckpointError: One of them is nowhere.
            UsageError: One is not written as `PATH` or `PATH:strength`.
        """
        named = [parse_lora(text) for text in self.config.loras]
        return [LoraFile(locate(path, what="LoRA"), strength) for path, strength in named]

    @cached_property
    def generator(self) -> Network:
        """The generator's weights; only what a generator needs must be there."""
        refuse_missing(self.config)
        network = open_generator(locate_model(self.config.path), prefer=self.config.prefer)
        refuse_unsupported(network.file.path, metadata=network.file.metadata)
        self._note(network.file)
        return network

    @cached_property
    def geometry(self) -> WanConfig:
        """The generator's sizes."""
        weights = self.generator.file.path
        return read_geometry(self.generator.shapes, config_of(weights), weights=weights)

    @cached_property
    def vae(self) -> Network:
        """The video autoencoder's weights."""
        network = open_vae(self.files.vae)
        self._note(network.file)
        return network

    @cached_property
    def latents(self) -> tuple[int, int]:
        """Channels of a latent frame and pixels along a cell: what the autoencoder decodes.

        They stand in the header of its file, which is read whenever it is on the disk, so no preset
        need say them, nor can say them wrong. A model whose files are nowhere is planned as the
        published ones, all of Wan2.1.
        """
        return latent_sizes(self.vae) if self.is_here else (len(LATENT_MEAN), SPATIAL_STRIDE)

    @cached_property
    def text_encoder(self) -> Network:
        """The text encoder's weights."""
        network = open_text_encoder(self.files.text_encoder)
        self._note(network.file)
        return network

    @cached_property
    def text_files(self) -> TextFiles:
        """All files that an embedded prompt depends on."""
        return text_files(self.text_encoder, self.files.text_encoder, self.files.tokenizer)

    @cached_property
    def text_len(self) -> int:
        """Positions of an embedded prompt."""
        return text_len_of(self.generator.file.path)

    @cached_property
    def loras(self) -> list[tuple[Lora, float]]:
        """The LoRAs and how strongly each is applied."""
        alpha, prefer = self.config.lora_alpha, self.config.prefer
        found = [
            (open_lora(lora.path, alpha=alpha, prefer=prefer), lora.strength)
            for lora in self.lora_files
        ]
        for lora, _ in found:
            self._note(lora.file)
        return found

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of all weights that make frames, by what they are, when it was first asked for.

        Raises:
            CheckpointError: A file changed since it was opened.
        """
        found = self.digests_now()
        self._require_as_opened()
        return found

    def digests_now(self) -> dict[str, str]:
        """The same as the files are now."""
        found = {
            "generator_sha256": self._digest_of(self.files.generator, self.generator),
            "vae_sha256": self._digest_of(self.files.vae, self.vae),
        }
        if (config := config_of(self.generator.file.path)) is not None:
            found["generator_config_sha256"] = file_digest(config[0], anew=self._anew)
        if loras := self.lora_files:
            each = [f"{self._digest_of(lora.path)}:{lora.strength!r}" for lora in loras]
            beside = (lora.path.with_name(SIDECAR) for lora in loras)
            each += [file_digest(p, anew=self._anew) for p in beside if p.is_file()]
            each.append(f"alpha {self.config.lora_alpha}")
            found["loras_sha256"] = hashlib.sha256(" ".join(each).encode()).hexdigest()
        return found

    def require_unchanged(self) -> None:
        """Refuse weights that changed since their digests were taken.

        Raises:
            CheckpointError: They did.
        """
        if self.digests_now() != self.digests:
            raise self._changed()

    @property
    def text_digest(self) -> str:
        """Digest of everything that an embedded prompt depends on besides its text.

        Raises:
            CheckpointError: A file changed since it was opened.
        """
        parts = [file_digest(part, anew=self._anew) for part in self.text_files.files]
        self._require_as_opened()
        text = "".join(parts) + str(self.text_len)
        return hashlib.sha256(text.encode()).hexdigest()

    def load(
        self, *, dtype: torch.dtype, device: torch.device, offload: Offload = "none"
    ) -> LoadedModels:
        """Generator and decoder, LoRAs applied, weights placed.

        Raises:
            BackendUnavailable: The model's `matmul` is `native` and no layer can.
            CheckpointError: A file is damaged, or they do not belong together.
        """
        config, loras = self.config, self.loras
        generator = build_generator(
            self.generator,
            dtype=dtype,
            device=torch.device("cpu") if offload != "none" else device,
            expand=config.quantized == "expand",
            native=config.matmul == "native",
        )
        told = [] if generator.writer is None else ["commit passes have weights of their own"]
        for lora, strength in loras:
            applied = apply_lora(generator, lora, strength)
            if generator.writer is not None:
                apply_lora(generator.writer, lora, strength)
            told += [*lora.describe(), f"applied at {strength:g}: {_applied(applied)}"]
        vae = build_vae(
            self.vae,
            self.files.vae,
            dtype=dtype,
            device=device,
            raw_latents=config.raw_latents,
        )
        if offload != "none":
            offload_blocks(generator, device)
        return LoadedModels(generator, TiledDecoder(vae, tile=config.vae_tile), tuple(told))

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Prompts as [1, text_len, text_dim] float32 each; the encoder is freed afterwards."""
        folder = cache_folder() / "text"
        return embeddings(prompts, encoder=self.text_digest, load=self._encoder, folder=folder)

    def _encoder(self) -> TextEncoder:
        encoder = build_text_encoder(
            self.text_encoder,
            self.files.text_encoder,
            self.files.tokenizer,
            text_len=self.text_len,
            dtype=text_dtype(self.text_encoder),
        )
        self._require_as_opened()  # what it makes is kept under the digest of before
        return encoder.eval()

    def _digest_of(self, place: Path, opened: Network | None = None) -> str:
        return digest_of(place, opened, anew=self._anew)

    def _note(self, file: Container) -> None:
        """Note what files are like when they are opened."""
        self._stamps |= {path: _stamp(path) for path in file.files}

    def _require_as_opened(self) -> None:
        if any(_stamp(path) != stamp for path, stamp in self._stamps.items()):
            raise self._changed()

    def _changed(self) -> CheckpointError:
        return CheckpointError(
            f"the weights of {self.config.path} changed while they were loaded",
            "wait until they are written, then run the command again",
        )


def _stamp(path: Path) -> Stamp:
    """What the system tells of a file; its opening and its digest must be of one content."""
    try:
        facts = path.stat()
    except OSError:
        return ()
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev


def digest_of(place: Path, opened: Network | None = None, *, anew: bool = False) -> str:
    """SHA-256 of a file; of a folder or an index, of all that belongs to it."""
    if place.is_dir():
        kinds = {".json", ".model", *WEIGHTS}
        parts = sorted(path for path in place.iterdir() if path.suffix in kinds)
    elif place.name.endswith(".index.json"):
        parts = list((opened.file if opened else open_container(place)).files)
    else:
        return file_digest(place, anew=anew)
    text = "".join(f"{path.name} {file_digest(path, anew=anew)}\n" for path in parts)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """Generator and decoder of a model.

    Attributes:
        generator: With its LoRAs, and where its weights belong.
        decoder: Goes on in tiles when memory runs out.
        notes: What is worth knowing of how they were loaded, a line each.
    """

    generator: Generator
    decoder: TiledDecoder
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        generator = itertools.chain(self.generator.parameters(), self.generator.buffers())
        return sum(t.nbytes for t in itertools.chain(generator, self.decoder.parameters()))


def _applied(done: Applied) -> str:
    parts = {"merged": done.merged, "kept beside quantized weights": done.unmerged}
    parts["of biases"] = done.biases
    return ", ".join(f"{number} {what}" for what, number in parts.items() if number)


def text_dtype(network: Network) -> torch.dtype:
    """Number type that a text encoder computes in: bfloat16, as Wan's, but float32 for small ones.

    Small are those whose embeddings cost nothing in float32.
    """
    numbers = sum(math.prod(shape) for shape in network.shapes.values())
    return torch.float32 if numbers < SMALL_ENCODER else torch.bfloat16
