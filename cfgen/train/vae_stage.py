"""Stage `vae`: the autoencoder learns the film world from crops, the worst pixels weighed most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cfgen.checkpoint.vae import load_tiny
from cfgen.errors import CheckpointError
from cfgen.model.vae import MemBlock, TinyAutoencoder
from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.sampling import sample_film
from cfgen.train.film_world.world import render
from cfgen.train.muon import Muon


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeSettings:
    """Values of the stage: sizes in pixels and frames, weights of the loss terms."""

    latent_channels: int = 16
    encoder_width: int = 32
    decoder_widths: tuple[int, ...] = (128, 64, 32, 32)
    lr: float = 7e-4
    crop: int = 64
    frames: int = 9
    films: int = 4
    crops_per_film: int = 3
    width: int = 160
    height: int = 96
    worst: float = 0.25
    moment: float = 0.02
    noise: float = 0.2


class VaeStage:
    """See `loop.Stage`.

    Latents are kept near zero mean and unit variance, so no scale need be stored.
    """

    name = "vae"

    def __init__(self, settings: VaeSettings, model_dir: Path) -> None:
        self.settings = settings
        self.model_dir = model_dir
        torch.manual_seed(1)
        vae = TinyAutoencoder(
            settings.latent_channels, settings.encoder_width, settings.decoder_widths
        )
        self.vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.modules = nn.ModuleDict({"vae": self.vae})
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Gains for ReLU, quiet residual branches, and latents of unit moments on a first batch."""
        for module in self.vae.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    module.bias.zero_()
        for module in self.vae.modules():
            if isinstance(module, MemBlock):
                first, second, third = (c for c in module.conv if isinstance(c, nn.Conv2d))
                nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
                nn.init.kaiming_normal_(second.weight, nonlinearity="relu")
                third.weight *= 0.1
        entry, out = self.vae.encoder[0], self.vae.decoder[-1]
        entry.bias.copy_(-0.5 * entry.weight.sum((1, 2, 3)))
        out.weight *= 0.1
        out.bias.fill_(0.5)
        last = self.vae.encoder[-1]
        for _ in range(2):
            flat = self.vae.encode(self.batch(-1)).transpose(0, 2).flatten(1)
            scale = flat.std(1)
            last.weight /= scale[:, None, None, None]
            last.bias.copy_((last.bias - flat.mean(1)) / scale)

    def begin_from(self, folder: Path) -> None:
        """Take the autoencoder of a model folder instead of a random one.

        Raises:
            CheckpointError: it is missing, damaged or of other widths.
        """
        vae = load_tiny(folder / "tae.safetensors", dtype=torch.float32)
        try:
            self.vae.load_state_dict(vae.state_dict())
        except RuntimeError as error:  # torch's word for other names or shapes
            raise CheckpointError(
                f"the autoencoder in {folder} has other widths than the settings of stage vae",
                "leave out --start, or set the widths of that autoencoder",
            ) from error

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the inner convolutions; AdamW for biases and the layers that touch pixels."""
        edges = (self.vae.encoder[0].weight, self.vae.decoder[-1].weight)
        inner = [
            p for p in self.vae.parameters() if p.ndim > 1 and all(p is not edge for edge in edges)
        ]
        rest = [p for p in self.vae.parameters() if p.ndim == 1 or any(p is edge for edge in edges)]
        return [
            Muon(inner, lr=self.settings.lr),
            torch.optim.AdamW(rest, lr=self.settings.lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def batch(self, step: int) -> Tensor:
        """Random crops of random films: [films * crops_per_film, T, 3, crop, crop] in [0, 1]."""
        s = self.settings
        crops = []
        for i in range(s.films):
            rng = rng_for("vae", step, i)
            film = sample_film(int(rng.integers(2**62)), chunks=8)
            start = int(rng.integers(0, film.frames - s.frames + 1))
            video = render(film, start, start + s.frames, width=s.width, height=s.height)
            for _ in range(s.crops_per_film):
                y = int(rng.integers(0, s.height - s.crop + 1))
                x = int(rng.integers(0, s.width - s.crop + 1))
                crops.append(video[:, y : y + s.crop, x : x + s.crop])
        clip = torch.from_numpy(np.stack(crops)).permute(0, 1, 4, 2, 3)
        return clip.to(next(self.vae.parameters()).device).float() / 255

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """L1, squared error, mean of the worst 2 % of values, a pull of latents to unit moments."""
        s = self.settings
        video = self.batch(step)
        latents = self.vae.encode(video)
        generator = torch.Generator().manual_seed(step)
        strength = s.noise * torch.rand(len(video), 1, 1, 1, 1, generator=generator)
        noise = strength * torch.randn(latents.shape, generator=generator)
        out = self.vae.decode(latents + noise.to(latents)).float()
        error = (out - video).abs()
        worst = error.flatten(1).topk(error[0].numel() // 50, dim=1).values.mean()
        moment = _moments(latents.float())
        mse = error.square().mean()
        total = error.mean() + 2 * mse + s.worst * worst + s.moment * moment
        psnr = -10 * float(torch.log10(mse.detach()))
        return total, {
            "psnr": psnr,
            "worst": float(worst.detach()),
            "moment": float(moment.detach()),
        }

    def measure(self) -> dict[str, float]:
        """Nothing: its loss is on films that it has never seen."""
        return {}

    def export(self, weights: Mapping[str, Tensor]) -> None:
        """Write `tae.safetensors` in bfloat16."""
        self.model_dir.mkdir(parents=True, exist_ok=True)
        state = {
            n.removeprefix("vae."): t.detach().cpu().to(torch.bfloat16).contiguous()
            for n, t in weights.items()
        }
        save_file(state, self.model_dir / "tae.safetensors", metadata={"format": "pt"})


def _moments(latents: Tensor) -> Tensor:
    """How far channels of [B, F, C, h, w] are from zero mean, unit variance and no correlation."""
    flat = latents.transpose(0, 2).flatten(1)
    mean = flat.mean(1, keepdim=True)
    covariance = (flat - mean) @ (flat - mean).T / flat.shape[1]
    off_unit = covariance - torch.eye(len(covariance), device=covariance.device)
    return mean.square().mean() + off_unit.square().mean()
