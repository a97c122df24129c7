"""Files of autoencoders: told apart by their tensors, loaded strictly, others refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfgen.checkpoint.networks.vae import latent_sizes, load_vae, open_vae, to_diffusers
from cfgen.errors import CheckpointError
from cfgen.model.latent_moments import LATENT_MEAN, LATENT_STD, denormalised
from cfgen.model.vae import TinyAutoencoder
from cfgen.model.wan_vae import WanAutoencoder

GOLDEN = Path(__file__).parent.parent / "golden"
LAYOUTS = ("original", "diffusers")
State = dict[str, Tensor]
FACTS = {
    "_class_name": "AutoencoderKLWan",
    "_diffusers_version": "0.33.0",
    "base_dim": 6,
    "dim_mult": [1, 2, 4, 4],
    "z_dim": 16,
    "latents_mean": list(LATENT_MEAN),
    "latents_std": list(LATENT_STD),
}


def golden(layout: str) -> State:
    return load_file(GOLDEN / f"wan_vae_{layout}.safetensors")


def weights(layout: str) -> State:
    return {name: tensor for name, tensor in golden(layout).items() if "/" not in name}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[State], Path]:
    """Write a file whose name says nothing."""

    def write(state: State) -> Path:
        path = tmp_path / "x.safetensors"
        save_file(state, path)
        return path

    return write


def plain_names(layout: str) -> State:
    return weights(layout)


def under_model(layout: str) -> State:
    return {f"model.{name}": tensor for name, tensor in weights(layout).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("named", [plain_names, under_model])
def test_both_layouts_decode_and_encode_as_published(
    layout: str, named: Callable[[str], State], written: Callable[[State], Path]
) -> None:
    vae, expected = load_vae(written(named(layout))), golden(layout)
    assert isinstance(vae, WanAutoencoder)
    assert not vae.training
    assert not any(weight.requires_grad for weight in vae.parameters())
    video = vae.decode(expected["in/latents_norm"].transpose(1, 2)).mul(2).sub(1).clamp(-1, 1)
    torch.testing.assert_close(video, expected["out/video"].transpose(1, 2), rtol=0, atol=2e-5)
    latents = vae.encode((expected["out/video"].transpose(1, 2) + 1) / 2)
    truth = expected["out/encode_mu_norm"].transpose(1, 2)
    torch.testing.assert_close(latents, truth, rtol=0, atol=2e-5)


def test_streams_of_a_loaded_one_are_bit_for_bit_the_whole(
    written: Callable[[State], Path],
) -> None:
    vae = load_vae(written(weights("original")))
    latents = golden("original")["in/latents_norm"].transpose(1, 2)
    for chunk in (1, 3):
        state = vae.start()
        parts = [vae.decode(part, state) for part in latents.split(chunk, 1)]
        assert torch.equal(torch.cat(parts, 1), vae.decode(latents))


def test_pickled_weights_are_read_as_well(tmp_path: Path) -> None:
    state = weights("original")
    torch.save(state, tmp_path / "Wan2.1_VAE.pth")
    loaded = load_vae(tmp_path / "Wan2.1_VAE.pth").network.state_dict()
    assert all(torch.equal(loaded[to_diffusers(name)], tensor) for name, tensor in state.items())
    assert len(loaded) == len(state)


def test_every_name_has_its_counterpart() -> None:
    pairs = json.loads((GOLDEN / "wan_vae_key_map.json").read_text(encoding="utf-8"))
    assert {name: to_diffusers(name) for name in pairs} == pairs
    with torch.device("meta"):
        names = set(WanAutoencoder(6, 6).network.state_dict())
    assert set(pairs.values()) == names
    assert to_diffusers("spiece_model") == "spiece_model"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_have_the_dtype_that_is_asked_for(
    dtype: torch.dtype, written: Callable[[State], Path]
) -> None:
    vae = load_vae(written(weights("diffusers")), dtype=dtype)
    assert {weight.dtype for weight in vae.parameters()} == {dtype}
    kernel = vae.get_parameter("network.decoder.conv_in.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("inner", ["vae", "."])
@pytest.mark.parametrize("config", [FACTS, FACTS | {"decoder_base_dim": None}, None])
def test_folder_as_diffusers_writes_it(inner: str, config: dict | None, tmp_path: Path) -> None:
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    save_file(weights("diffusers"), folder / "diffusion_pytorch_model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert isinstance(load_vae(tmp_path), WanAutoencoder)


@pytest.mark.parametrize(
    ("fact", "sentence"),
    [
        ({"base_dim": 96}, "base_dim 96 instead of 6"),
        ({"latents_std": [1.0] * 16}, "latents_std"),
        ({"is_residual": True}, "is_residual True instead of False"),
    ],
)
def test_config_of_another_model_is_refused(
    fact: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    save_file(weights("diffusers"), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(FACTS | fact), encoding="utf-8")
    with pytest.raises(CheckpointError, match=sentence):
        load_vae(tmp_path)


def test_folder_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither vae/diffusion_pytorch_model.safetensors"):
        load_vae(tmp_path)


def changed(layout: str, **tensors: Tensor | None) -> State:
    """Weights with tensors replaced, added or (None) left out; `__` in names stands for a dot."""
    news = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return {n: t for n, t in (weights(layout) | news).items() if t is not None}


def one(name: str, *shape: int) -> State:
    return {name: torch.zeros(shape)}


def tiny_of(latent_channels: int, values: int) -> State:
    state = TinyAutoencoder(latent_channels, 6, (12, 10, 8, 6)).state_dict()
    return (
        state
        | one("encoder.0.weight", 6, values, 3, 3)
        | one("decoder.22.bias", values)
        | one("decoder.22.weight", values, 6, 3, 3)
    )


REFUSED: dict[str, tuple[Callable[[], State], str]] = {
    "Wan2.2": (
        lambda: changed("original", conv2__bias=torch.zeros(48)),
        "the VAE of Wan2.2: its latents have 48 channels, those of Wan2.1 16",
    ),
    "Wan2.2 in diffusers' names": (
        lambda: changed("diffusers", post_quant_conv__bias=torch.zeros(48)),
        "the VAE of Wan2.2",
    ),
    "other latents": (
        lambda: changed("original", conv2__bias=torch.zeros(4)),
        "the VAE of another model: its latents have 4 channels",
    ),
    "taeltx": (lambda: tiny_of(128, 48), "a TAEHV of LTX .128 latent channels, 48 values a point"),
    "other patches in the encoder": (
        lambda: tiny_of(48, 12) | one("encoder.0.weight", 6, 3, 3, 3),
        "its encoder reads 3 values a point, its decoder makes 12",
    ),
    "Stable Diffusion": (
        lambda: one("first_stage_model.decoder.mid.block_1.conv1.weight", 4, 4, 3, 3),
        "an image autoencoder",
    ),
    "AutoencoderKL": (
        lambda: one("decoder.mid_block.attentions.0.to_q.weight", 4, 4),
        "an image autoencoder, not an autoencoder of Wan2.1",
    ),
    "HunyuanVideo": (
        lambda: one("decoder.conv_in.conv.weight", 4, 4, 3, 3, 3),
        "the autoencoder of another video model",
    ),
    "TAESD": (lambda: one("decoder.layers.3.conv.0.weight", 4, 4, 3, 3), "TAESD"),
    "generator": (
        lambda: one("patch_embedding.weight", 4, 16, 1, 2, 2) | one("head.modulation", 1, 2, 4),
        "a Wan generator, not an autoencoder",
    ),
    "text encoder": (
        lambda: one("encoder.block.0.layer.0.SelfAttention.q.weight", 4, 4),
        "a text encoder",
    ),
    "something else": (lambda: one("weight", 3), r"none of its 1 tensors .weight, ...."),
    "a missing tensor": (
        lambda: changed("original", decoder__conv1__weight=None),
        "lacks decoder.conv_in.weight",
    ),
    "a tensor that tells sizes missing": (
        lambda: changed("diffusers", encoder__conv_in__bias=None),
        "encoder.conv_in.bias is missing",
    ),
    "too few axes": (
        lambda: changed("diffusers", encoder__conv_in__bias=torch.tensor(1.0)),
        "a tensor has too few axes",
    ),
    "a tensor too many": (
        lambda: changed("original", ema_decay=torch.zeros(1)),
        "has unknown ema_decay",
    ),
    "another shape": (
        lambda: changed("original", conv1__bias=torch.zeros(30)),
        r"has quant_conv.bias \[30\] instead of \[32\]",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_every_other_file_is_refused_by_name(kind: str, written: Callable[[State], Path]) -> None:
    make, sentence = REFUSED[kind]
    path = written(make())
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_vae(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_tiny_autoencoder_is_read_as_it_was_trained(
    dtype: torch.dtype, written: Callable[[State], Path]
) -> None:
    torch.manual_seed(0)
    trained = TinyAutoencoder(4, 6, (12, 10, 8, 6))
    vae = load_vae(written(trained.state_dict()), dtype=dtype)
    assert isinstance(vae, TinyAutoencoder)
    assert not vae.raw_latents
    latents = torch.randn(1, 3, 4, 2, 3).to(dtype)
    with torch.no_grad():
        assert torch.equal(vae.decode(latents), trained.to(dtype).eval().decode(latents))
    assert vae.get_parameter("decoder.1.weight").is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def published_tiny() -> State:
    """Random weights of the published sizes of `taew2_1`, and of `lighttaew2_1`."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in TinyAutoencoder().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.empty(s).normal_(std=0.05, generator=generator) for n, s in shapes.items()}
    return {name: tensor.half() for name, tensor in state.items()}


def test_half_precision_tells_taew2_1(
    published_tiny: State, written: Callable[[State], Path]
) -> None:
    vae = load_vae(written(published_tiny))
    assert isinstance(vae, TinyAutoencoder)
    assert vae.latent_channels == 16
    assert not vae.raw_latents


def test_what_may_be_taew2_1_or_lighttaew2_1_is_not_guessed(
    published_tiny: State, written: Callable[[State], Path]
) -> None:
    path = written({name: tensor.float() for name, tensor in published_tiny.items()})
    with pytest.raises(CheckpointError, match="either taew2_1 or lighttaew2_1"):
        load_vae(path)
    raw, normalised = (load_vae(path, raw_latents=told) for told in (True, False))
    latents = torch.randn(1, 2, 16, 1, 2)
    with torch.no_grad():
        assert torch.equal(raw.decode(latents), normalised.decode(denormalised(latents)))
        video = torch.rand(1, 5, 3, 8, 16)
        back = denormalised(raw.encode(video))
        torch.testing.assert_close(back, normalised.encode(video), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "patch"), [(16, 1), (4, 1), (48, 2), (32, 2)])
def test_channels_and_stride_are_told_by_the_header(
    channels: int, patch: int, tmp_path: Path
) -> None:
    vae = TinyAutoencoder(channels, 6, (12, 10, 8, 6), patch_size=patch)
    save_file(vae.state_dict(), tmp_path / "tae.safetensors")
    assert latent_sizes(open_vae(tmp_path / "tae.safetensors")) == (channels, 8 * patch)
    loaded = load_vae(tmp_path / "tae.safetensors")
    assert (loaded.latent_channels, loaded.spatial_stride) == (channels, 8 * patch)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_vae_of_wan_has_cells_of_8_pixels(layout: str, tmp_path: Path) -> None:
    save_file(weights(layout), tmp_path / "vae.safetensors")
    assert latent_sizes(open_vae(tmp_path / "vae.safetensors")) == (16, 8)


def test_raw_latents_are_those_of_wan21(tmp_path: Path) -> None:
    save_file(tiny_of(32, 12), tmp_path / "tae.safetensors")
    with pytest.raises(CheckpointError, match="has 32 latent channels, and raw latents are"):
        load_vae(tmp_path / "tae.safetensors", raw_latents=True)
