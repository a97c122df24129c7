"""Latents of films, encoded once and kept on disk, so that a training step need not render."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from cfgen.atomic_files import write_whole
from cfgen.model.vae import SPATIAL_STRIDE, TEMPORAL_STRIDE, TinyAutoencoder
from cfgen.regular_files import read_bytes
from cfgen.train.world import render, sample_film, subject_centres


class LatentStore:
    """Films by number: encoded when first asked for, then read from files.

    Args:
        folder: where encoded clips are kept; one folder per autoencoder.
        vae: the trained autoencoder.
        latent_frames: length of a stored clip. The encoder is causal: a shorter clip is its start.
        width: frame width in pixels.
        height: frame height in pixels.
    """

    def __init__(
        self,
        folder: Path,
        vae: TinyAutoencoder,
        *,
        latent_frames: int,
        width: int = 160,
        height: int = 96,
    ) -> None:
        self.folder = folder
        self.vae = vae.eval()
        self.channels = vae.latent_channels
        self.latent_frames = latent_frames
        self.size = (width, height)
        folder.mkdir(parents=True, exist_ok=True)

    def clips(self, ids: Sequence[int], latent_frames: int) -> tuple[Tensor, Tensor]:
        """The first latent frames of films; at most as many as a stored clip has.

        Returns:
            latents [B, F, C, h, w] float32 and where subjects are, [B, F, h, w] in {0, 1}.
        """
        pairs = [self._clip(i) for i in ids]
        latents, subjects = (
            torch.stack([pair[i][:latent_frames].float() for pair in pairs]) for i in (0, 1)
        )
        return latents, subjects

    def _clip(self, number: int) -> tuple[Tensor, Tensor]:
        path = self.folder / f"{number:06d}-{self.latent_frames:02d}.safetensors"
        if path.exists():
            stored = load(read_bytes(path))
            return stored["latents"], stored["subjects"]
        frames = 1 + TEMPORAL_STRIDE * (self.latent_frames - 1)
        video = render(sample_film(number), 0, frames, width=self.size[0], height=self.size[1])
        parameter = next(self.vae.parameters())
        pixels = torch.from_numpy(video).permute(0, 3, 1, 2)[None]
        pixels = pixels.to(parameter.device, parameter.dtype) / 255
        with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
            latents = self.vae.encode(pixels)[0].to(torch.float16).cpu().contiguous()
        subjects = self._subjects(number, self.latent_frames)
        write_whole(path, save({"latents": latents, "subjects": subjects}))
        return latents, subjects

    def _subjects(self, number: int, latent_frames: int) -> Tensor:
        """Cells of 8x8 pixels near a subject at each latent frame: [F, h, w] uint8."""
        width, height = self.size
        scale = height / 96
        film = sample_film(number)
        frames = np.arange(latent_frames) * TEMPORAL_STRIDE
        centres = subject_centres(film, frames, width / scale) * scale
        y = (np.arange(height // SPATIAL_STRIDE) + 0.5) * SPATIAL_STRIDE
        x = (np.arange(width // SPATIAL_STRIDE) + 0.5) * SPATIAL_STRIDE
        near_x = np.abs(x - centres[..., 0, None]) < 20 * scale
        near_y = np.abs(y - centres[..., 1, None] - 2 * scale) < 24 * scale
        mask = (near_y[..., :, None] & near_x[..., None, :]).any(0)
        return torch.from_numpy(mask.astype(np.uint8))
