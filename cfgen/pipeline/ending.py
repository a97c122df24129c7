"""What a render ends with: a picture; looked at before anything loads."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from torch import Tensor

from cfgen.checkpoint.networks.network import Network
from cfgen.config.schema import RenderConfig
from cfgen.model.tiled import TiledDecoder
from cfgen.pipeline.beginning import digest_of_input, encoder_of, require_encoder
from cfgen.renderer.given import still_latents
from cfgen.video.pictures import Fit, Picture, read_picture


class Ending:
    """A picture that a render ends with.

    Args:
        file: The picture.
        size: Width and height of the video.
        fit: How it is fitted, as in `BeginConfig`.

    Attributes:
        latent_frames: Latent frames that it is given as.
    """

    latent_frames = 1

    def __init__(self, file: Path, *, size: tuple[int, int], fit: Fit) -> None:
        self.file, self._size, self._fit = file, size, fit

    @classmethod
    def of(cls, config: RenderConfig) -> Ending | None:
        """That of a render, or None if it ends with none."""
        file = config.begin.last_image
        return None if file is None else cls(file, size=config.frame_size, fit=config.begin.fit)

    def require_usable(self, vae: Network | None) -> tuple[str, ...]:
        """Look into the file, and say what becomes of it, a line each.

        Args:
            vae: The autoencoder's weights, None where they are not here.

        Raises:
            InputRefused: It cannot be used.
            CheckpointError: The autoencoder has no encoder.
        """
        require_encoder(vae, f"end with {self.file.name}")
        return self._picture.notes

    @property
    def digest(self) -> str:
        """SHA-256 of the file; words where it cannot be read."""
        return digest_of_input(self.file)

    def latents(self, decoder: TiledDecoder) -> Tensor:
        """Its latents, float32 [1, 1, C, h, w].

        Args:
            decoder: The loaded autoencoder.

        Raises:
            InputRefused: It cannot be read.
            CheckpointError: The autoencoder has no encoder.
        """
        return still_latents(encoder_of(decoder), self._picture.pixels, self.latent_frames)

    @cached_property
    def _picture(self) -> Picture:
        width, height = self._size
        return read_picture(self.file, width=width, height=height, fit=self._fit)
