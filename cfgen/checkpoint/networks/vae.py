"""Autoencoders on disk: which one a file holds is told by its tensors, never by its name.

Source of Wan's names: Wan-Video/Wan2.1 wan/modules/vae.py @ 9737cba; of diffusers': diffusers 0.42
models/autoencoders/autoencoder_kl_wan.py. `tests/golden/wan_vae_key_map.json` has both in full.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from cfgen.checkpoint.formats.base import CHECK_PATH, read_json
from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.naming import (
    VAE_PARTS,
    WAN,
    NamingScheme,
    find_network,
    holds_no,
    looks_like,
    unchanged,
)
from cfgen.checkpoint.networks.fill import CPU, fill
from cfgen.checkpoint.networks.network import Network, describe_network
from cfgen.errors import CheckpointError
from cfgen.model.latent_moments import LATENT_MEAN
from cfgen.model.vae import RGB, SPATIAL_STRIDE, TinyAutoencoder
from cfgen.model.wan_vae import WanAutoencoder

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"
FOLDER = "vae"
"""Where diffusers puts the autoencoder inside a model folder."""

WANTED = "give the VAE of Wan2.1, or a TAEHV made for it (taew2_1, lighttaew2_1)"

TOP = {
    "conv1.": "quant_conv.",
    "conv2.": "post_quant_conv.",
}
HALF = {
    "conv1.": "conv_in.",
    "middle.0.": "mid_block.resnets.0.",
    "middle.1.": "mid_block.attentions.0.",
    "middle.2.": "mid_block.resnets.1.",
    "head.0.": "norm_out.",
    "head.2.": "conv_out.",
}
RESIDUAL = {
    "residual.0.": "norm1.",
    "residual.2.": "conv1.",
    "residual.3.": "norm2.",
    "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}
"""Starts of names at the top, inside encoder or decoder, inside a block: Wan's to diffusers'."""

BLOCKS_A_STAGE = 3
"""Residual blocks of a decoder's stage; Wan counts them and the up-sampler behind them as one row,
diffusers apart."""

TINY = NamingScheme("TAEHV's", "decoder.22.bias", unchanged)

FULL_TINY = {
    "encoder.0.weight": (64, 3, 3, 3),
    "decoder.1.weight": (256, 16, 3, 3),
    "decoder.14.weight": (64, 128, 3, 3),
}
"""Tensors that tell the published sizes of `taew2_1` and of `lighttaew2_1`, which are the same."""

SEMANTIC_HEADER = "cfgen.semantic_channels"
"""Where the header of a TAEHV says how many of its latent channels tell what lies where."""

TINY_OF = {48: "Wan2.2", 32: "HunyuanVideo 1.5", 128: "LTX"}
"""Video models that other TAEHVs are made for, by their latent channels."""

PATCHES = {RGB: 1, 4 * RGB: 2}
"""Pixels on the side of a TAEHV's patches, by the values that its decoder makes of a point."""

KNOWN_OTHER_FILES = (
    (r"decoder\.conv_in\.conv\.(conv\.)?weight", "the autoencoder of another video model"),
    (r"decoder\.mid\.block_1\.conv1\.weight", "an image autoencoder (Stable Diffusion, FLUX)"),
    (r"decoder\.mid_block\.attentions\.0\.(to_q|query)\.weight", "an image autoencoder"),
    (r"(decoder\.layers\.)?3\.conv\.0\.weight", "a tiny image autoencoder (TAESD)"),
    ("|".join(re.escape(layout.anchor) for layout in WAN), "a Wan generator"),
    (r"(encoder\.)?blocks?\.0\.(layer\.0\.SelfAttention|attn)\.q\.weight", "a text encoder"),
)
"""Names of tensors that only networks of other kinds have, and what those are."""

LAYOUTS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_diffusers(name: str) -> str:
    """Diffusers' name of a tensor of Wan's autoencoder; a name without a rule stays as it is."""
    half, _, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        return _renamed(name, TOP)
    row = re.match(r"(down|up)samples\.(\d+)\.", rest)
    if not row:
        block = re.match(r"middle\.\d\.", rest)
        inside = rest[block.end() :] if block else ""
        return f"{half}." + _renamed(rest.removesuffix(inside), HALF) + _renamed(inside, RESIDUAL)
    number = int(row[2])
    place = f"down_blocks.{number}."
    if row[1] == "up":
        stage, block_number = divmod(number, BLOCKS_A_STAGE + 1)
        last = block_number == BLOCKS_A_STAGE
        place = f"up_blocks.{stage}." + ("upsamplers.0." if last else f"resnets.{block_number}.")
    return f"{half}.{place}" + _renamed(rest[row.end() :], RESIDUAL)


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for before, after in rules.items():
        if name.startswith(before):
            return after + name[len(before) :]
    return name


LAYOUTS = (
    NamingScheme("Wan's own", "decoder.middle.0.residual.6.bias", to_diffusers),
    NamingScheme("diffusers'", "decoder.mid_block.resnets.0.norm1.gamma", unchanged),
    TINY,
)
"""How autoencoders are named that cfgen decodes with."""


def load_vae(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    raw_latents: bool | None = None,
) -> TinyAutoencoder | WanAutoencoder:
    """The autoencoder in a file or folder; see `open_vae` and `build_vae`."""
    network = open_vae(path)
    return build_vae(network, path, dtype=dtype, device=device, raw_latents=raw_latents)


def build_vae(
    network: Network,
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    raw_latents: bool | None = None,
) -> TinyAutoencoder | WanAutoencoder:
    """An autoencoder, channels last, in evaluation mode, its weights frozen.

    Args:
        network: its weights, opened.
        path: where it was found: a folder may hold its config.
        dtype: of all weights.
        device: where it goes.
        raw_latents: whether a TAEHV takes Wan2.1's raw latents (`lighttaew2_1`) or normalised ones
            (`taew2_1`), which cannot be seen in its tensors. None takes float16 files of the
            published size for `taew2_1`, as ComfyUI does, and all of other sizes for ours.

    Raises:
        CheckpointError: the file is missing, damaged or of an unknown layout, holds another kind
            of network or not exactly the tensors of one, or nothing says which latents it takes.
            The encoder may be missing, as a whole.
    """
    config = _files(path)[1]
    tiny = network.naming.layout is TINY
    vae = _tiny(network, raw_latents) if tiny else _wan(network, config)
    module = vae.network if isinstance(vae, WanAutoencoder) else vae
    fill(module, network, dtype_of=lambda _name: dtype, device=device, expand=True)
    _put_channels_last(vae)
    return vae.eval()


def load_tiny(path: Path, *, dtype: torch.dtype = torch.float32) -> TinyAutoencoder:
    """A tiny autoencoder of our own, whose latents are normalised; see `load_vae`.

    Raises:
        CheckpointError: it is another one, or its header says of its semantic channels what cannot
            be.
    """
    network = open_vae(path)
    vae = build_vae(network, path, dtype=dtype, raw_latents=False)
    if not isinstance(vae, TinyAutoencoder):
        raise CheckpointError(
            f"{path} is the VAE of Wan, and a tiny autoencoder is wanted", CHECK_PATH
        )
    said = str(network.file.metadata.get(SEMANTIC_HEADER, "0"))
    if not said.isdecimal() or int(said) >= vae.latent_channels:
        raise CheckpointError(
            f"{path}: {SEMANTIC_HEADER} is {said!r}, and a number below the"
            f" {vae.latent_channels} channels of its latents is wanted",
            CHECK_PATH,
        )
    vae.semantic_channels = int(said)
    return vae


def _files(path: Path) -> tuple[Path, Path | None]:
    """The weights, and the config that belongs to them."""
    if not path.is_dir():
        return path, None
    for folder in (path / FOLDER, path):
        weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
        if weights.is_file():
            return weights, config if config.is_file() else None
    raise CheckpointError(
        f"{path} holds no autoencoder: neither {FOLDER}/{WEIGHTS_FILE} nor {WEIGHTS_FILE} is there",
        CHECK_PATH,
    )


def open_vae(path: Path) -> Network:
    """Open the file of an autoencoder and describe it; no weight is read.

    Args:
        path: a file, a folder as diffusers writes one, or a model folder with such a folder `vae`.

    Raises:
        CheckpointError: it holds none that cfgen decodes with, or is damaged.
    """
    path = _files(path)[0]
    file = open_container(path)
    naming = find_network(file.entries, LAYOUTS, path, own=VAE_PARTS)
    if naming is not None:
        return describe_network(file, naming)
    if (other := looks_like(file.entries, KNOWN_OTHER_FILES)) is not None:
        raise CheckpointError(f"{path} is {other}, not an autoencoder of Wan2.1", WANTED)
    raise holds_no("autoencoder", path, file.entries, WANTED)


def has_encoder(network: Network) -> bool:
    """Whether an autoencoder's file holds its encoder; told by its names."""
    return any(name.startswith("encoder.") for name in network.shapes)


def latent_sizes(network: Network) -> tuple[int, int]:
    """Channels of an autoencoder's latents and pixels along a cell; told by its shapes.

    Raises:
        CheckpointError: it is none that cfgen decodes with.
    """
    if network.naming.layout is TINY:
        channels, patch = tiny_sizes(network)
        return channels, SPATIAL_STRIDE * patch
    return wan_channels(network), SPATIAL_STRIDE


def tiny_sizes(network: Network) -> tuple[int, int]:
    """Latent channels of a TAEHV, and pixels on the side of its patches; told by its shapes.

    Raises:
        CheckpointError: the patches are none that cfgen decodes, or encoder and decoder differ.
    """
    path, shapes = network.file.path, network.shapes
    values = shapes["decoder.22.bias"][0] if shapes["decoder.22.bias"] else 0
    latent, entry = (shapes.get(n, ()) for n in ("decoder.1.weight", "encoder.0.weight"))
    channels = latent[1] if len(latent) > 1 else 0
    if values not in PATCHES:
        model = TINY_OF.get(channels, "another model")
        raise CheckpointError(
            f"{path} is a TAEHV of {model} ({channels} latent channels, {values} values a "
            "point), which cfgen does not decode with",
            WANTED,
        )
    if len(entry) > 1 and entry[1] != values:
        raise CheckpointError(
            f"{path} holds no autoencoder: its encoder reads {entry[1]} values a point, its "
            f"decoder makes {values}",
            CHECK_PATH,
        )
    return channels, PATCHES[values]


def _tiny(network: Network, raw_latents: bool | None) -> TinyAutoencoder:
    path, shapes = network.file.path, network.shapes
    channels, _ = tiny_sizes(network)
    if raw_latents and channels != len(LATENT_MEAN):
        raise CheckpointError(
            f"{path} has {channels} latent channels, and raw latents are those of Wan2.1, which "
            f"have {len(LATENT_MEAN)}",
            "leave out model.raw_latents",
        )
    published = all(shapes.get(name, shape) == shape for name, shape in FULL_TINY.items())
    if raw_latents is None and published:
        if network.layers["decoder.1.weight"].format != "float16":
            raise CheckpointError(
                f"{path} is either taew2_1 or lighttaew2_1: they have the same tensors and take "
                "other latents, and the file does not tell them apart",
                "say which: --set model.raw_latents=true for lighttaew2_1, false for taew2_1",
            )
        raw_latents = False
    try:
        with torch.device("meta"):
            return TinyAutoencoder.for_weights(_hollow(network), raw_latents=bool(raw_latents))
    except (KeyError, IndexError) as error:
        raise _incomplete(path, error) from error


def wan_channels(network: Network) -> int:
    """Latent channels of a VAE of Wan, as many as Wan2.1's have.

    Raises:
        CheckpointError: it is that of another model.
    """
    path, shapes = network.file.path, network.shapes
    channels = shapes.get("post_quant_conv.bias", (0,))[0]
    if channels != len(LATENT_MEAN):
        model = "of Wan2.2" if channels == 48 else "of another model"
        raise CheckpointError(
            f"{path} is the VAE {model}: its latents have {channels} channels, those of Wan2.1 "
            f"{len(LATENT_MEAN)}",
            WANTED,
        )
    return channels


def _wan(network: Network, config: Path | None) -> WanAutoencoder:
    wan_channels(network)
    try:
        with torch.device("meta"):
            vae = WanAutoencoder.for_weights(_hollow(network))
    except (KeyError, IndexError) as error:
        raise _incomplete(network.file.path, error) from error
    if config is not None:
        _check_config(vae, config)
    return vae


def _check_config(vae: WanAutoencoder, path: Path) -> None:
    """Refuse a config.json that says other than the weights, or than Wan2.1's latents."""
    told = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    if told.get("decoder_base_dim", 0) is None:
        told["decoder_base_dim"] = told.get("base_dim")
    known = cast("Mapping[str, object]", vae.network.config)
    wrong = [
        f"{key} {value!r} instead of {known[key]!r}"
        for key, value in told.items()
        if key in known and known[key] != value
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not belong to these weights, or to Wan2.1: {', '.join(wrong)}",
            "take config.json and weights from the same model",
        )


def _hollow(network: Network) -> dict[str, torch.Tensor]:
    """Tensors of the file's shapes that hold nothing."""
    return {n: torch.empty(shape, device="meta") for n, shape in network.shapes.items()}


def _incomplete(path: Path, error: Exception) -> CheckpointError:
    missing = isinstance(error, KeyError)
    reason = f"{error.args[0]} is missing" if missing else "a tensor has too few axes"
    return CheckpointError(
        f"{path} holds no whole autoencoder: {reason}", "take a complete file of the model"
    )


def _put_channels_last(module: nn.Module) -> None:
    """Lay convolutions out as they run fastest: a fifth faster here, several times on Hopper."""
    for weight in module.parameters():
        if weight.ndim in LAYOUTS_LAST:
            weight.data = weight.data.contiguous(memory_format=LAYOUTS_LAST[weight.ndim])
