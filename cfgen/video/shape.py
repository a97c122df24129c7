"""The shape of what a model makes: frames, latent frames, and how many of these make which."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cfgen.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoShape:
    """The shape of what a model makes.

    Attributes:
        width: Frame width in pixels, a multiple of `spatial_stride`.
        height: Frame height in pixels, a multiple of `spatial_stride`.
        channels: Channels of a latent frame.
        spatial_stride: Pixels a latent cell covers along each axis.
        temporal_stride: Frames a latent frame covers, the first one excepted.
        chunk_latent_frames: Latent frames denoised together.
        fps: Playback rate in frames per second.
    """

    width: int
    height: int
    channels: int = 16
    spatial_stride: int = 8
    temporal_stride: int = 4
    chunk_latent_frames: int = 3
    fps: float = 16.0

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            pixels = getattr(self, name)
            if pixels < 1 or pixels % self.spatial_stride:
                raise UsageError(
                    f"{name} must be a positive multiple of {self.spatial_stride}, got {pixels}"
                )
        for name in ("channels", "spatial_stride", "temporal_stride", "chunk_latent_frames"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise UsageError(f"fps must be a positive number, got {self.fps}")

    @property
    def latent_width(self) -> int:
        """Cells in a row of a latent frame."""
        return self.width // self.spatial_stride

    @property
    def latent_height(self) -> int:
        """Rows of a latent frame."""
        return self.height // self.spatial_stride

    def frames_of(self, latent_frames: int) -> int:
        """Frames that the first `latent_frames` latent frames of a clip decode to."""
        return 0 if latent_frames == 0 else 1 + (latent_frames - 1) * self.temporal_stride

    def latent_frames_for(self, frames: int) -> int:
        """The fewest latent frames that decode to at least `frames` frames."""
        return 0 if frames == 0 else 1 + -(-(frames - 1) // self.temporal_stride)
