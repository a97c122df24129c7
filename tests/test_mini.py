"""The model in the box: complete, small enough to ship, and rendering what its preset says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.checkpoint.networks.vae import load_vae
from cfgen.cli.app import app
from cfgen.config.loader import load
from cfgen.config.presets import locate_model
from cfgen.model.quantized import QuantizedLinear
from cfgen.pipeline.build import build_source
from cfgen.pipeline.job import RenderJob
from cfgen.train.film_world.captions import caption, vocabulary
from cfgen.train.film_world.detect_scene import ground_of, sky_of, to_view
from cfgen.train.film_world.sampling import sample_film
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.measure import measure

MOST_NBYTES = 20_000_000


@pytest.fixture
def folder() -> Path:
    return locate_model("mini")


def test_it_is_small_enough_to_ship(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= MOST_NBYTES


def test_matrices_are_stored_in_int8_and_everything_loads_strictly(folder: Path) -> None:
    with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    generator = load_generator(folder)
    matrices = [
        f"{name}.weight"
        for name, layer in generator.named_modules()
        if isinstance(layer, QuantizedLinear)
    ]
    assert len(matrices) == generator.geometry.num_layers * 10
    assert {kinds[name] for name in matrices} == {"I8"}
    assert load_vae(folder / "tae.safetensors").latent_channels == generator.geometry.in_dim


def test_its_words_are_those_of_the_captions(folder: Path) -> None:
    facts = json.loads((folder / "mini.json").read_text(encoding="utf-8"))
    assert facts["words"] == vocabulary()


def test_the_command_of_the_readme_makes_a_film(tmp_path: Path) -> None:
    output = tmp_path / "balloon.mp4"
    prompt = "a red balloon drifts over snowy hills at sunset, the camera pans right"
    arguments = ["render", prompt, "--duration", "1.5s", "-o", str(output)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    measured = measure(find_ffmpeg(), output, decode=True)
    assert (measured.frames, measured.width, measured.height) == (24, 320, 192)


@pytest.mark.parametrize("seed", range(2))
def test_sky_and_ground_are_as_asked_for(seed: int) -> None:
    """The least that a trained model shows; tests/bench/film_world.py measures all of it."""
    film = sample_film(seed, chunks=1, held_out=True)
    prompt = caption(film, 0, seed, complete=True)
    config = load({"prompt": prompt, "duration": "0.5s", "seed": str(seed)}).config
    frames = np.concatenate([made for _, _, made in build_source(RenderJob(config)).chunks()])
    views = to_view(frames)
    sky, ground = film.shots[0].sky, film.places[0].ground
    assert (sky_of(views), ground_of(views, sky)) == (sky, ground)
