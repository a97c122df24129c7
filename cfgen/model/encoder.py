"""What makes latents of frames, as a stream: the autoencoders that have an encoder.

Axis letters: B batch, T frames (pixels), F latent frames, C channels, H W grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from cfgen.model.vae import State


class Encoder(Protocol):
    """What makes latents of frames; clips may be encoded by turns, each with a state of its own."""

    @property
    def spatial_stride(self) -> int:
        """Pixels that a latent cell covers along each axis."""

    def start_encoding(self) -> State:
        """The state before the first frame."""

    def encode(self, video_BTCHW: Tensor, state: State | None = None) -> Tensor:
        """Latents of the next frames of a clip.

        Args:
            video_BTCHW: [B, T, 3, H, W] in [0, 1], where the weights are, H and W divisible by the
                stride s. At the start of a clip T is 1, 5, 9, ..., later 4, 8, 12, ...
            state: what `start_encoding` gave; changed in place, so that the next call goes on.
                None encodes one whole clip.

        Returns:
            [B, F, C, H / s, W / s], normalised; the first frame of a clip is a latent frame by
            itself, and so are each four later ones.

        Raises:
            ValueError: the frames are no whole latent frames.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights; they tell dtype and device."""
