"""The release's window cut: what a contiguous context begins with is encoded anew, as a picture.

An autoencoder that is causal gives a clip's first latent frame one picture and all others four. The
context of a long rollout begins in the middle of it, so its first latent is put in the place of one
that begins a clip: its last picture, encoded by itself.
Source: described in the release of Context Forcing, arXiv 2602.06028.

Axis letters: B batch, F latent frames, C channels, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cfgen.model.vae import TinyAutoencoder
from cfgen.model.wan_vae import WanAutoencoder
from cfgen.train.context_forcing.self_rollout import ChunkRecord

Reencode = Callable[[Tensor], Tensor]
"""Latents [B, F, C, h, w] from a clip's beginning on, to that of its last picture, [B, C, h, w]."""


def reencoder(vae: TinyAutoencoder | WanAutoencoder) -> Reencode:
    """Decode with an autoencoder, and encode the last picture by itself."""
    weight = next(vae.parameters())

    @torch.no_grad()
    def reencode(latents: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            state = vae.start()
            for latent in torch.split(latents.to(weight), 1, dim=1):
                frames = vae.decode(latent, state)
            picture = frames[:, -1:].clamp(0, 1).to(weight.dtype)
            return vae.encode(picture)[:, 0].to(latents)

    return reencode


def first_latent(
    record: Sequence[ChunkRecord], targets: int, context_frames: int, reencode: Reencode
) -> Tensor | None:
    """What stands for the latent frame that a context begins with, [B, C, h, w].

    Args:
        record: every chunk of a rollout.
        targets: how many of them, the last ones, follow the context.
        context_frames: latent frames of the context.
        reencode: see `Reencode`.

    Returns:
        None where the rollout is shorter than context and targets together.
    """
    at = record[len(record) - targets].start - context_frames
    if at < 0:
        return None
    whole = torch.cat([chunk.committed for chunk in record if chunk.start <= at], 1)
    return reencode(whole[:, : at + 1])
