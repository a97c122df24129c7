"""Latents of what a film begins and ends with; frames are read and encoded chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfgen.model.encoder import Encoder
from cfgen.model.vae import TEMPORAL_STRIDE
from cfgen.timeline import Plan

FrameBytes = Callable[[], Iterator[bytes]]
"""Reads frames from the first on, each as rgb24, rows from the top."""


class GivenLatents:
    """Encodes the frames of the chunks that a plan has as given.

    Chunks that are asked for in order are read once; going back begins anew.

    Args:
        encoder: What encodes.
        frames: Reads the frames, of the plan's size.
        plan: What is made.
    """

    def __init__(self, encoder: Encoder, frames: FrameBytes, plan: Plan) -> None:
        self._encoder, self._read, self._plan = encoder, frames, plan
        self._begin()

    def _begin(self) -> None:
        self._frames, self._state = self._read(), self._encoder.start_encoding()
        self._next = 0

    def __call__(self, chunk: int) -> Tensor:
        """Latents of a given chunk, float32 [1, F, C, h, w], where the encoder is.

        Raises:
            CfgenError: The frames cannot be read.
            ValueError: There are fewer than the plan has.
        """
        if chunk < self._next:
            self._begin()
        while True:
            latents = self._encoded(self._next)
            self._next += 1
            if self._next > chunk:
                return latents

    def _encoded(self, chunk: int) -> Tensor:
        shape, at = self._plan.geometry, self._plan.latent_start
        count = shape.frames_of(at(chunk + 1)) - shape.frames_of(at(chunk))
        size = (shape.height, shape.width, 3)
        read = [
            np.frombuffer(frame, np.uint8).reshape(size)
            for _, frame in zip(range(count), self._frames, strict=False)
        ]
        if len(read) < count:
            raise ValueError(f"chunk {chunk} needs {count} frames, and there are {len(read)}")
        with torch.inference_mode():
            return self._encoder.encode(_video(self._encoder, np.stack(read)), self._state).float()


def still_latents(encoder: Encoder, picture: npt.NDArray[np.uint8], count: int) -> Tensor:
    """The last latent frames of a film in which a picture stands, float32 [1, count, C, h, w].

    A latent frame that comes first stands for one frame, and later ones for several that follow
    others: it is encoded as such, unlike FramePack's end frame.

    Args:
        encoder: What encodes; the latents are where it is.
        picture: RGB, [height, width, 3].
        count: Latent frames.
    """
    with torch.inference_mode():
        video = _video(encoder, np.stack([picture] * (1 + count * TEMPORAL_STRIDE)))
        return encoder.encode(video)[:, 1:].float()


def _video(encoder: Encoder, frames: npt.NDArray[np.uint8]) -> Tensor:
    """Frames [T, H, W, 3] as an encoder takes them, [1, T, 3, H, W]."""
    weight = next(encoder.parameters())
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    return pixels.to(weight.device, weight.dtype) / 255
