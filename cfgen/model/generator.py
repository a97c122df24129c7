"""The causal Wan DiT: predicts the flow of a chunk, attending to the past through a view.

It knows no policy. Parameter names and shapes are those of Wan2.1's own files; Wan's bidirectional
model is this one with an empty memory.

Axis letters: B batch, F latent frames, C channels, H W latent grid, P tokens per latent frame,
L = F * P, N heads, D head dim, E model width, T text tokens.
Source: Wan2.1 wan/modules/model.py @ 9737cba; per-frame modulation: Self-Forcing
wan/modules/causal_model.py @ 33593df.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgen.memory.base import View
from cfgen.ops.torch_backend import attend


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Sizes of a generator, as in Wan's config.json. Nothing else in the model assumes a size."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    freq_dim: int = 256
    text_len: int = 512
    text_dim: int = 4096
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.dim // self.num_heads

    def grid(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        """Tokens of a latent frame as (rows, columns)."""
        return latent_height // self.patch_size[1], latent_width // self.patch_size[2]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A prompt as every layer reads it: keys and values [B, T, N, D] of its cross-attention."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]


class Linear(nn.Linear):
    """A linear layer that takes inputs of any float dtype to its weight's."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out] in the weight's dtype."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, before heads are split."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype; computed in float32 at least."""
        wide = x if x.dtype == torch.float64 else x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention over the chunk and whatever its view shows."""

    def __init__(self, g: Geometry, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, g.num_heads
        self.q, self.k, self.v, self.o = (Linear(g.dim, g.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(g.dim, g.eps), RMSNorm(g.dim, g.eps)

    def forward(self, x: Tensor, view: View) -> Tensor:
        """[B, L, E] to [B, L, E]."""
        q, k, v = (
            y.unflatten(-1, (self.heads, -1))
            for y in (self.norm_q(self.q(x)), self.norm_k(self.k(x)), self.v(x))
        )
        out: Tensor = self.o(view.attend(self.layer, q, k, v).flatten(-2))
        return out


class CrossAttention(nn.Module):
    """Attention over the prompt; padded text is not masked."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.heads = g.num_heads
        self.q, self.k, self.v, self.o = (Linear(g.dim, g.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(g.dim, g.eps), RMSNorm(g.dim, g.eps)

    def read(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, T, N, D] of embedded text [B, T, E]."""
        k, v = self.norm_k(self.k(text)), self.v(text)
        return k.unflatten(-1, (self.heads, -1)), v.unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        """[B, L, E] to [B, L, E]."""
        q = self.norm_q(self.q(x)).unflatten(-1, (self.heads, -1))
        out: Tensor = self.o(attend(q, *keys_values).flatten(-2))
        return out


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; first and last modulated per latent frame."""

    def __init__(self, g: Geometry, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(g.dim, g.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(g, layer)
        self.norm3 = nn.LayerNorm(g.dim, g.eps)
        self.cross_attn = CrossAttention(g)
        self.norm2 = nn.LayerNorm(g.dim, g.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            Linear(g.dim, g.ffn_dim), nn.GELU("tanh"), Linear(g.ffn_dim, g.dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, g.dim) / g.dim**0.5)

    def forward(
        self, x: Tensor, modulation: Tensor, text: tuple[Tensor, Tensor], view: View
    ) -> Tensor:
        """[B, L, E] to [B, L, E]; `modulation` [B, F, 6, E] of the chunk's frames."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + modulation).unbind(2)
        y = self.self_attn(modulate(self.norm1(x), shift1, scale1), view)
        x = add_gated(x, y, gate1)
        x = x + self.cross_attn(self.norm3(x), text)
        return add_gated(x, self.ffn(modulate(self.norm2(x), shift2, scale2)), gate2)


class Head(nn.Module):
    """Last norm, modulation and projection to patches."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        pt, ph, pw = g.patch_size
        self.norm = nn.LayerNorm(g.dim, g.eps, elementwise_affine=False)
        self.head = Linear(g.dim, pt * ph * pw * g.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, g.dim) / g.dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[B, L, E] with time embedding [B, F, E] to patches [B, L, patch values]."""
        shift, scale = (self.modulation + time[:, :, None]).unbind(2)
        out: Tensor = self.head(modulate(self.norm(x), shift, scale))
        return out


class Generator(nn.Module):
    """The model; see the module's docstring."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        g = self.geometry = geometry
        self.patch_embedding = nn.Conv3d(g.in_dim, g.dim, g.patch_size, g.patch_size)
        self.text_embedding = nn.Sequential(
            Linear(g.text_dim, g.dim), nn.GELU("tanh"), Linear(g.dim, g.dim)
        )
        self.time_embedding = nn.Sequential(
            Linear(g.freq_dim, g.dim), nn.SiLU(), Linear(g.dim, g.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(g.dim, 6 * g.dim))
        self.blocks = nn.ModuleList(Block(g, layer) for layer in range(g.num_layers))
        self.head = Head(g)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.patch_embedding.weight.device

    def condition(self, text: Tensor) -> Conditioning:
        """Read a prompt once for all passes: [B, text_len, text_dim], zero-padded."""
        embedded = self.text_embedding(text)
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        return Conditioning(tuple(block.cross_attn.read(embedded) for block in blocks))

    def forward(
        self, x_BFCHW: Tensor, sigma: float | Tensor, text: Conditioning, view: View
    ) -> Tensor:
        """Flow of a chunk.

        Args:
            x_BFCHW: noisy chunk.
            sigma: noise level in [0, 1]; a number, or a tensor that broadcasts to [B, F].
            text: what `condition` gave.
            view: the chunk's view, in the pass that this is.

        Returns:
            noise - x0, [B, F, C, H, W] in the dtype of the chunk.
        """
        g = self.geometry
        batch, frames, _, height, width = x_BFCHW.shape
        rows, columns = g.grid(height, width)
        x = self._patches(x_BFCHW)
        level = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(batch, frames)
        time = self.time_embedding(sinusoid(level * 1000, g.freq_dim))
        modulation = self.time_projection(time).unflatten(-1, (6, g.dim))
        for block, keys_values in zip(self.blocks, text.keys_values, strict=True):
            x = block(x, modulation, keys_values, view)
        patches = self.head(x, time)
        _, ph, pw = g.patch_size
        patches = patches.view(batch, frames, rows, columns, ph, pw, g.out_dim)
        flow: Tensor = patches.permute(0, 1, 6, 2, 4, 3, 5).to(x_BFCHW.dtype)
        return flow.reshape(batch, frames, g.out_dim, height, width)

    def _patches(self, x_BFCHW: Tensor) -> Tensor:
        """Embedded tokens [B, L, E]; a strided convolution written as one matrix product."""
        batch, frames, channels, height, width = x_BFCHW.shape
        _, ph, pw = self.geometry.patch_size
        rows, columns = self.geometry.grid(height, width)
        x = x_BFCHW.view(batch, frames, channels, rows, ph, columns, pw)
        patches = x.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, frames * rows * columns, -1)
        kernel = self.patch_embedding.weight.flatten(1)
        return F.linear(patches.to(kernel.dtype), kernel, self.patch_embedding.bias)


def sinusoid(timestep: Tensor, channels: int) -> Tensor:
    """Embedding of timesteps in [0, 1000]: [..., channels] float64, cosines before sines."""
    half = channels // 2
    frequency = torch.pow(
        10000.0, -torch.arange(half, dtype=torch.float64, device=timestep.device) / half
    )
    angle = timestep.to(torch.float64)[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift: one shift and scale [B, F, E] a latent frame of x [B, L, E]."""
    frames = shift.shape[1]
    x = torch.unflatten(x, 1, (frames, -1))
    return (x * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2)


def add_gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Return x + y gate: one gate [B, F, E] a latent frame of x, y [B, L, E]."""
    frames = gate.shape[1]
    y = torch.unflatten(y, 1, (frames, -1))
    return x + (y * gate[:, :, None]).flatten(1, 2)
