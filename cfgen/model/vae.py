"""Streaming video autoencoder of the TAEHV architecture: latents in, frames out, chunk after chunk.

Key names and shapes are those of `taew2_1`, with every width read from the weights, so that small
ones of our own and the published file are the same class. Latent frame 0 stands for frame 0, latent
frame i for frames 4i-3 .. 4i.

Axis letters: B batch, T frames (pixels), F latent frames, C channels, H W grid.
Source: madebyollin/taehv (MIT), architecture only; streaming state and training are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = list[Tensor | None]

TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 8


class Clamp(nn.Module):
    """Soft limit of latents to (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """3 tanh(x / 3), same shape."""
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """Residual block that also sees its own input of the frame before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width * 2, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """Both [N, width, H, W]; `past` is the input one frame earlier, zeros before the first."""
        out: Tensor = self.conv(torch.cat([x, past], 1))
        return F.relu(out + x)


class TPool(nn.Module):
    """Merges `stride` successive frames into one by a 1x1 convolution."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N / stride, C, H, W]."""
        n, c, h, w = x.shape
        merged = x.reshape(n // self.stride, self.stride * c, h, w)
        out: Tensor = self.conv(merged.contiguous(memory_format=torch.channels_last))
        return out


class TGrow(nn.Module):
    """Makes `stride` successive frames of one by a 1x1 convolution."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N * stride, C, H, W]."""
        n, c, h, w = x.shape
        out: Tensor = self.conv(x).reshape(n * self.stride, c, h, w)
        return out.contiguous(memory_format=torch.channels_last)


class TinyAutoencoder(nn.Module):
    """The autoencoder; pixel values in [0, 1].

    Args:
        latent_channels: channels of a latent frame.
        encoder_width: channels inside the encoder (64 in `taew2_1`).
        decoder_widths: channels of the four decoder stages (256, 128, 64, 64 in `taew2_1`).
    """

    def __init__(
        self,
        latent_channels: int = 16,
        encoder_width: int = 64,
        decoder_widths: Sequence[int] = (256, 128, 64, 64),
    ) -> None:
        super().__init__()
        e = encoder_width
        self.latent_channels = latent_channels
        encoder: list[nn.Module] = [_conv(3, e), nn.ReLU()]
        for stride in (2, 2, 1):
            encoder += [
                TPool(e, stride),
                _conv(e, e, stride=2, bias=False),
                MemBlock(e),
                MemBlock(e),
                MemBlock(e),
            ]
        self.encoder = nn.ModuleList([*encoder, _conv(e, latent_channels)])
        w = list(decoder_widths)
        decoder: list[nn.Module] = [Clamp(), _conv(latent_channels, w[0]), nn.ReLU()]
        for i, stride in enumerate((1, 2, 2)):
            decoder += [MemBlock(w[i]), MemBlock(w[i]), MemBlock(w[i]), nn.Upsample(scale_factor=2)]
            decoder += [TGrow(w[i], stride), _conv(w[i], w[i + 1], bias=False)]
        self.decoder = nn.ModuleList([*decoder, nn.ReLU(), _conv(w[3], 3)])

    @classmethod
    def for_weights(cls, state: Mapping[str, Tensor]) -> TinyAutoencoder:
        """An autoencoder whose widths are those of a state dict (weights are not loaded)."""
        widths = [state[f"decoder.{i}.weight"].shape[1] for i in (8, 14, 20, 22)]
        return cls(state["decoder.1.weight"].shape[1], state["encoder.0.weight"].shape[0], widths)

    def encode(self, video_BTCHW: Tensor) -> Tensor:
        """Latents of whole clips.

        Args:
            video_BTCHW: [B, 1 + 4(F - 1), 3, H, W] in [0, 1], H and W divisible by 8.

        Returns:
            [B, F, C, H / 8, W / 8] of the input's dtype. The first frame is repeated to fill its
            group of four.
        """
        first = video_BTCHW[:, :1].expand(-1, TEMPORAL_STRIDE - 1, -1, -1, -1)
        return _run(self.encoder, torch.cat([first, video_BTCHW], 1), [None] * len(self.encoder))

    @property
    def reach(self) -> int:
        """Latent frames before its own that a frame depends on, at most."""
        reach, rate = 0.0, 1
        for block in self.decoder:
            if isinstance(block, MemBlock):
                reach += 1 / rate
            elif isinstance(block, TGrow):
                rate *= block.stride
        return math.ceil(reach)

    def start(self) -> State:
        """The state before the first latent frame."""
        return [None] * len(self.decoder)

    def decode(self, latents_BFCHW: Tensor, state: State | None = None) -> Tensor:
        """Frames of the next latent frames of a clip.

        Args:
            latents_BFCHW: [B, F, C, h, w].
            state: what `start` gave; changed in place, so that the next call goes on. None decodes
                one whole clip.

        Returns:
            [B, 4F, 3, 8h, 8w], not yet clamped to [0, 1]; at the start of a clip the first three
            frames are dropped, which leaves 4F - 3.
        """
        state = self.start() if state is None else state
        beginning = all(entry is None for entry in state)
        video = _run(self.decoder, latents_BFCHW, state)
        return video[:, TEMPORAL_STRIDE - 1 :] if beginning else video


def _conv(n_in: int, n_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=bias)


def _run(blocks: nn.ModuleList, clip: Tensor, state: State) -> Tensor:
    batch = clip.shape[0]
    x = clip.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    for i, block in enumerate(blocks):
        if isinstance(block, MemBlock):
            frames = torch.unflatten(x, 0, (batch, -1))
            before = state[i]
            if before is None:
                before = torch.zeros_like(frames[:, :1])
            state[i] = frames[:, -1:]
            past = torch.cat([before, frames[:, :-1]], 1).flatten(0, 1)
            x = block(x, past.contiguous(memory_format=torch.channels_last))
        else:
            x = block(x)
    return torch.unflatten(x, 0, (batch, -1))
