"""Stage `vae`: the autoencoder learns the film world from crops, the worst pixels weighed most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgen.checkpoint.convert.quantize import save_quantized
from cfgen.checkpoint.networks.vae import SEMANTIC_HEADER, load_tiny
from cfgen.errors import CheckpointError
from cfgen.model.vae import MemBlock, TGrow, TinyAutoencoder
from cfgen.train.film_world.semantics import SEMANTIC_CHANNELS
from cfgen.train.muon import Muon
from cfgen.train.stage import SingleLossStage
from cfgen.train.vae_clips import Clips, draw_clips

INT8_FROM = 2**12
"""Numbers of a kernel from which on it is stored in int8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeSettings:
    """Values of the stage: sizes in pixels and frames, weights of the loss terms.

    Latents have `texture_channels` and then the semantic ones (`film_world/semantics.py`).
    `objects` is what a pixel on a subject or landmark counts more than another. Without
    `train_encoder` the decoder alone learns, so that latents encoded before stay what they are.
    `noise` is the largest standard deviation of the noise on latents when they are decoded. For a
    share `true_semantics` of clips, the decoder reads the semantic channels of the world, as
    generators learn to make them, and for the others those of the encoder. A process makes
    `micro_batches` batches of a step.
    """

    texture_channels: int = 32
    encoder_width: int = 48
    decoder_widths: tuple[int, ...] = (160, 80, 40, 32)
    patch_size: int = 2
    lr: float = 2e-3
    crop: tuple[int, int] = (128, 128)
    frames: int = 9
    films: int = 2
    crops_per_film: int = 4
    width: int = 320
    height: int = 192
    squares: float = 2.0
    worst: float = 0.25
    change: float = 0.5
    edges: float = 0.3
    objects: float = 2.0
    moment: float = 0.02
    semantics: float = 0.1
    noise: float = 0.15
    true_semantics: float = 0.5
    train_encoder: bool = True
    micro_batches: int = 1


class VaeStage(SingleLossStage):
    """Trains encoder and decoder together.

    Texture is kept near zero mean and unit variance, so no scale need be stored. The semantic
    channels learn from the world alone: the decoder reads them, but does not form them.
    """

    name = "vae"

    def __init__(self, settings: VaeSettings, model_dir: Path) -> None:
        self.settings, self.micro_batches = settings, settings.micro_batches
        self.model_dir = model_dir
        torch.manual_seed(1)
        vae = TinyAutoencoder(
            settings.texture_channels + SEMANTIC_CHANNELS,
            settings.encoder_width,
            settings.decoder_widths,
            patch_size=settings.patch_size,
        )
        vae.semantic_channels = SEMANTIC_CHANNELS
        self.vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.modules = nn.ModuleDict({"vae": self.vae})
        self._initialise()
        self.vae.encoder.requires_grad_(settings.train_encoder)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Gains for ReLU, quiet residual branches, and latents of unit moments on a first batch.

        The frames of a latent frame begin alike: what does not move need not learn to stand still.
        """
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
            elif isinstance(module, TGrow):
                alike = module.conv.weight[: len(module.conv.weight) // module.stride]
                module.conv.weight.copy_(alike.repeat(module.stride, 1, 1, 1))
        entry, out = self.vae.encoder[0], self.vae.decoder[-1]
        entry.bias.copy_(-0.5 * entry.weight.sum((1, 2, 3)))
        out.weight *= 0.1
        out.bias.fill_(0.5)
        last = self.vae.encoder[-1]
        for _ in range(2):
            flat = self.vae.encode(self.batch(-1)[0]).transpose(0, 2).flatten(1)
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
        learnt = [p for p in self.vae.parameters() if p.requires_grad]
        inner = [p for p in learnt if p.ndim > 1 and all(p is not edge for edge in edges)]
        rest = [p for p in learnt if p.ndim == 1 or any(p is edge for edge in edges)]
        return [
            Muon(inner, lr=self.settings.lr),
            torch.optim.AdamW(rest, lr=self.settings.lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def batch(self, draw: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random crops of random films, B = films * crops_per_film.

        Returns:
            [B, T, 3, H, W] in [0, 1]; what each pixel counts, with mean 1, [B, T, 1, H, W]; and the
            semantic channels of the latents, [B, F, SEMANTIC_CHANNELS, h, w]; float32.
        """
        s = self.settings
        clips = draw_clips(
            *("vae", draw),
            films=s.films,
            crops_per_film=s.crops_per_film,
            frames=s.frames,
            crop=s.crop,
            size=(s.width, s.height),
            stride=self.vae.spatial_stride,
        )
        return (*self.pixels(clips), torch.from_numpy(clips.semantics).to(self.device))

    def pixels(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """Clips as [B, T, 3, H, W] in [0, 1], and what each pixel counts, with mean 1."""
        video = torch.from_numpy(clips.video).to(self.device).permute(0, 1, 4, 2, 3).float() / 255
        objects = torch.from_numpy(clips.objects).to(self.device)[:, :, None].float()
        weight = 1 + self.settings.objects * objects
        return video, weight / weight.mean()

    @property
    def device(self) -> torch.device:
        """Where the autoencoder is."""
        first: Tensor = next(self.vae.parameters())
        return first.device

    def loss(self, step: int, draw: int) -> tuple[Tensor, dict[str, float]]:
        """Errors of decoded clips and of semantic channels; texture is pulled to unit moments."""
        s = self.settings
        video, weight, told = self.batch(draw)
        texture, said = self.vae.encode(video).split((s.texture_channels, SEMANTIC_CHANNELS), 2)
        missaid = (said.float() - told).square().mean()
        generator = torch.Generator().manual_seed(draw)
        strength, coin = torch.rand(2, len(video), 1, 1, 1, 1, generator=generator)
        semantics = torch.where(coin.to(told) < s.true_semantics, told.to(said), said.detach())
        latents = torch.cat([texture, semantics], 2)
        strength = s.noise * strength
        noise = (strength * torch.randn(latents.shape, generator=generator)).to(latents)
        moment = _moments(texture.float())
        shown, figures = self.errors(latents + noise, video, weight)
        total = shown + s.moment * moment + s.semantics * missaid
        return total, figures | {
            "moment": float(moment.detach()),
            "semantics": float(missaid.detach()),
        }

    def errors(
        self, latents: Tensor, video: Tensor, weight: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of the decoder alone.

        It is made of L1, squares, the mean of the worst 2 % of values, the error of the change
        from frame to frame, and that of the change from pixel to pixel.

        Args:
            latents: [B, F, C, h, w].
            video: what they show, [B, T, 3, H, W] in [0, 1].
            weight: what each pixel counts, with mean 1, [B, T, 1, H, W].
        """
        s = self.settings
        error = self.vae.decode(latents).float() - video
        size = error.abs()
        worst = size.flatten(1).topk(size[0].numel() // 50, dim=1, sorted=False).values.mean()
        change = (weight[:, 1:] * error.diff(dim=1).abs()).mean()
        edges = sum((weight * _steps(error, axis).abs()).mean() for axis in (-1, -2))
        total = (
            (weight * size).mean()
            + s.squares * (weight * error.square()).mean()
            + s.worst * worst
            + s.change * change
            + s.edges * edges
        )
        return total, {
            "psnr": -10 * math.log10(float(error.detach().square().mean())),
            "worst": float(worst.detach()),
            "change": 255 * float(change.detach()),
        }

    def export(self, weights: Mapping[str, Tensor]) -> None:
        """Write `tae.safetensors`; see `save_autoencoder`."""
        self.model_dir.mkdir(parents=True, exist_ok=True)
        state = {name.removeprefix("vae."): tensor for name, tensor in weights.items()}
        save_autoencoder(state, self.model_dir / "tae.safetensors")


def save_autoencoder(state: Mapping[str, Tensor], path: Path) -> None:
    """Write an autoencoder of the stage: inner convolutions in int8, the rest in bfloat16.

    The header tells its semantic channels. In int8, pictures lose nothing: 26.62 dB against 26.61
    in bfloat16 (`python tests/bench/autoencoder.py FILE --films 2`, a core of a Xeon).

    Args:
        state: its weights by name.
        path: the file, replaced if it is there.

    Raises:
        OutputRefused: the file cannot be written.
    """
    kept = {name: tensor.detach().cpu().to(torch.bfloat16) for name, tensor in state.items()}
    told = {"format": "pt", SEMANTIC_HEADER: str(SEMANTIC_CHANNELS)}
    save_quantized(kept, path, _is_inner, told)


def _is_inner(name: str, weight: Tensor) -> bool:
    """Whether a tensor is the kernel of a block: latents and pixels are its neighbours' matter."""
    return ".conv." in name and weight.ndim == 4 and weight.numel() >= INT8_FROM


def _steps(error: Tensor, axis: int) -> Tensor:
    """Differences of neighbours along an axis, of the same shape: the last one is zero."""
    last = error.narrow(axis, error.shape[axis] - 1, 1)
    return error.diff(dim=axis, append=last)


def _moments(latents: Tensor) -> Tensor:
    """How far channels of [B, F, C, h, w] are from zero mean, unit variance and no correlation."""
    flat = latents.transpose(0, 2).flatten(1)
    mean = flat.mean(1, keepdim=True)
    covariance = (flat - mean) @ (flat - mean).T / flat.shape[1]
    off_unit = covariance - torch.eye(len(covariance), device=covariance.device)
    return mean.square().mean() + off_unit.square().mean()
