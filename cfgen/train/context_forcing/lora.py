"""LoRA for training: pairs of low-rank factors beside named linear layers of a generator.

The factors alone learn. They are exported as diffusers writes them, which every render can add to
its weights, or summed into the weights.
Source: W + alpha / r * B @ A, Hu et al. 2021 (LoRA), equation 3; A begins as in PEFT 0.21.2.

Axis letters: r rank, K inputs, N outputs of a layer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from cfgen.checkpoint.lora.alpha import HEADER
from cfgen.checkpoint.naming import to_diffusers
from cfgen.errors import UsageError
from cfgen.files.writing import write_file
from cfgen.model.generator import Generator, Linear

FACTORS = ("lora_A", "lora_B")
"""A [r, K] and B [N, r], as the last part of their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Size and place of the factors; rank 0 trains the weights themselves instead.

    Attributes:
        rank: r.
        alpha: the factors count alpha / r.
        layers: ends of the names of the layers in the generator's blocks that have factors.
        base: dtype of the weights of blocks, which stand still beside the factors.
    """

    rank: int = 0
    alpha: float = 128.0
    layers: tuple[str, ...] = ("q", "k", "v", "o", "ffn.0", "ffn.2")
    base: Literal["fp32", "bf16"] = "fp32"

    @property
    def scale(self) -> float:
        """What B @ A is multiplied by."""
        return self.alpha / self.rank


class LoraLinear(Linear):
    """A frozen linear layer, its weight and bias under their old names, with factors that learn."""

    def __init__(self, base: Linear, rank: int, scale: float, draw: torch.Generator) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        self.requires_grad_(False)
        lora_a = torch.empty(rank, base.in_features)
        nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5), generator=draw)
        device = base.weight.device
        self.lora_A = nn.Parameter(lora_a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N] in the weight's dtype; the factors compute in their own."""
        change = F.linear(F.linear(x.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        out = super().forward(x)
        return out + (self.scale * change).to(out.dtype)


def add_lora(generator: Generator, settings: LoraSettings, *, seed: int) -> list[nn.Parameter]:
    """Freeze a generator and give its layers factors; the sum is what it was, since B is zero.

    Args:
        generator: with plain weights; changed in place.
        settings: which layers.
        seed: of A.

    Returns:
        the factors, float32.

    Raises:
        UsageError: a name in `layers` fits no linear layer of the blocks, or one that is quantized.
    """
    generator.requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    found = _chosen(generator, settings.layers)
    for name, layer in found.items():
        generator.set_submodule(name, LoraLinear(layer, settings.rank, settings.scale, draw))
    return [p for p in generator.parameters() if p.requires_grad]


def _chosen(generator: Generator, ends: Sequence[str]) -> dict[str, Linear]:
    """The linear layers of the blocks whose names end so."""
    inner = {name: m for name, m in generator.named_modules() if name.startswith("blocks.")}
    found: dict[str, Linear] = {}
    for end in ends:
        fitting = {name: m for name, m in inner.items() if name.endswith(f".{end}")}
        plain = {name: m for name, m in fitting.items() if type(m) is Linear}
        if not fitting or len(plain) < len(fitting):
            odd = next((name for name in fitting if name not in plain), "none is named so")
            raise UsageError(
                f"LoRA layers: {end!r} must name plain linear layers of a block ({odd})",
                "use q, k, v, o, ffn.0 or ffn.2, and weights that are not quantized",
            )
        found |= plain
    return found


def save_lora(weights: Mapping[str, Tensor], settings: LoraSettings, path: Path) -> None:
    """Write the factors as diffusers does, with PEFT's settings in the header.

    Args:
        weights: of a generator with factors, by name; anything else in it is passed over.
        settings: those that it was made with.
        path: the file; its folder must exist.
    """
    tensors = {}
    for layer, *pair in _pairs(weights):
        theirs = to_diffusers(f"{layer}.weight").removesuffix(".weight")
        for factor, tensor in zip(FACTORS, pair, strict=True):
            tensors[f"transformer.{theirs}.{factor}.weight"] = tensor.detach().cpu().contiguous()
    layers = {re.sub(r"transformer\.blocks\.\d+\.|\.lora_[AB]\.weight", "", key) for key in tensors}
    facts = {
        "peft_type": "LORA",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "bias": "none",
        "target_modules": sorted(layers),
    }
    header = json.dumps({f"transformer.{key}": value for key, value in facts.items()})
    write_file(path, save(tensors, {"format": "pt", HEADER: header}), shared=True)


def merged(weights: Mapping[str, Tensor], settings: LoraSettings) -> dict[str, Tensor]:
    """Weights with the factors summed into them, as `checkpoint.lora` sums a file.

    Args:
        weights: of a generator with factors, by name.
        settings: those that it was made with.

    Returns:
        the weights of a plain generator, each in its own dtype; the sums are rounded once.
    """
    plain = {name: w for name, w in weights.items() if not name.endswith(FACTORS)}
    for layer, lora_a, lora_b in _pairs(weights):
        weight = plain[f"{layer}.weight"]
        wide = torch.promote_types(weight.dtype, torch.float32)
        a, b = (factor.detach().to(weight.device, wide) for factor in (lora_a, lora_b))
        total = torch.addmm(weight.detach().to(wide), b, a, alpha=settings.scale)
        plain[f"{layer}.weight"] = total.to(weight.dtype)
    return plain


def _pairs(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each layer with factors, its A and its B."""
    for name, tensor in weights.items():
        if name.endswith(".lora_A"):
            layer = name.removesuffix(".lora_A")
            yield layer, tensor, weights[f"{layer}.lora_B"]
