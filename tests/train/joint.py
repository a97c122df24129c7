"""A step of stages with one loss, in one process or in one of two: weights into a folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cfgen.model.vae import TinyAutoencoder
from cfgen.train.export import Exporter
from cfgen.train.film_world.latents import LatentStore
from cfgen.train.flow_matching_settings import FlowMatchingSettings
from cfgen.train.flow_matching_stage import FlowMatchingStage
from cfgen.train.loop import train
from cfgen.train.processes import process
from cfgen.train.stage import LoopSettings, SingleLossStage
from cfgen.train.tokenizer_stage import train_tokenizer
from cfgen.train.training_memory import MemorySettings
from cfgen.train.vae_stage import VaeSettings, VaeStage

STEP = LoopSettings(steps=1, warmup=0, decay=0.0, log_every=1, precision="no", clip=1e9, ema=0.0)
STEPS = dataclasses.replace(STEP, steps=2, clip=1.0, ema=0.5)


class Curve(SingleLossStage):
    """A network in float64 whose weights change by their gradients, one to one.

    Args:
        films: Films of a batch; those of batch n are the same however many each batch has.
    """

    name = "curve"

    def __init__(self, films: int) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)).double()
        self.modules, self.films = nn.ModuleDict({"net": net}), films

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.modules.parameters(), lr=1.0)]

    def loss(self, step: int, draw: int) -> tuple[Tensor, dict[str, float]]:
        numbers = range(draw * self.films, (draw + 1) * self.films)
        drawn = [torch.Generator().manual_seed(number) for number in numbers]
        x = torch.stack([torch.randn(16, 6, generator=g, dtype=torch.float64) for g in drawn])
        return (self.modules["net"](x) - x.flip(-1)).square().mean(), {}

    def export(self, weights: Mapping[str, Tensor]) -> None:
        pass


def curve(_folder: Path, batches: int) -> SingleLossStage:
    """One process has the films of both in one batch."""
    return Curve(films=2 * batches)


def vae(folder: Path, batches: int) -> SingleLossStage:
    widths = {"texture_channels": 4, "encoder_width": 8, "decoder_widths": (8, 8, 8, 8)}
    small = VaeSettings(crop=(32, 32), frames=5, films=1, micro_batches=batches, **widths)
    return VaeStage(small, folder)


def base(folder: Path, batches: int) -> SingleLossStage:
    torch.manual_seed(0)
    store = LatentStore(
        folder / "latents", TinyAutoencoder(4, 8, (8, 8, 8, 8)), width=80, height=48
    )
    tokenizer = train_tokenizer(folder / "model", captions=100)
    sizes = {"dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 2}
    text = {"text_dim": 16, "text_layers": 1, "text_ffn": 16}
    films = {"families": 2, "members": 2, "chunks": (1, 2, 2, 2), "batches": (2, 2, 1, 1)}
    settings = FlowMatchingSettings(
        trained=(1, 2, 2, 2), draws=2, first_draws=2, crops=4, micro_batches=batches,
        **sizes, **text, **films,
    )  # fmt: skip
    return FlowMatchingStage(settings, MemorySettings(), store, tokenizer, Exporter(folder))


Make = Callable[[Path, int], SingleLossStage]
CASES: dict[str, tuple[Make, LoopSettings]] = {
    "curve": (curve, STEP),
    "vae": (vae, STEPS),
    "base": (base, STEPS),
}
"""How a stage is made, with the number of batches of a process, and how long it trains."""


def trained(folder: Path, case: str, *, batches: int) -> None:
    """Train, and write all weights as this process has them."""
    torch.set_num_threads(1)  # with more, convolutions sum in another order
    own = folder / f"process {process()[0]}"
    own.mkdir(parents=True, exist_ok=True)
    make, loop = CASES[case]
    stage = make(own, batches)
    for _ in train(stage, folder, loop, minutes=2):
        pass
    weights = {name: p.detach().contiguous() for name, p in stage.modules.named_parameters()}
    save_file(weights, own / "all.safetensors")


def main(folder: Path) -> None:
    for case in CASES:
        trained(folder / case, case, batches=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
