"""Where the tokenizer of an encoder is looked for, and what of a file is believed."""

from __future__ import annotations

from pathlib import Path

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cfgen.checkpoint.networks.tokenizer import find_tokenizer, open_tokenizer
from cfgen.errors import CheckpointError
from tests import pieces


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    path = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(path))
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "encoders" / "encoder.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"shared.weight": torch.zeros(1)}, path)
    return path


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pieces.spiece())
    return path


def cached(cache: Path, repo: str, name: str) -> Path:
    """Where the cache would hold a file."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("c0ffee", encoding="ascii")
    return folder / "snapshots" / "c0ffee" / name


def test_the_nearest_tokenizer_is_taken(tmp_path: Path, weights: Path, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="brings no tokenizer") as caught:
        find_tokenizer(weights)
    assert caught.value.hint
    assert "cfgen models pull google/umt5-xxl/spiece.model" in caught.value.hint
    home = weights.parent
    farthest_first = [
        cached(cache, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "tokenizer/spiece.model"),
        cached(cache, "Wan-AI/Wan2.1-T2V-1.3B", "google/umt5-xxl/tokenizer.json"),
        cached(cache, "google/umt5-xxl", "spiece.model"),
        home.parent / "tokenizer" / "spiece.model",
        home / "google" / "umt5-xxl" / "spiece.model",
        home / "tokenizer" / "spiece.model",
        home / "tokenizer" / "tokenizer.json",
        home / "spiece.model",
        home / "tokenizer.json",
    ]
    for path in farthest_first:
        put(path)
        assert find_tokenizer(weights).samefile(path)
    tensors = {"spiece_model": torch.tensor(list(pieces.spiece()), dtype=torch.uint8)}
    save_file(tensors, weights)
    assert find_tokenizer(weights) == weights
    given = put(tmp_path / "given")
    assert find_tokenizer(weights, given) == given


def test_a_given_folder_is_looked_into(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    put(tmp_path / "tokenizer" / "spiece.model")  # not what was given
    with pytest.raises(CheckpointError, match="given holds no tokenizer"):
        find_tokenizer(weights, folder)
    path = put(folder / "tokenizer" / "spiece.model")
    assert find_tokenizer(weights, folder) == path
    path = put(folder / "spiece.model")
    assert find_tokenizer(weights, folder) == path


def test_a_gguf_file_brings_its_own(tmp_path: Path) -> None:
    path = tmp_path / "encoder.gguf"
    pieces.write_gguf(path, rows=320)
    assert find_tokenizer(path) == path


def test_what_is_no_tokenizer_is_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        open_tokenizer(weights)
    with pytest.raises(CheckpointError, match="nothing is missing: the text encoder needs"):
        open_tokenizer(tmp_path / "nothing")
    (tmp_path / "x").write_text("<!doctype html>", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is a web page"):
        open_tokenizer(tmp_path / "x")
    save_file({"spiece_model": torch.zeros(3)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="spiece_model must be .* got float32"):
        open_tokenizer(tmp_path / "x")


@pytest.mark.parametrize(
    ("tokens", "scores", "kinds"),
    [
        (["<unk>", "a"], [0.0], [2, 1]),
        (["<unk>", "a"], [0.0, -1.0], [2]),
        (["<unk>", "a"], [0.0, float("nan")], [2, 1]),
        (["<unk>", "a"], [0.0, -1.0], [2, 9]),
        (["<unk>", "a"], [0.0, -1.0], [1, 1]),  # none is for what is unknown
        (["<unk>", "a", "a"], [0.0, -1.0, -1.0], [2, 1, 1]),
    ],
)
def test_pieces_that_do_not_belong_together_are_refused(
    tokens: list[str], scores: list[float], kinds: list[int], tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "t5encoder")
    writer.add_tokenizer_model("t5")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_tensor("x", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"x\.gguf (is damaged|holds no sentencepiece)"):
        open_tokenizer(tmp_path / "x.gguf")
