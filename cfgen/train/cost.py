"""What passes of a generator cost to train: arithmetic, and what is kept for gradients.

Nothing is loaded: all is told from sizes. Figures of time are estimates; see `DEVICES`.
Counted as in "Scaling Laws for Neural Language Models", arXiv 2001.08361: two operations for each
weight and token, those of attention beside, and twice as much backwards as forwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cfgen.checkpoint.networks.fill import MATRICES, shapes_of
from cfgen.model.generator import Generator, WanConfig
from cfgen.train.context_forcing.lora import LoraSettings

DEVICES: Mapping[str, float] = {
    "B200": 2250,
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "RTX 5090": 209,
    "RTX 4090": 165,
    "CPU": 0.16,
}
"""Most TFLOP/s of devices in bfloat16 without sparsity, by their makers; of a CPU, two cores that
do 32 operations in float32 a cycle at 2.5 GHz."""

USED = 0.4
"""Share of it that training comes to: an estimate, usual for transformers of these sizes."""

KEPT = {"bf16": (76, 4), "fp16": (76, 4), "no": (96, 8)}
"""Bytes that a token of a block keeps for gradients, for each channel of the width and of the
feed-forward layer (counted by hooks on what autograd saves, torch 2.13)."""

UMT5_XXL = 5_680_910_336
"""Weights of Wan's text encoder."""


def device_tflops(name: str) -> float | None:
    """Estimated TFLOP/s of a device in training, or None if it is not known."""
    found = {each.lower(): peak for each, peak in DEVICES.items()}.get(name.lower())
    return None if found is None else USED * found


@dataclass(frozen=True, slots=True)
class Network:
    """A generator that makes passes over latent frames of one size.

    Attributes:
        sizes: of it.
        latent_size: rows and columns of a latent frame.
        lora: its factors, if it has any.
        learns: whether it is trained at all.
        still: number type of its matrices where they do not learn.
    """

    sizes: WanConfig
    latent_size: tuple[int, int]
    lora: LoraSettings = LoraSettings()
    learns: bool = True
    still: torch.dtype = torch.float32

    @property
    def tokens(self) -> int:
        """Tokens of a latent frame."""
        return math.prod(self.sizes.grid(*self.latent_size))

    @property
    def weights(self) -> int:
        """Weights without factors."""
        return sum(map(math.prod, shapes_of(Generator, self.sizes).values()))

    @property
    def factors(self) -> int:
        """Weights of the factors."""
        shapes, rank = shapes_of(Generator, self.sizes), self.lora.rank
        ends = tuple(f".{end}.weight" for end in self.lora.layers)
        chosen = [s for n, s in shapes.items() if MATRICES.fullmatch(n) and n.endswith(ends)]
        return sum(rank * (rows + columns) for rows, columns in chosen)

    @property
    def learnt(self) -> int:
        """Weights that learn."""
        if not self.learns:
            return 0
        return self.factors if self.lora.rank else self.weights

    @property
    def weights_nbytes(self) -> int:
        """Bytes of all weights: float32 if they learn, matrices in `still` if they do not."""
        if self.learns and not self.lora.rank:
            return 4 * self.weights
        shapes = shapes_of(Generator, self.sizes)
        sizes = {
            n: math.prod(s) * (self.still.itemsize if MATRICES.fullmatch(n) else 4)
            for n, s in shapes.items()
        }
        return sum(sizes.values()) + 4 * self.learnt

    def forward(self, frames: float, keys: float) -> float:
        """Operations of a pass over so many latent frames, each of which reads `keys` of them."""
        g = self.sizes
        linear = 12 * g.dim**2 + 4 * g.dim * g.ffn_dim + 2 * self.factors / g.num_layers
        attention = 4 * g.dim * (keys * self.tokens + g.text_len)
        ends = 2 * g.dim * math.prod(g.patch_size) * (g.in_dim + g.out_dim)
        return frames * self.tokens * (g.num_layers * (linear + attention) + ends)

    def prompt(self) -> float:
        """Operations of reading an encoded prompt for all layers."""
        g = self.sizes
        embedding = 2 * g.dim * (g.text_dim + g.dim)
        return g.text_len * (embedding + 4 * g.num_layers * g.dim**2)

    def backward(self, *, recompute: bool) -> float:
        """Operations of gradients over those of the pass; frozen matrices need half of them."""
        return (1.0 if self.lora.rank else 2.0) + recompute

    def kept_nbytes(self, frames: float, precision: str, *, recompute: bool) -> int:
        """Bytes that a pass over so many latent frames keeps for its gradients."""
        g = self.sizes
        width, inner = KEPT[precision]
        block = width * g.dim + inner * g.ffn_dim
        blocks = 4 * g.dim * g.num_layers + block if recompute else block * g.num_layers
        return round(frames * self.tokens * blocks)

    def cache_nbytes(self, frames: float, precision: str) -> int:
        """Bytes of keys and values of so many latent frames in all layers."""
        size = 4 if precision == "no" else 2
        g = self.sizes
        return round(2 * size * g.num_layers * frames * self.tokens * g.dim)
