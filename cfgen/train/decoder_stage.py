"""Stage `decoder`: the decoder learns to show what the generator makes.

What a generator makes is not what an encoder does: it is softer where the generator is unsure. So
the decoder learns on from one-step predictions of noised true latents, which show the same picture
as the truth does, beside a share of true ones. Films are two chunks long, and a share of them cuts
between: a decoder that sees no cuts lets the old scene shine through the new. Encoder and generator
stand still.

Axis letters: B batch, F latent frames, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.checkpoint.networks.text_encoder import load_text_encoder
from cfgen.errors import UsageError
from cfgen.memory.window import FullMemory
from cfgen.model.generator import Conditioning
from cfgen.rollout.loop import commit_chunk, predict_flow
from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.captions import caption
from cfgen.train.film_world.latents import CHUNK_LATENTS
from cfgen.train.film_world.world import Film
from cfgen.train.shots import shot_by_chunk
from cfgen.train.stage import Learner
from cfgen.train.training_memory import training_memory
from cfgen.train.vae_clips import draw_openings
from cfgen.train.vae_stage import VaeSettings, VaeStage


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderSettings:
    """Values of the stage.

    Attributes:
        lr: peak learning rate.
        films: films of a batch.
        crops_per_film: crops of each that are decoded.
        crop: width and height of a crop in pixels, multiples of a latent cell.
        true_share: share of films whose true latents are decoded.
        cut_share: share of films that cut to another place.
        noise: lowest and highest noise level that a prediction is made from.
        guidance: lowest and highest scale of the prompt's guidance.
        micro_batches: batches of a step that each process makes.
    """

    lr: float = 1.5e-3
    films: int = 3
    crops_per_film: int = 2
    crop: tuple[int, int] = (96, 96)
    true_share: float = 0.2
    cut_share: float = 0.4
    noise: tuple[float, float] = (0.15, 0.8)
    guidance: tuple[float, float] = (1.0, 3.0)
    micro_batches: int = 1


class DecoderStage(VaeStage):
    """Trains the decoder of a model folder on latents of its generator.

    Args:
        settings: of the autoencoder, which weigh the errors, too.
        own: of the stage.
        folder: the model's folder; its autoencoder is replaced.

    Raises:
        CheckpointError: a file of the folder is missing, damaged or of other sizes.
        UsageError: a crop is no whole number of latent cells.
    """

    name = "decoder"

    def __init__(self, settings: VaeSettings, own: DecoderSettings, folder: Path) -> None:
        super().__init__(
            replace(settings, train_encoder=False, lr=own.lr, micro_batches=own.micro_batches),
            folder,
        )
        self.own = own
        stride = self.vae.spatial_stride
        if any(side < stride or side % stride for side in own.crop):
            raise UsageError(
                f"decoder.crop must be multiples of {stride} pixels, a latent cell, got {own.crop}",
                f"set decoder.crop to such a size, for example [{6 * stride}, {6 * stride}]",
            )
        self.begin_from(folder)
        self.generator = load_generator(folder, expand=True).float()
        self.text_encoder = load_text_encoder(
            folder / "text_encoder",
            folder / "tokenizer" / "tokenizer.json",
            text_len=self.generator.geometry.text_len,
            expand=True,
        ).float()
        for name in ("generator", "text_encoder"):
            self.modules[name] = getattr(self, name).requires_grad_(False).eval()

    def learners(self) -> Sequence[Learner]:
        """One, for the autoencoder."""
        self._learner = Learner("", list(self.vae.parameters()), self.optimizers())
        return [self._learner]

    def loss(self, step: int, draw: int) -> tuple[Tensor, dict[str, float]]:
        """Errors of crops decoded from predicted latents, or of a share of films from true ones."""
        s, own = self.settings, self.own
        openings = draw_openings(
            *("decoder", draw),
            films=own.films,
            crops_per_film=own.crops_per_film,
            crop=own.crop,
            size=(s.width, s.height),
            stride=self.vae.spatial_stride,
            cut_share=own.cut_share,
        )
        video, weight = self.pixels(openings.clips)
        told = torch.from_numpy(openings.clips.semantics).to(self.device)
        noise = torch.Generator().manual_seed(draw)
        with torch.no_grad():
            texture = self.vae.encode(video)[:, :, : s.texture_channels]
            true = torch.cat([texture.float(), told], 2)
            made = self._predicted(true, openings.films, draw, noise)
            coin = torch.rand(own.films, 1, 1, 1, 1, generator=noise).to(true)
            latents = torch.where(coin < own.true_share, true, made)
        stride, (width, height) = self.vae.spatial_stride, own.crop

        def cut(whole: Tensor, cell: int) -> Tensor:
            rows, columns = height // stride * cell, width // stride * cell
            parts = [
                whole[film, ..., y * cell : y * cell + rows, x * cell : x * cell + columns]
                for film, y, x in openings.corners
            ]
            return torch.stack(parts)

        return self.errors(cut(latents, 1), cut(video, stride), cut(weight, stride))

    def _predicted(
        self, true: Tensor, films: list[Film], draw: int, noise: torch.Generator
    ) -> Tensor:
        """What the generator takes noised films [B, F, C, h, w] for, in one step a chunk."""
        rng = rng_for("decoder captions", draw)

        def between(lowest: float, highest: float) -> Tensor:
            even = torch.rand(len(films), 1, 1, 1, 1, generator=noise)
            return (lowest + (highest - lowest) * even).to(true)

        level, scale = between(*self.own.noise), between(*self.own.guidance)
        size = (CHUNK_LATENTS, *true.shape[-2:])
        memory = training_memory(FullMemory(), None, self.generator, size)
        silent = self._conditioning([""] * len(films))
        chunks = []
        for number, clean in enumerate(torch.split(true, CHUNK_LATENTS, 1)):
            shots = [shot_by_chunk(film)[number] for film in films]
            words = [
                caption(film, shot, int(rng.integers(2**62)))
                for film, shot in zip(films, shots, strict=True)
            ]
            told = self._conditioning(words)
            x = (1 - level) * clean + level * torch.randn(clean.shape, generator=noise).to(true)
            view = memory.begin(CHUNK_LATENTS)
            free, flow = (
                predict_flow(self.generator, x, level[:, :, 0, 0, 0], text, view).float()
                for text in (silent, told)
            )
            chunks.append(x - level * (free + scale * (flow - free)))
            commit_chunk(self.generator, memory, view, clean, told)
        return torch.cat(chunks, 1)

    def _conditioning(self, prompts: list[str]) -> Conditioning:
        return self.generator.condition(self.text_encoder(prompts))
