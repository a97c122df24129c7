"""What training writes is small, says what it is, and loads as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.checkpoint.networks.vae import load_tiny
from cfgen.model.generator import Generator, WanConfig
from cfgen.model.vae import TinyAutoencoder
from cfgen.train.export import LARGE, Exporter
from cfgen.train.film_world.semantics import SEMANTIC_CHANNELS
from cfgen.train.vae_stage import INT8_FROM, save_autoencoder


def stored(path: Path) -> dict[str, tuple[str, int]]:
    """Number type and count of every tensor of a file."""
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: (each.get_dtype(), torch.Size(each.get_shape()).numel())
            for name, each in slices.items()
        }


def test_an_autoencoder_is_stored_in_int8_but_for_its_ends(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = TinyAutoencoder(24 + SEMANTIC_CHANNELS, 32, (64, 32, 32, 16), patch_size=2)
    save_autoencoder(vae.state_dict(), tmp_path / "tae.safetensors")
    kinds = stored(tmp_path / "tae.safetensors")
    inner = {n for n, (kind, _) in kinds.items() if kind == "I8"}
    assert inner
    assert all(".conv." in name and kinds[name][1] >= INT8_FROM for name in inner)
    assert {kinds[name][0] for name in ("encoder.0.weight", "decoder.22.weight")} == {"BF16"}
    loaded = load_tiny(tmp_path / "tae.safetensors")
    assert loaded.semantic_channels == SEMANTIC_CHANNELS
    for name, weight in vae.state_dict().items():
        off = (loaded.state_dict()[name] - weight).abs().max() / weight.abs().max()
        assert float(off) < 0.008, name


@pytest.mark.parametrize("larger", [(), (2, 4)])
def test_large_tensors_of_a_generator_are_stored_in_fewer_bits(
    tmp_path: Path, larger: tuple[int, ...]
) -> None:
    sizes = WanConfig(
        dim=128,
        ffn_dim=256,
        num_heads=2,
        num_layers=2,
        in_dim=16,
        out_dim=16,
        text_len=8,
        text_dim=128,
        larger_patches=larger,
    )
    torch.manual_seed(0)
    generator = Generator(sizes)
    weights = {f"generator.{name}": t for name, t in generator.state_dict().items()}
    Exporter(tmp_path, 16)(sizes, {}, weights)
    kinds = stored(tmp_path / "diffusion_pytorch_model.safetensors")
    assert {kind for kind, count in kinds.values() if count >= LARGE} == {"I8", "BF16"}
    assert kinds["patch_embedding.weight"][0] == "F32"
    if larger:
        assert kinds["patch_embedding_4x.weight"][0] == "BF16"
    loaded = load_generator(tmp_path, expand=True).state_dict()
    assert set(loaded) == set(generator.state_dict())
    for name, weight in generator.state_dict().items():
        off = (loaded[name].float() - weight).abs().max() / weight.abs().max().clamp(min=1e-9)
        assert float(off) < 0.008, name
