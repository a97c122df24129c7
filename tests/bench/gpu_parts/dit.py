"""A whole chunk of the generator: random weights, a full memory, and what all ways of it share.

Axis letters: B batch, F latent frames of a chunk, S latent frames before it, P tokens per latent
frame, L = F * P, N heads, D head dim, E = N * D model width, C channels, H W latent grid.
Source of the network: Wan2.1 wan/modules/model.py @ 9737cba; names of weights are those of its
files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cfgen.ops.reference import Rope
from cfgen.rollout.schedule import warp
from gpu_parts.sizes import Sizes

CHANNELS = 16
PATCH = 2
EPS = 1e-6
STEPS = (1000.0, 750.0, 500.0, 250.0)
"""Timesteps of the denoising passes, before they are warped; a commit pass at 0 follows."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """A chunk to be denoised and what was before it.

    Attributes:
        memory: Latent frames that are attended to, the chunk's own included.
        weights: In the compute dtype.
        text: [B, text_len, text_dim], zeros after the prompt's own tokens.
        noise: [passes, B, F, C, H, W] float32, of every denoising pass.
        context_k: [layers, B, S * P, E], keys after their norm (with a gain of one) and before any
            rotation, in the order of time.
        context_v: Likewise, values.
    """

    sizes: Sizes
    memory: int
    weights: Weights
    text: Tensor
    noise: Tensor
    context_k: Tensor
    context_v: Tensor

    @property
    def frames(self) -> int:
        """Latent frames of the chunk."""
        return self.sizes.chunk

    @property
    def context(self) -> int:
        """Latent frames before it."""
        return self.memory - self.frames

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the denoising passes."""
        return tuple(warp(step / 1000, 5.0) for step in STEPS)


def flops(s: Sizes, memory: int) -> float:
    """Operations of all passes over a chunk: linear layers, attention, attention to the prompt."""
    tokens = s.chunk * s.frame.tokens
    linears = tokens * s.width * (6 * s.width + 2 * s.ffn)
    attention = 2 * tokens * s.width * (memory * s.frame.tokens + s.text_len)
    return 2.0 * s.layers * (linears + attention) * (len(STEPS) + 1)


def shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Every weight and its shape."""
    e, patch = s.width, PATCH * PATCH * CHANNELS
    found: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (e, CHANNELS, 1, PATCH, PATCH),
        "patch_embedding.bias": (e,),
        "head.modulation": (1, 2, e),
    }
    linears = {
        "text_embedding.0": (e, s.text_dim),
        "text_embedding.2": (e, e),
        "time_embedding.0": (e, s.freq_dim),
        "time_embedding.2": (e, e),
        "time_projection.1": (6 * e, e),
        "head.head": (patch, e),
    }
    for layer in range(s.layers):
        block = f"blocks.{layer}"
        for attention in ("self_attn", "cross_attn"):
            linears |= {f"{block}.{attention}.{name}": (e, e) for name in "qkvo"}
            found |= {f"{block}.{attention}.norm_{name}.weight": (e,) for name in "qk"}
        linears |= {f"{block}.ffn.0": (s.ffn, e), f"{block}.ffn.2": (e, s.ffn)}
        found |= {f"{block}.norm3.weight": (e,), f"{block}.norm3.bias": (e,)}
        found[f"{block}.modulation"] = (1, 6, e)
    for name, (out, into) in linears.items():
        found |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    return found


def random_weights(s: Sizes, generator: torch.Generator, dtype: torch.dtype) -> Weights:
    """Weights that keep the size of what passes through: none are zero, none explode.

    Queries are twice as large, so that attention picks out keys as it does in trained models.
    """
    weights = {}
    for name, shape in shapes(s).items():
        x = torch.randn(shape, generator=generator, device=generator.device)
        if name.endswith("modulation"):
            x /= math.sqrt(s.width)
        elif name.endswith("bias"):
            x *= 0.02
        elif ".norm" in name:
            x = (2 if name.endswith("self_attn.norm_q.weight") else 1) * (1 + 0.1 * x)
        else:
            x /= math.sqrt(x[0].numel())
        weights[name] = x.to(dtype)
    return weights


def make(s: Sizes, memory: int, generator: torch.Generator, dtype: torch.dtype) -> Scene:
    """A random scene with a full memory of `memory` latent frames."""
    device = generator.device

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    text = random(1, s.text_len, s.text_dim)
    text[:, s.text :] = 0
    tokens = (memory - s.chunk) * s.frame.tokens
    grid = (s.frame.rows * PATCH, s.frame.columns * PATCH)
    return Scene(
        sizes=s,
        memory=memory,
        weights=random_weights(s, generator, dtype),
        text=text,
        noise=random(len(STEPS), 1, s.chunk, CHANNELS, *grid).float(),
        context_k=torch.stack(
            [F.rms_norm(random(1, tokens, s.width), (s.width,), eps=EPS) for _ in range(s.layers)]
        ),
        context_v=torch.stack([random(1, tokens, s.width) for _ in range(s.layers)]),
    )


def angles(scene: Scene) -> tuple[Tensor, Tensor]:
    """Angles of rotation: in time [S + F, D / 2] and in space [P, D / 2], float64 on the CPU."""
    s = scene.sizes
    rope = Rope(s.head_dim)
    return rope.temporal(range(scene.memory)), rope.spatial((s.frame.rows, s.frame.columns))


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """A linear layer by name."""
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def patches(w: Weights, x: Tensor) -> Tensor:
    """Tokens [B, L, E] of latents [B, F, C, H, W]."""
    tiles = x.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))
    tokens = tiles.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
    kernel = w["patch_embedding.weight"].flatten(1)
    return F.linear(tokens.to(kernel.dtype), kernel, w["patch_embedding.bias"])


def unpatched(tokens: Tensor, like: Tensor) -> Tensor:
    """Latents in shape and dtype of `like` from tokens [B, L, values], channels last in a patch."""
    batch, frames, channels, height, width = like.shape
    rows, columns = height // PATCH, width // PATCH
    tiles = tokens.reshape(batch, frames, rows, columns, PATCH, PATCH, channels)
    return tiles.permute(0, 1, 6, 2, 4, 3, 5).reshape(like.shape).to(like.dtype)


def embedded_time(s: Sizes, w: Weights, sigma: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Time embedding [1, 1, E] and the six modulations [1, 1, 6, E] at a noise level."""
    device = w["head.modulation"].device
    half = s.freq_dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    angle = sigma * 1000 * frequency
    wave = torch.cat([angle.cos(), angle.sin()])[None, None].to(dtype)
    time = linear(w, "time_embedding.2", F.silu(linear(w, "time_embedding.0", wave)))
    return time, linear(w, "time_projection.1", F.silu(time)).unflatten(-1, (6, -1))


def text_keys(w: Weights, layer: int, text: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values [B, N, T, D] of the prompt in a layer."""
    y = linear(w, "text_embedding.0", text)
    y = linear(w, "text_embedding.2", F.gelu(y, approximate="tanh"))
    name = f"blocks.{layer}.cross_attn"
    k = rms(linear(w, f"{name}.k", y), w[f"{name}.norm_k.weight"])
    v = linear(w, f"{name}.v", y)
    return split(k, heads), split(v, heads)


def split(x: Tensor, heads: int) -> Tensor:
    """[B, L, E] as [B, N, L, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """[B, N, L, D] as [B, L, E]."""
    return x.transpose(1, 2).flatten(2)


def wide(x: Tensor) -> Tensor:
    """The numbers in float32, or in float64 if they are."""
    return x if x.dtype == torch.float64 else x.float()


def rms(x: Tensor, gain: Tensor) -> Tensor:
    """Root-mean-square norm over the full width, in float32 at least."""
    return F.rms_norm(wide(x), x.shape[-1:], wide(gain), EPS).to(x.dtype)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm in float32 at least, then scale and shift [B, 1, E]."""
    return F.layer_norm(wide(x), x.shape[-1:], eps=EPS).to(x.dtype) * (1 + scale) + shift
