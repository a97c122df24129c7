"""A model whose latent cells are 16 pixels wide: planned, rendered, decoded in tiles and resumed.

Wan2.1's are 8; what a render is made with tells which, in the header of its autoencoder.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cfgen.config.loader import load
from cfgen.config.schema import RenderConfig
from cfgen.errors import CfgenError
from cfgen.model.tiled import SMALLEST
from cfgen.model.vae import TinyAutoencoder
from cfgen.pipeline.build import build_source
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.memory_estimate import estimate_memory
from cfgen.pipeline.models import OpenedModel
from cfgen.runs.folder import RunFolder
from cfgen.runs.journal import ChunkLine
from cfgen.train.export import Exporter
from cfgen.train.film_world.latents import LatentStore
from cfgen.train.film_world.semantics import SEMANTIC_CHANNELS
from cfgen.train.flow_matching_settings import FlowMatchingSettings
from cfgen.train.flow_matching_stage import FlowMatchingStage
from cfgen.train.tokenizer_stage import train_tokenizer
from cfgen.train.training_memory import MemorySettings
from cfgen.train.vae_stage import VaeSettings, VaeStage
from tests.render.film import Film

PROMPT = "a red balloon drifts over snowy hills at sunset"
SETTINGS = ("memory.policy=window", "memory.size=6", "schedule.timesteps=[1000]")


def autoencoder(folder: Path, channels: int, patch: int) -> VaeStage:
    """Write an autoencoder of random weights."""
    settings = VaeSettings(
        texture_channels=channels - SEMANTIC_CHANNELS,
        encoder_width=8,
        decoder_widths=(16, 8, 8, 8),
        patch_size=patch,
        crop=(32, 32),
        frames=5,
        films=1,
        crops_per_film=1,
    )
    stage = VaeStage(settings, folder)
    with torch.no_grad():  # training starts from grey
        stage.vae.get_parameter("decoder.22.weight").mul_(10)
    stage.export(dict(stage.modules.named_parameters()))
    return stage


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random weights: 32 latent channels, cells of 16 pixels."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    tokenizer = train_tokenizer(folder, captions=300)
    store = LatentStore(folder.parent / "latents", autoencoder(folder, 32, 2).vae)
    sizes = FlowMatchingSettings(
        dim=24, ffn_dim=32, num_heads=2, num_layers=2, text_dim=16, text_layers=1, text_ffn=16
    )
    exporter = Exporter(folder, store.vae.spatial_stride)
    base = FlowMatchingStage(sizes, MemorySettings(), store, tokenizer, exporter)
    with torch.no_grad():
        for parameter in base.modules.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    base.export(dict(base.modules.named_parameters()))
    return folder


@pytest.fixture
def settings(tiny_settings: list[str], wide_model: Path) -> list[str]:
    own = [f"model.path={wide_model}", "model.sizes=[320x192, 96x64]"]
    return [*tiny_settings, *own, *SETTINGS]


def config_of(settings: list[str], *more: str) -> RenderConfig:
    values = {"prompt": PROMPT, "seed": "3", "output": "unused.mp4", "duration": "1s"}
    return load(values, assignments=[*settings, *more]).config


def test_the_plan_is_that_of_the_autoencoder(settings: list[str], tiny_settings: list[str]) -> None:
    wide = RenderJob(config_of(settings)).plan.geometry
    assert (wide.channels, wide.spatial_stride) == (32, 16)
    assert (wide.latent_width, wide.latent_height) == (20, 12)
    narrow = RenderJob(config_of(tiny_settings)).plan.geometry
    assert (narrow.channels, narrow.spatial_stride) == (16, 8)


def test_a_model_that_is_nowhere_is_planned_as_the_published_ones() -> None:
    config = load({"preset": "longlive", "prompt": PROMPT, "duration": "5s"}).config
    geometry = RenderJob(config).plan.geometry
    assert (geometry.channels, geometry.spatial_stride) == (16, 8)


def test_pictures_have_the_size_that_was_asked_for(settings: list[str]) -> None:
    config = config_of(settings, "size=96x64")
    source = build_source(RenderJob(config))
    frames = [frames for _, _, frames in source.chunks()]
    assert sum(map(len, frames)) == 16
    assert frames[0].shape[1:] == (64, 96, 3)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("tile", [None, SMALLEST])
def test_a_render_goes_on_to_the_same_file(
    settings: list[str], tmp_path: Path, tile: int | None
) -> None:
    tiled = [] if tile is None else [f"model.vae_tile={tile}"]
    whole, cut = (Film(tmp_path / name, [*settings, *tiled]) for name in ("whole", "cut"))
    expected = whole.whole()
    cut.until(5)
    cut.go_on()
    assert cut.output.read_bytes() == expected
    lines = RunFolder(cut.run).journal.of(ChunkLine)
    assert [line.tile for line in lines] == [tile or 0] * 8


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "fewer channels": (
        lambda folder: autoencoder(folder, 16, 2),
        "320x192",
        "the generator makes latents of 32 channels, and the autoencoder reads 16",
    ),
    "cells of 8 pixels": (
        lambda folder: autoencoder(folder, 32, 1),
        "320x192",
        "a cell of the generator's latents is 16 pixels wide, and one of the autoencoder's 8",
    ),
    "a generator that says cells of 8 pixels": (
        lambda folder: said(folder, [4, 8, 8]),
        "320x192",
        "a cell of the generator's latents is 8 pixels wide, and one of the autoencoder's 16",
    ),
    "cells of no sense": (
        lambda folder: said(folder, [8, 16]),
        "320x192",
        r"vae_stride must be \[4, N, N\] with pixels N, got \[8, 16\]",
    ),
    "a size of half a cell": (
        lambda folder: None,
        "328x192",
        "width must be a positive multiple of 16, got 328",
    ),
    "a size of half a patch": (
        lambda folder: None,
        "336x192",
        "must be a multiple of 32 pixels wide and of 32 high",
    ),
}


def said(folder: Path, stride: list[int]) -> None:
    """Change what a generator says of its latents."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vae_stride": stride}))


@pytest.mark.parametrize("case", REFUSED)
def test_parts_of_different_strides_are_refused_before_weights_are_read(
    case: str,
    tiny_settings: list[str],
    wide_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil, size, sentence = REFUSED[case]
    folder = tmp_path / "model"
    shutil.copytree(wide_model, folder)
    spoil(folder)
    monkeypatch.setattr(OpenedModel, "load", None)
    monkeypatch.setattr(OpenedModel, "embed", None)
    settings = [*tiny_settings, f"model.path={folder}", f"model.sizes=[{size}]", *SETTINGS]
    config = config_of(settings)
    with pytest.raises(CfgenError) as refused:
        build_source(RenderJob(config))
    assert re.search(sentence, str(refused.value))


def test_an_autoencoder_of_wan21s_channels_in_patches_is_none_for_its_generators(
    tiny_settings: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    """Wan2.1's generators say no stride; it is known."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["vae_stride"]
    (folder / "config.json").write_text(json.dumps(config))
    autoencoder(folder, 16, 2)
    settings = [*tiny_settings, f"model.path={folder}", "model.sizes=[96x64]"]
    told = "latents is 8 pixels wide, and one of the autoencoder's 16"
    with pytest.raises(CfgenError, match=told):
        build_source(RenderJob(config_of(settings)))


def test_maps_of_a_point_take_less_than_those_of_a_pixel(
    settings: list[str], wide_model: Path
) -> None:
    """A decoder in patches of two keeps its widest maps for a quarter of the pixels."""
    config = config_of(settings)
    vae = TinyAutoencoder(32, 8, (16, 8, 8, 8))
    widest = vae.decoder[-1].weight.shape[1]
    assert estimate_memory(RenderJob(config)).decode < 12 * 320 * 192 * widest * 5 * 4 / 3
