"""Which files of a folder are the parts of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfgen.checkpoint.networks.model_files import ModelFiles, find_files, generator_file
from cfgen.errors import CheckpointError

GENERATOR = "diffusion_pytorch_model.safetensors"


def put(folder: Path, *names: str) -> Path:
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return folder


FOLDERS = {
    "cfgen's": (
        ["config.json", GENERATOR, "tae.safetensors", "text_encoder/model.safetensors"],
        ["tokenizer/tokenizer.json"],
        (GENERATOR, "text_encoder", "tae.safetensors", "tokenizer/tokenizer.json"),
    ),
    "Wan's": (
        [GENERATOR, "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"],
        ["google/umt5-xxl/tokenizer.json"],
        (
            GENERATOR,
            "models_t5_umt5-xxl-enc-bf16.pth",
            "Wan2.1_VAE.pth",
            "google/umt5-xxl/tokenizer.json",
        ),
    ),
    "diffusers'": (
        [f"transformer/{GENERATOR}", f"vae/{GENERATOR}", "text_encoder/model.safetensors"],
        [],
        (f"transformer/{GENERATOR}", "text_encoder", "vae", None),
    ),
    "shards": (
        ["transformer/x.safetensors.index.json", "transformer/x-00001-of-00002.safetensors"],
        [f"vae/{GENERATOR}", "text_encoder/model.safetensors"],
        ("transformer/x.safetensors.index.json", "text_encoder", "vae", None),
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_parts_are_found_where_publishers_put_them(kind: str, tmp_path: Path) -> None:
    names, more, wanted = FOLDERS[kind]
    folder = put(tmp_path, *names, *more)
    generator, text, vae, tokenizer = (name and folder / name for name in wanted)
    assert find_files(folder) == ModelFiles(generator, text, vae, tokenizer)


def test_parts_lie_beside_a_generator_that_is_named_itself(tmp_path: Path) -> None:
    put(tmp_path, "any name.gguf", "tae.safetensors", "text_encoder/model.safetensors")
    found = find_files(tmp_path / "any name.gguf")
    assert found.generator == tmp_path / "any name.gguf"
    assert found.vae == tmp_path / "tae.safetensors"


def test_what_is_named_wins(tmp_path: Path) -> None:
    folder = put(tmp_path / "model", *FOLDERS["cfgen's"][0], *FOLDERS["cfgen's"][1])
    mine = tmp_path / "mine"
    found = find_files(folder, text_encoder=mine, vae=mine, tokenizer=mine)
    assert (found.text_encoder, found.vae, found.tokenizer) == (mine, mine, mine)


def test_a_tokenizer_of_the_folder_does_not_go_with_another_encoder(tmp_path: Path) -> None:
    folder = put(tmp_path, *FOLDERS["cfgen's"][0], *FOLDERS["cfgen's"][1])
    assert find_files(folder, text_encoder=tmp_path / "mine").tokenizer is None


def test_the_only_file_of_weights_is_the_generator(tmp_path: Path) -> None:
    put(tmp_path, "self_forcing_dmd.pt", "Wan2.1_VAE.pth", "notes.txt")
    assert generator_file(tmp_path) == tmp_path / "self_forcing_dmd.pt"


REFUSED = {
    "nothing": ([], "holds no file of weights"),
    "two": (["a.safetensors", "b.gguf"], "several files of weights: a.safetensors, b.gguf"),
    "no text encoder": ([GENERATOR, "tae.safetensors"], "no text encoder lies in"),
    "no autoencoder": ([GENERATOR, "text_encoder/x"], "no video autoencoder lies in"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_there_or_not_clear_is_refused(kind: str, tmp_path: Path) -> None:
    names, reason = REFUSED[kind]
    with pytest.raises(CheckpointError, match=reason) as caught:
        find_files(put(tmp_path, *names))
    assert caught.value.hint
