"""What can be written anew, and what is refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cfgen.checkpoint.convert.input import open_source
from cfgen.errors import CheckpointError
from tests.checkpoint import tiny
from tests.checkpoint.encoders import encoder

TinyFile = Callable[[str], tiny.Tiny]


@pytest.mark.parametrize("what", ["missing scale", "orphan scale", "no patch embedding"])
def test_damaged_files_are_refused(what: str, tmp_path: Path) -> None:
    path = tiny.write_hostile(tmp_path)[what]
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        open_source(path)


def test_incomplete_and_swollen_generators_are_refused(tiny_file: TinyFile, tmp_path: Path) -> None:
    tensors = load_file(tiny_file("native_bf16").path)
    lacking = {n: t for n, t in tensors.items() if n != "blocks.0.norm3.bias"}
    for changed, reason in (
        (lacking, r"lacks blocks\.0\.norm3\.bias"),
        (tensors | {"blocks.0.more": torch.ones(2)}, r"has unknown blocks\.0\.more"),
    ):
        save_file(changed, tmp_path / "odd.safetensors")
        with pytest.raises(CheckpointError, match=reason):
            open_source(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    "anchor", ["decoder.middle.0.residual.6.bias", "decoder.mid_block.resnets.0.norm1.gamma"]
)
def test_a_vae_is_refused_with_the_reason(anchor: str, tmp_path: Path) -> None:
    save_file({anchor: torch.ones(3)}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"vae\.safetensors holds a video autoencoder"):
        open_source(tmp_path / "vae.safetensors")


def test_weights_that_are_not_there_are_refused(tiny_file: TinyFile, tmp_path: Path) -> None:
    for name, where in (
        ("prefix_generator_model", "under 'generator.model.'"),
        ("native_bf16", "no prefix"),
    ):
        with pytest.raises(CheckpointError, match=f"holds no generator_ema.*{where}"):
            open_source(tiny_file(name).path, weights="generator_ema")


def test_an_incomplete_text_encoder_is_refused(tmp_path: Path) -> None:
    tensors = encoder()
    del tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"]
    save_file(tensors, tmp_path / "te.safetensors")
    with pytest.raises(CheckpointError, match=r"wi_0\.weight is missing"):
        open_source(tmp_path / "te.safetensors")
