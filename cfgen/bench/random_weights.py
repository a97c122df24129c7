"""Random weights in the place of a model that is not on the disk: as fast, and no use otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cfgen.checkpoint.networks.fill import MATRICES
from cfgen.checkpoint.networks.vae import LAYOUTS_LAST
from cfgen.config.schema import ModelConfig
from cfgen.errors import CheckpointError
from cfgen.model.generator import Generator, WanConfig
from cfgen.model.tiled import TiledDecoder
from cfgen.model.wan_vae import WanAutoencoder
from cfgen.pipeline.cpu_offload import offload_blocks
from cfgen.pipeline.models import LoadedModels, OpenedModel
from cfgen.pipeline.offload_plan import Offload

PUBLISHED = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
"""Sizes of Wan2.1-T2V-1.3B, which every published model that has a preset was made from."""


def missing_files(model: OpenedModel) -> str | None:
    """Why a model cannot be loaded, in a sentence, if a file of it is nowhere; None if all are."""
    try:
        _ = model.files, model.lora_files
    except CheckpointError as error:
        return str(error)
    return None


def random_weights(
    model: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    offload: Offload = "none",
    sizes: WanConfig = PUBLISHED,
) -> LoadedModels:
    """Generator and Wan VAE of random weights, placed and laid out as `OpenedModel.load` does.

    Args:
        model: The model they stand for.
        dtype: Of the linear layers in blocks and of the VAE; the rest of the generator is float32.
        device: Where they compute.
        offload: What waits in main memory.
        sizes: Of the generator.
    """
    waits = torch.device("cpu") if offload != "none" else device
    with torch.device("meta"):
        generator, vae = Generator(sizes), WanAutoencoder()
    _fill(generator, lambda name: dtype if MATRICES.fullmatch(name) else torch.float32, waits)
    _fill(vae, lambda name: dtype, device)
    for weight in vae.parameters():
        if weight.ndim in LAYOUTS_LAST:
            weight.data = weight.data.contiguous(memory_format=LAYOUTS_LAST[weight.ndim])
    if offload != "none":
        offload_blocks(generator, device)
    return LoadedModels(generator, TiledDecoder(vae, tile=model.vae_tile), ())


def _fill(module: nn.Module, dtype_of: Callable[[str], torch.dtype], device: torch.device) -> None:
    """Give a network made on the meta device weights with which its numbers keep their size."""
    random = torch.Generator(device).manual_seed(0)
    state = {}
    for name, hollow in module.state_dict().items():
        weight = torch.empty(hollow.shape, dtype=dtype_of(name), device=device)
        state[name] = _drawn(name, weight, random)
    module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(False)


def _drawn(name: str, weight: Tensor, random: torch.Generator) -> Tensor:
    if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
        return weight.fill_(1)
    fan_in = math.prod(weight.shape[1:]) if weight.ndim > 1 else weight.numel()
    return weight.normal_(std=fan_in**-0.5, generator=random)
