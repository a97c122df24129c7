"""Student, teacher and critic: generators that learn in full, by LoRA factors, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.model.generator import Generator
from cfgen.train.context_forcing.lora import LoraSettings, add_lora


@dataclass(frozen=True, slots=True)
class Role:
    """A generator and what of it learns.

    Attributes:
        generator: the network.
        lora: its factors; rank 0 if it has none.
    """

    generator: Generator
    lora: LoraSettings

    @classmethod
    def learning(cls, path: Path, lora: LoraSettings, *, seed: int = 0) -> Role:
        """A generator that learns: all of it in float32, or factors beside it.

        Args:
            path: a model folder, or a file of weights.
            lora: rank 0 has all weights learn.
            seed: of the factors.

        Raises:
            CheckpointError: there is no generator, or it is damaged.
            UsageError: the layers of `lora` cannot have factors.
        """
        generator = load_generator(path, expand=True, untrained=True)
        if lora.rank:
            add_lora(generator, lora, seed=seed)
        else:
            generator.requires_grad_(True)
        return cls(generator, lora)

    @classmethod
    def frozen(cls, path: Path, dtype: torch.dtype) -> Role:
        """A generator that stands still, the matrices of its blocks in a dtype.

        Raises:
            CheckpointError: there is no generator, or it is damaged.
        """
        return cls(load_generator(path, expand=True, dtype=dtype, untrained=True), LoraSettings())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns."""
        return [p for p in self.generator.parameters() if p.requires_grad]

    def weights(self, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights by name, those in `learnt` instead of the generator's own."""
        own = {name: p.detach() for name, p in self.generator.named_parameters()}
        return own | dict(learnt)
