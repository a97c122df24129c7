"""Wan2.1's video autoencoder, decoded latent frame by latent frame.

The network is diffusers'; what is ours is that a clip's causal caches live in the caller's state,
so that clips can be decoded by turns, and that latents are normalised and frames lie in [0, 1].

Axis letters: B batch, T frames (pixels), F latent frames, C channels, H W grid.
Source: Wan-Video/Wan2.1 wan/modules/vae.py @ 9737cba (`cached_decode`), as in diffusers 0.42
models/autoencoders/autoencoder_kl_wan.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cfgen.model.latent_moments import LATENT_MEAN, denormalised, normalised
from cfgen.model.vae import SPATIAL_STRIDE, TEMPORAL_STRIDE, Cache, State, require_whole_latents

STAGES = 4
"""Stages of a decoder; from each to the next the picture doubles, hence 8 pixels a latent cell."""


class WanAutoencoder(nn.Module):
    """The autoencoder; pixel values in [0, 1], latents normalised.

    Args:
        encoder_width: channels of the encoder's first stage (96, or 24 in a pruned one), 0 for no
            encoder.
        decoder_width: channels of the decoder's last stage (96, or 24 in a pruned one).
        width_factors: channels of each stage over those of the one nearest to the pixels.
    """

    def __init__(
        self,
        encoder_width: int = 96,
        decoder_width: int = 96,
        width_factors: Sequence[int] = (1, 2, 4, 4),
    ) -> None:
        from diffusers import AutoencoderKLWan

        super().__init__()
        network = AutoencoderKLWan(  # type: ignore[no-untyped-call]
            base_dim=encoder_width or 1,
            decoder_base_dim=decoder_width,
            z_dim=len(LATENT_MEAN),
            dim_mult=list(width_factors),
        )
        self.network = cast(nn.Module, network)
        if not encoder_width:
            del self.network.encoder, self.network.quant_conv

    @classmethod
    def for_weights(cls, state: Mapping[str, Tensor]) -> WanAutoencoder:
        """An autoencoder of the widths in a state dict in diffusers' names; nothing is loaded.

        Raises:
            KeyError: a tensor that tells a width is missing.
        """
        widths = [
            state[f"decoder.up_blocks.{stage}.resnets.0.conv1.bias"].shape[0]
            for stage in reversed(range(STAGES))
        ]
        decoder_width = max(1, widths[0])
        factors = [width // decoder_width for width in widths]
        encodes = any(name.startswith(("encoder.", "quant_conv.")) for name in state)
        encoder_width = state["encoder.conv_in.bias"].shape[0] if encodes else 0
        return cls(encoder_width, decoder_width, factors)

    @property
    def has_encoder(self) -> bool:
        """Whether it can make latents."""
        return hasattr(self.network, "encoder")

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return len(LATENT_MEAN)

    @property
    def spatial_stride(self) -> int:
        """Pixels that a latent cell covers along each axis."""
        return SPATIAL_STRIDE

    @property
    def reach(self) -> int:
        """Latent frames before its own that a frame depends on, at most.

        Walks from the first frame of a latent frame back through every convolution in time. What
        is special about a clip's first latent frame reaches no farther: 38 for the published sizes.
        """
        position = 0
        for name, layer in reversed(list(self._part("decoder").named_modules())):
            if isinstance(layer, nn.Conv3d):
                if name.endswith("time_conv"):  # makes two frames of one
                    position //= 2
                position -= layer.kernel_size[0] - 1
        return -position

    def start(self) -> State:
        """The state before the first latent frame."""
        return State(self._no_caches("decoder"))

    def decode(self, latents_BFCHW: Tensor, state: State | None = None) -> Tensor:
        """Frames of the next latent frames of a clip.

        Args:
            latents_BFCHW: [B, F, 16, h, w], normalised.
            state: what `start` gave; changed in place, so that the next call goes on. None decodes
                one whole clip. A decode that fails leaves it as it was.

        Returns:
            [B, 4F, 3, 8h, 8w], float32 at least, not yet clamped to [0, 1]; the first latent frame
            of a clip gives one frame, which leaves 4F - 3.
        """
        state = self.start() if state is None else state
        caches = list(state.caches)
        decoder, mixer = self._part("decoder"), self._part("post_quant_conv")
        raw = denormalised(latents_BFCHW).to(self._dtype).transpose(1, 2)
        parts = [
            decoder(mixer(latent), feat_cache=caches, feat_idx=[0])
            for latent in torch.split(raw, 1, dim=2)
        ]
        state.caches = caches
        video = torch.cat(parts, 2).transpose(1, 2)
        return (video.to(torch.promote_types(video.dtype, torch.float32)) + 1) / 2

    def start_encoding(self) -> State:
        """The state before the first frame."""
        return State(self._no_caches("encoder"))

    def encode(self, video_BTCHW: Tensor, state: State | None = None) -> Tensor:
        """Latents of the next frames of a clip, float32 at least; see `vae.Encoder.encode`.

        They are the mean of what the encoder says.
        """
        state = self.start_encoding() if state is None else state
        beginning = all(cache is None for cache in state.caches)
        require_whole_latents(video_BTCHW.shape[1], beginning=beginning)
        encoder, mixer = self._part("encoder"), self._part("quant_conv")
        caches = list(state.caches)
        video = (video_BTCHW * 2 - 1).to(self._dtype).transpose(1, 2)
        pieces = torch.split(video[:, :, beginning:], TEMPORAL_STRIDE, dim=2)
        parts = [
            encoder(piece, feat_cache=caches, feat_idx=[0])
            for piece in (video[:, :, :beginning], *pieces)
            if piece.shape[2]
        ]
        state.caches = caches
        mean, _log_variance = mixer(torch.cat(parts, 2)).chunk(2, dim=1)
        return normalised(mean.transpose(1, 2))

    def _part(self, name: str) -> nn.Module:
        return self.network.get_submodule(name)

    def _no_caches(self, name: str) -> list[Cache]:
        """What the convolutions of encoder or decoder remember at the start: nothing."""
        return [None for layer in self._part(name).modules() if isinstance(layer, nn.Conv3d)]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
