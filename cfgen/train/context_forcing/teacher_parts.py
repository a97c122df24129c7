"""A teacher from the files of a model and the values of its sections; and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfgen.checkpoint.formats.safetensors import write
from cfgen.checkpoint.networks.fill import load_generator, text_len_of
from cfgen.checkpoint.networks.model_files import ModelFiles, find_files
from cfgen.checkpoint.networks.text_encoder import load_text_encoder
from cfgen.checkpoint.networks.vae import load_vae
from cfgen.files.writing import json_bytes, write_file
from cfgen.model.generator import Generator, WanConfig
from cfgen.model.text_encoder import TextEncoder
from cfgen.model.vae import SPATIAL_STRIDE
from cfgen.train.context_forcing.lora import LoraSettings, merged, save_lora
from cfgen.train.context_forcing.teacher_films import ClipFilms, FilmWorld, FilmWorldSettings
from cfgen.train.context_forcing.teacher_stage import TeacherParts, TeacherStage
from cfgen.train.data.clips import Clips, ClipSettings, encode_films
from cfgen.train.export import Exporter, wan_config
from cfgen.train.film_world.latents import LatentStore
from cfgen.train.processes import device_here
from cfgen.train.recall import RecallProbe
from cfgen.train.vae_stage import VaeSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


TEACHER = "model"
"""Where in the stage's folder the teacher is written."""


def build_teacher(settings: Mapping[str, Any], start: Path, work: Path) -> TeacherStage:
    """The stage, of clips of a folder if the values have the section, else of the film world.

    Args:
        settings: an object of its class for each section of values.
        start: folder of the model that it begins as, or the file of its generator.
        work: folder of states and models.

    Raises:
        CheckpointError: a file of the model is missing, damaged or of another kind.
        UsageError: the films of a folder cannot be used, see `encode_films`.
    """
    files, cache = find_files(start), work / "latents"
    lora: LoraSettings = settings.get("teacher.lora", LoraSettings())
    generator, encoder = _load_networks(files, lora)
    export = partial(
        TeacherExporter, work / TeacherStage.name / TEACHER, generator.geometry, lora=lora
    )
    if clips := settings.get("teacher.clips"):
        films = _clip_films(files.vae, cache, clips)
        parts = TeacherParts(generator, encoder, films, export(spatial_stride=SPATIAL_STRIDE))
    else:
        world: FilmWorldSettings = settings["teacher.world"]
        size: VaeSettings = settings["vae"]
        store = LatentStore.of_file(cache, files.vae, width=size.width, height=size.height)
        parts = TeacherParts(
            generator,
            encoder,
            FilmWorld(world, store, settings["teacher"].micro_batches),
            export(spatial_stride=store.vae.spatial_stride, text_encoder=encoder),
            RecallProbe(store, settings["teacher.memory"], world.probe_films),
        )
    values, errors = settings["teacher"], settings["teacher.errors"]
    return TeacherStage(values, settings["teacher.memory"], errors, lora, parts)


def _load_networks(files: ModelFiles, lora: LoraSettings) -> tuple[Generator, TextEncoder]:
    """Generator and text encoder of a model; what stands still is as small as it may be."""
    generator = load_generator(
        files.generator,
        dtype=DTYPES[lora.base] if lora.rank else torch.float32,
        expand=True,
        untrained=True,
    )
    encoder = load_text_encoder(
        files.text_encoder,
        files.tokenizer,
        text_len=text_len_of(files.generator),
        dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )
    return generator, encoder


def _clip_films(vae: Path, cache: Path, settings: ClipSettings) -> ClipFilms:
    """Clips of a folder, encoded now unless they are in the cache."""
    encoded = encode_films(cache, load_vae(vae, device=device_here()), settings)
    return ClipFilms(Clips.of(list(encoded)), settings.batch)


@dataclass(frozen=True, slots=True)
class TeacherExporter:
    """Writes a teacher: its factors, if it has any, and the generator with them summed in.

    Attributes:
        folder: the model folder.
        geometry: sizes of the generator.
        spatial_stride: pixels along a cell of its latents.
        lora: of its factors.
        text_encoder: written beside the generator, both in int8; None: the generator alone, in
            bfloat16.
        recipe: preset that a generator of cfgen's own names.
    """

    folder: Path
    geometry: WanConfig
    spatial_stride: int
    lora: LoraSettings
    text_encoder: TextEncoder | None = None
    recipe: str = "mini-base"

    def __call__(self, weights: Mapping[str, Tensor]) -> None:
        """Write weights of the generator, by its own names.

        Raises:
            OutputRefused: a file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.lora.rank:
            save_lora(weights, self.lora, self.folder / "lora.safetensors")
            weights = merged(weights, self.lora)
        if self.text_encoder is None:
            half = {name: w.detach().to("cpu", torch.bfloat16) for name, w in weights.items()}
            write(half, self.folder / "diffusion_pytorch_model.safetensors", {})
            config = wan_config(self.geometry, self.spatial_stride)
            write_file(self.folder / "config.json", json_bytes(config, indent=1), shared=True)
            return
        text = self.text_encoder.model
        both = {f"generator.{name}": w for name, w in weights.items()}
        both |= {f"text_encoder.model.{name}": w for name, w in text.state_dict().items()}
        export = Exporter(self.folder, self.spatial_stride, self.recipe)
        export(self.geometry, text.config.to_diff_dict(), both)
