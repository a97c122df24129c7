"""Streaming video decoders: latents in, frames out, chunk after chunk; and the tiny one of them.

The tiny one is of the TAEHV architecture. Key names and shapes are those of `taew2_1` and, in
patches of 2x2 pixels, of `taew2_2`, with every width read from the weights, so that small ones of
our own and the published files are one class.
Latent frame 0 stands for frame 0, latent frame i for frames 4i-3 .. 4i.

Axis letters: B batch, T frames (pixels), F latent frames, C channels, H W grid.
Source: madebyollin/taehv (MIT), architecture only; streaming state and training are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgen.model.latent_moments import denormalised, normalised

TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 8
"""Pixels along a latent cell that the layers of an autoencoder cover; times the patch's, if any."""

RGB = 3

Cache = Tensor | str | None


@dataclass(frozen=True, slots=True)
class Mode:
    """How a clip is decoded, beyond what its decoder knows of; see `tiled`.

    Attributes:
        tile: Latent cells on the side of a tile, None for whole frames.
        on_cpu: Whether a copy of the decoder on the CPU has taken over.
    """

    tile: int | None = None
    on_cpu: bool = False

    def __str__(self) -> str:
        """Return ``in whole frames`` or ``in tiles of 16x16 cells on the CPU``."""
        size = "whole frames" if self.tile is None else f"tiles of {self.tile}x{self.tile} cells"
        return f"in {size}{' on the CPU' if self.on_cpu else ''}"


@dataclass(slots=True)
class State:
    """How far a clip is decoded. `decode` changes it, but only when it succeeds.

    Attributes:
        caches: What each layer remembers of the frames before: maps [..., H, W], on a grid that is
            a whole number of times as fine as the latents'. None or a word before there is any.
        mode: How the clip is decoded.
    """

    caches: list[Cache]
    mode: Mode = Mode()


class Decoder(Protocol):
    """What makes frames of latents; clips may be decoded by turns, each with a state of its own."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""

    @property
    def spatial_stride(self) -> int:
        """Pixels that a latent cell covers along each axis."""

    @property
    def reach(self) -> int:
        """Latent frames before its own that a frame depends on, at most.

        After so many, from any state on, frames are those of a clip decoded from its start.
        """

    def start(self) -> State:
        """The state before the first latent frame."""

    def decode(self, latents_BFCHW: Tensor, state: State | None = None) -> Tensor:
        """Frames of the next latent frames of a clip.

        Args:
            latents_BFCHW: [B, F, C, h, w], normalised, where the weights are.
            state: what `start` gave; changed in place, so that the next call goes on. None decodes
                one whole clip. A decode that fails leaves it as it was.

        Returns:
            [B, 4F, 3, s h, s w] with the stride s, not yet clamped to [0, 1]; of the first latent
            frame of a clip only one frame, which leaves 4F - 3.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights; they tell dtype and device."""


def require_whole_latents(frames: int, *, beginning: bool) -> None:
    """Refuse frames that are no whole latent frames of a clip, or of what follows in it.

    Raises:
        ValueError: they are not.
    """
    if frames < 1 or frames % TEMPORAL_STRIDE != beginning:
        wanted = "1, 5, 9" if beginning else "4, 8, 12"
        what = "a clip" if beginning else "what goes on with a clip"
        raise ValueError(f"{what} must have {wanted}, ... frames, got {frames}")


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

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """One step of clips.

        Args:
            x: [B T, width, H, W], channels last.
            before: input one frame before the first, [B, 1, width, H, W].
        """
        frames = torch.unflatten(_rows(x), 0, (len(before), -1))
        past = torch.cat([before.permute(0, 1, 3, 4, 2), frames[:, :-1]], 1)
        both = torch.cat([frames, past], -1).flatten(0, 1)
        out: Tensor = self.conv(_maps(both))
        return F.relu(out + x)


class TPool(nn.Module):
    """Merges `stride` successive frames into one by a 1x1 convolution."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], channels last, to [N / stride, C, H, W]."""
        groups = torch.unflatten(_rows(x), 0, (-1, self.stride))
        out: Tensor = self.conv(_maps(groups.permute(0, 2, 3, 1, 4).flatten(3)))
        return out


class TGrow(nn.Module):
    """Makes `stride` successive frames of one by a 1x1 convolution, each twice as fine.

    The published order is to refine first; a 1x1 convolution of equal neighbours is the same.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], channels last, to [N * stride, C, 2 H, 2 W]."""
        grown = torch.unflatten(_rows(self.conv(x)), 3, (self.stride, -1))
        frames = _maps(grown.permute(0, 3, 1, 2, 4).flatten(0, 1))
        return F.interpolate(frames, scale_factor=2.0)


def _rows(maps: Tensor) -> Tensor:
    """[N, C, H, W] as [N, H, W, C]: contiguous if the maps are channels last."""
    return maps.permute(0, 2, 3, 1)


def _maps(rows: Tensor) -> Tensor:
    """[N, H, W, C] as [N, C, H, W]: channels last if the rows are contiguous."""
    return rows.permute(0, 3, 1, 2)


class TinyAutoencoder(nn.Module):
    """The autoencoder; pixel values in [0, 1].

    Args:
        latent_channels: channels of a latent frame.
        encoder_width: channels inside the encoder (64 in `taew2_1`), 0 for none.
        decoder_widths: channels of the four decoder stages (256, 128, 64, 64 in `taew2_1`).
        patch_size: pixels on the side of the squares that the convolutions see as one point (1 in
            `taew2_1`, 2 in `taew2_2`).
        raw_latents: whether its own latents are Wan2.1's raw ones, as those of `lighttaew2_1` are.
            What comes in and goes out here is normalised in any case.

    Attributes:
        semantic_channels: how many of the latent channels, the last ones, tell what lies where
            instead of how it looks; 0 but for `mini`'s (see `train/film_world/semantics.py`).
    """

    def __init__(
        self,
        latent_channels: int = 16,
        encoder_width: int = 64,
        decoder_widths: Sequence[int] = (256, 128, 64, 64),
        *,
        patch_size: int = 1,
        raw_latents: bool = False,
    ) -> None:
        super().__init__()
        e = encoder_width
        self.latent_channels = latent_channels
        self.patch_size = patch_size
        self.raw_latents = raw_latents
        self.semantic_channels = 0
        encoder: list[nn.Module] = [_conv(RGB * patch_size**2, e), nn.ReLU()] if e else []
        for stride in (2, 2, 1) if e else ():
            encoder += [
                TPool(e, stride),
                _conv(e, e, stride=2, bias=False),
                MemBlock(e),
                MemBlock(e),
                MemBlock(e),
            ]
        self.encoder = nn.ModuleList([*encoder, _conv(e, latent_channels)] if e else [])
        w = list(decoder_widths)
        decoder: list[nn.Module] = [Clamp(), _conv(latent_channels, w[0]), nn.ReLU()]
        for i, stride in enumerate((1, 2, 2)):
            # Published names count a layer that makes maps finer, which `TGrow` does here.
            decoder += [MemBlock(w[i]), MemBlock(w[i]), MemBlock(w[i]), nn.Identity()]
            decoder += [TGrow(w[i], stride), _conv(w[i], w[i + 1], bias=False)]
        self.decoder = nn.ModuleList([*decoder, nn.ReLU(), _conv(w[3], RGB * patch_size**2)])

    @classmethod
    def for_weights(
        cls, state: Mapping[str, Tensor], *, raw_latents: bool = False
    ) -> TinyAutoencoder:
        """An autoencoder whose widths and patch are those of a state dict (it is not loaded)."""
        widths = [state[f"decoder.{i}.weight"].shape[1] for i in (8, 14, 20, 22)]
        latent_channels = state["decoder.1.weight"].shape[1]
        encodes = any(name.startswith("encoder.") for name in state)
        encoder_width = state["encoder.0.weight"].shape[0] if encodes else 0
        return cls(
            latent_channels,
            encoder_width,
            widths,
            patch_size=math.isqrt(state["decoder.22.weight"].shape[0] // RGB),
            raw_latents=raw_latents,
        )

    @property
    def has_encoder(self) -> bool:
        """Whether it can make latents."""
        return len(self.encoder) > 0

    def start_encoding(self) -> State:
        """The state before the first frame."""
        return State([None] * len(self.encoder))

    def encode(self, video_BTCHW: Tensor, state: State | None = None) -> Tensor:
        """Latents of the next frames of a clip; see `Encoder.encode`.

        Of the input's dtype. The first frame is repeated to fill its group of four.
        """
        state = self.start_encoding() if state is None else state
        beginning = all(cache is None for cache in state.caches)
        require_whole_latents(video_BTCHW.shape[1], beginning=beginning)
        if beginning:
            first = video_BTCHW[:, :1].expand(-1, TEMPORAL_STRIDE - 1, -1, -1, -1)
            video_BTCHW = torch.cat([first, video_BTCHW], 1)
        caches = list(state.caches)
        latents = _run(self.encoder, F.pixel_unshuffle(video_BTCHW, self.patch_size), caches)
        state.caches = caches
        return normalised(latents).to(latents.dtype) if self.raw_latents else latents

    @property
    def spatial_stride(self) -> int:
        """Pixels that a latent cell covers along each axis."""
        return SPATIAL_STRIDE * self.patch_size

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
        return State([None] * len(self.decoder))

    def decode(self, latents_BFCHW: Tensor, state: State | None = None) -> Tensor:
        """Frames of the next latent frames of a clip.

        Args:
            latents_BFCHW: [B, F, C, h, w].
            state: what `start` gave; changed in place, so that the next call goes on. None decodes
                one whole clip. A decode that fails leaves it as it was.

        Returns:
            [B, 4F, 3, s h, s w] with the stride s, not yet clamped to [0, 1]; at the start of a
            clip the first three frames are dropped, which leaves 4F - 3.
        """
        state = self.start() if state is None else state
        beginning = all(cache is None for cache in state.caches)
        caches = list(state.caches)
        latents = latents_BFCHW
        if self.raw_latents:
            latents = denormalised(latents).to(latents.dtype)
        video = F.pixel_shuffle(_run(self.decoder, latents, caches), self.patch_size)
        state.caches = caches
        return video[:, TEMPORAL_STRIDE - 1 :] if beginning else video


def _conv(n_in: int, n_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=bias)


def _run(blocks: nn.ModuleList, clip: Tensor, caches: list[Cache]) -> Tensor:
    batch = clip.shape[0]
    x = clip.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    for i, block in enumerate(blocks):
        if isinstance(block, MemBlock):
            frames = torch.unflatten(x, 0, (batch, -1))
            before = caches[i]
            if not isinstance(before, Tensor):
                before = torch.zeros_like(frames[:, :1])
            caches[i] = frames[:, -1:]
            x = block(x, before)
        else:
            x = block(x)
    return torch.unflatten(x, 0, (batch, -1))
