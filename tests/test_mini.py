"""The models in the box: complete, small enough to ship, rendering what their presets say."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
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

MOST_NBYTES = 32_000_000
NAMES = ("mini", "mini-base")
PATCHES = {"mini": (), "mini-base": (2, 4)}
"""Larger patches that each has kernels for: no student is taught under FAR or FramePack."""


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return locate_model(request.param)


def test_they_are_small_enough_to_ship() -> None:
    files = [path for name in NAMES for path in locate_model(name).rglob("*")]
    assert sum(path.stat().st_size for path in files) <= MOST_NBYTES


def test_each_is_named_by_its_own_preset_and_only_the_generators_differ() -> None:
    found = {name: locate_model(name) for name in NAMES}
    for name, at in found.items():
        with safe_open(at / "diffusion_pytorch_model.safetensors", "pt") as file:
            assert file.metadata()["cfgen.recipe"] == name
    files = {name: {f.relative_to(at) for f in at.rglob("*.*")} for name, at in found.items()}
    assert files["mini"] == files["mini-base"]
    differ = {
        str(file)
        for file in files["mini"]
        if (found["mini"] / file).read_bytes() != (found["mini-base"] / file).read_bytes()
    }
    assert differ == {"diffusion_pytorch_model.safetensors"}


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
    assert generator.geometry.larger_patches == PATCHES[folder.name]
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


def test_a_known_prompt_is_rendered_without_the_compiler_of_torch(tmp_path: Path) -> None:
    """To import it takes a second; transformers does, which encodes prompts that are new."""
    arguments = ["-X", "importtime", "-m", "cfgen", "render", "a red balloon", "--duration", "1s"]
    command = [sys.executable, *arguments, "-o", "balloon.mp4"]
    run = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True)
    run(command)
    told = run([*command, "-y"])
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert "cfgen.model.generator" in imported
    assert "torch._dynamo" not in imported


@pytest.mark.parametrize(("preset", "seed"), [("mini", 0), ("mini", 1), ("mini-base", 0)])
def test_sky_and_ground_are_as_asked_for(preset: str, seed: int) -> None:
    """The least that a trained model shows; tests/bench/film_world.py measures all of it."""
    film = sample_film(seed, chunks=1, held_out=True)
    prompt = caption(film, 0, seed, complete=True)
    flags = {"preset": preset, "prompt": prompt, "duration": "0.5s", "seed": str(seed)}
    config = load(flags, environ={}).config
    frames = np.concatenate([made for _, _, made in build_source(RenderJob(config)).chunks()])
    views = to_view(frames)
    sky, ground = film.shots[0].sky, film.places[0].ground
    assert (sky_of(views), ground_of(views, sky)) == (sky, ground)
