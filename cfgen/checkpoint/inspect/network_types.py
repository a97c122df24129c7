"""The kinds of networks that a file of weights may hold, and what each must consist of."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from cfgen.checkpoint.formats.base import Container, read_json
from cfgen.checkpoint.lora.read import Lora, normalized
from cfgen.checkpoint.naming import WAN, NamingScheme, to_diffusers
from cfgen.checkpoint.networks import vae
from cfgen.checkpoint.networks.fill import Shapes, config_of, open_generator, shapes_in, shapes_of
from cfgen.checkpoint.networks.geometry import read_geometry, vae_stride
from cfgen.checkpoint.networks.network import Network
from cfgen.checkpoint.networks.umt5_names import SHARED, TWIN, UMT5
from cfgen.errors import CheckpointError
from cfgen.model.generator import Generator, WanConfig
from cfgen.model.latent_moments import LATENT_MEAN
from cfgen.model.wan_vae import WanAutoencoder

Word = Literal["generator", "text encoder", "vae", "lora"]

GENERATOR_SIZES = (
    *("dim", "ffn_dim", "num_heads", "head_dim", "num_layers", "in_dim", "out_dim"),
    *("freq_dim", "text_len", "text_dim", "patch_size"),
)

TEXT_SIZES = ("d_model", "d_ff", "num_heads", "num_layers", "vocab_size")

CHANNELS = len(LATENT_MEAN)
"""Channels of Wan2.1's latents, which are all that is rendered."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a network must consist of, as its own sizes tell.

    Attributes:
        sizes: its sizes, by what they are called.
        shapes: shape of every tensor by native name.
        problem: why it cannot be used although it is whole, or None.
        warnings: what else is needed to use it.
    """

    sizes: Mapping[str, object]
    shapes: Shapes
    problem: CheckpointError | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkType:
    """A kind of network.

    Attributes:
        word: what it is called in a configuration.
        title: what it is, in words.
        layouts: how such networks are named.
        open: describes the one in a file; takes `prefer` besides.
        wanted: works out what it must consist of, from its file and the shapes in it.
    """

    word: Word
    title: str
    layouts: Sequence[NamingScheme]
    open: Callable[[Path, str], Network]
    wanted: Callable[[Path, Shapes], Expected]


def _wanted_generator(path: Path, shapes: Shapes) -> Expected:
    config = config_of(path)
    geometry = read_geometry(shapes, config, weights=path)
    stride = vae_stride(config)
    warnings: tuple[str, ...] = ()
    if geometry.in_dim != CHANNELS and stride is None:
        warnings = (
            f"{path} makes latents of {geometry.in_dim} channels; those of Wan2.1 have {CHANNELS}: "
            "it needs a TAEHV that reads as many",
        )
    sizes = {name: getattr(geometry, name) for name in GENERATOR_SIZES}
    sizes["patch_size"] = list(geometry.patch_size)
    return Expected(sizes, shapes_of(Generator, geometry), warnings=warnings)


def _open_text_encoder(path: Path, prefer: str) -> Network:
    from cfgen.checkpoint.networks import text_encoder  # imports transformers: takes seconds

    return text_encoder.open_text_encoder(path)


def _wanted_text_encoder(path: Path, shapes: Shapes) -> Expected:
    from transformers import UMT5Config, UMT5EncoderModel

    from cfgen.checkpoint.networks import text_encoder
    from cfgen.checkpoint.networks.tokenizer import find_tokenizer

    network = text_encoder.open_text_encoder(path)
    beside = path.with_name(text_encoder.CONFIG_FILE)
    ours = beside.is_file() and read_json(beside).get("model_type") == "umt5"
    settings = text_encoder.settings_of(network, beside if ours else None)
    wanted = shapes_of(UMT5EncoderModel, UMT5Config.from_dict(settings))
    if not {SHARED, TWIN} <= set(shapes):
        del wanted[TWIN]
    sizes = {key: settings[key] for key in TEXT_SIZES}
    try:
        sizes["tokenizer"] = os.path.normpath(find_tokenizer(path))
    except CheckpointError as error:
        return Expected(sizes, wanted, warnings=(f"{error}; {error.hint}",))
    return Expected(sizes, wanted)


def _wanted_vae(path: Path, shapes: Shapes) -> Expected:
    """Loads it onto no device at all, which reads it: an autoencoder has 0.5 GB at most."""
    found = vae.load_vae(path, device=torch.device("meta"))
    sizes = {"latent_channels": found.latent_channels, "spatial_stride": found.spatial_stride}
    if isinstance(found, WanAutoencoder):
        return Expected(sizes, shapes_in(found.network))
    return Expected(sizes | {"raw_latents": found.raw_latents}, shapes_in(found))


KINDS = (
    NetworkType(
        "generator",
        "Wan generator",
        WAN,
        lambda path, prefer: open_generator(path, prefer=prefer),
        _wanted_generator,
    ),
    NetworkType(
        "text encoder", "UMT5 text encoder", UMT5, _open_text_encoder, _wanted_text_encoder
    ),
    NetworkType(
        "vae", "video autoencoder", vae.LAYOUTS, lambda path, _: vae.open_vae(path), _wanted_vae
    ),
)
"""Kinds of networks that cfgen loads; a LoRA is none, and is told apart by `is_lora`."""

LORA = re.compile(r".*\.(lora[_.](A|B|down|up)\b.*|diff(_b|_m)?|(hada|lokr|oft|boft|lora_mid).*)")

KNOWN_OTHER_FILES = (
    (r"(^|[./])(vision_model|visual)\.", "an image encoder, as image-to-video models want one"),
    (r"(^|[./])blocks\.\d+\.self_attn\.(q|k|v|o)\.weight", "a part of a Wan generator"),
    (r"(^|[./])(double_blocks|single_blocks|joint_blocks)\.\d+\.", "another image or video model"),
    (r"(^|[./])transformer_blocks\.\d+\.", "another image or video model"),
    (r"(^|[./])(input_blocks|down_blocks)\.\d+\.", "Stable Diffusion, or an image autoencoder"),
    (r"(^|[./])layers\.\d+\.self_attn\.q_proj\.", "a language model"),
    (r"(^|[./])(enc|dec|encoder|decoder)\.blo?c?k\.\d+\.", "a part of a text encoder"),
    (r"(^|[./])(exp_avg|optimizer)", "the state of an optimizer"),
)
"""Names of tensors that are in files of other kinds, and what those are, most likely."""


ONE_BLOCK = WanConfig(dim=128, ffn_dim=128, num_heads=1, num_layers=1, text_dim=128)


def is_lora(file: Container) -> bool:
    """Whether a file's tensors are named as parts of an adapter."""
    return any(LORA.fullmatch(name) for name in file.entries)


def without_place(lora: Lora) -> list[str]:
    """Tensors of a LoRA for layers that no text-to-video generator has, however many blocks."""
    names = shapes_of(Generator, ONE_BLOCK)
    forms = [form for name in names for form in (name, to_diffusers(name))]
    known = {normalized(each) for form in forms for each in (form, form.rpartition(".")[0])}
    return [
        raw
        for key, change in lora.changes.items()
        if re.sub(r"^blocks_\d+_", "blocks_0_", key) not in known
        for raw in change.parts.values()
    ]
