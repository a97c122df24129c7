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
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgen.memory.page_sizes import WHOLE, Patch
from cfgen.memory.protocols import Norms, View
from cfgen.model.embedding import logarithms, sinusoid
from cfgen.model.patches import embed_patches, embedding_name, larger_embedding
from cfgen.ops.select import TORCH, Ops


@dataclass(frozen=True, kw_only=True, slots=True)
class WanConfig:
    """Sizes of a generator, as in Wan's config.json. Nothing else in the model assumes a size.

    `larger_patches` are cfgen's own: how many times wider, along each axis, the patches are that
    the past may be encoded with again.
    """

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
    larger_patches: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.dim // self.num_heads

    def grid(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        """Tokens of a latent frame as (rows, columns)."""
        return latent_height // self.patch_size[1], latent_width // self.patch_size[2]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A prompt as every layer reads it.

    Attributes:
        keys_values: Keys and values [B, T, N, D] of each layer's cross-attention.
        bias: [B, T], added to the scores of keys that stand for several; None where none does.
        commit: What commit passes read, where weights of their own compute them.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    bias: Tensor | None = None
    commit: Conditioning | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds, in an order that does not change."""
        found = [tensor for pair in self.keys_values for tensor in pair]
        found += [] if self.bias is None else [self.bias]
        return found if self.commit is None else [*found, *self.commit.tensors]


@dataclass(frozen=True, slots=True)
class Level:
    """A noise level as the layers read it; a frame axis of 1 stands for all frames.

    Attributes:
        time: Embedding [B, F, E].
        modulation: [B, F, 6, E].
        commit: What commit passes read, where weights of their own compute them.
    """

    time: Tensor
    modulation: Tensor
    commit: Level | None = None


class TokenSplit(Protocol):
    """Shares out the tokens of a chunk among processes."""

    def own_tokens(self, x: Tensor) -> Tensor:
        """Those of this process, [B, l, ...], of all, [B, L, ...]."""

    def all_tokens(self, x: Tensor, length: int) -> Tensor:
        """All `length` of them, of what each process has of its own."""


class Linear(nn.Linear):
    """A linear layer that takes inputs of any float dtype to its weight's."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.weight.dtype

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

    def __init__(self, g: WanConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.q, self.k, self.v, self.o = (Linear(g.dim, g.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(g.dim, g.eps), RMSNorm(g.dim, g.eps)

    def forward(self, x: Tensor, view: View) -> Tensor:
        """[B, L, E] to [B, L, E]; the view norms and rotates."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        out: Tensor = self.o(view.attend(self.layer, q, k, v, self.norms))
        return out

    def write(self, x: Tensor, view: View) -> None:
        """Hand [B, L, E] to memory only."""
        view.write(self.layer, self.k(x), self.v(x), self.norms)

    @property
    def norms(self) -> Norms:
        """Of queries and keys."""
        return Norms(self.norm_q.weight, self.norm_k.weight, self.norm_q.eps)


class CrossAttention(nn.Module):
    """Attention over the prompt; padded text is not masked."""

    def __init__(self, g: WanConfig, ops: Ops) -> None:
        super().__init__()
        self.heads, self.ops = g.num_heads, ops
        self.q, self.k, self.v, self.o = (Linear(g.dim, g.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(g.dim, g.eps), RMSNorm(g.dim, g.eps)

    def read(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, T, N, D] of embedded text [B, T, E]."""
        k, v = self.norm_k(self.k(text)), self.v(text)
        return k.unflatten(-1, (self.heads, -1)), v.unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """[B, L, E] to [B, L, E].

        Of prompts [B * n, T, N, D], n share out a sequence's tokens among them, one after another.
        """
        k, v = keys_values
        q = self.norm_q(self.q(x)).reshape(len(k), -1, *k.shape[2:])
        out: Tensor = self.o(self.ops.attend(q, k, v, bias).reshape(x.shape))
        return out


def _modulation(parts: int, dim: int) -> nn.Parameter:
    """Vectors of random numbers, [1, parts, dim]; on the meta device nothing is drawn.

    A draw there would import torch's compiler, which takes a second.
    """
    vectors = torch.empty(1, parts, dim)
    return nn.Parameter(vectors if vectors.is_meta else vectors.normal_() / dim**0.5)


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; first and last modulated per latent frame."""

    def __init__(self, g: WanConfig, layer: int, ops: Ops) -> None:
        super().__init__()
        self.eps, self.ops = g.eps, ops
        self.self_attn = SelfAttention(g, layer)
        self.norm3 = nn.LayerNorm(g.dim, g.eps)
        self.cross_attn = CrossAttention(g, ops)
        self.ffn = nn.Sequential(
            Linear(g.dim, g.ffn_dim), nn.GELU("tanh"), Linear(g.ffn_dim, g.dim)
        )
        self.modulation = _modulation(6, g.dim)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: tuple[Tensor, Tensor],
        bias: Tensor | None,
        view: View,
    ) -> Tensor:
        """[B, L, E] to [B, L, E]; `modulation` [B, F or 1, 6, E] of the chunk's frames."""
        ops, dtype = self.ops, self.self_attn.q.dtype
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + modulation).unbind(2)
        y = ops.modulate(x, shift1, scale1, eps=self.eps, dtype=dtype)
        x = ops.add_gated(x, self.self_attn(y, view), gate1)
        x = x + self.cross_attn(self.norm3(x), text, bias)
        y = ops.modulate(x, shift2, scale2, eps=self.eps, dtype=dtype)
        return ops.add_gated(x, self.ffn(y), gate2)

    def write(self, x: Tensor, modulation: Tensor, view: View) -> None:
        """Only what memory keeps of a commit pass."""
        shift, scale = (self.modulation + modulation).unbind(2)[:2]
        dtype = self.self_attn.q.dtype
        y = self.ops.modulate(x, shift, scale, eps=self.eps, dtype=dtype)
        self.self_attn.write(y, view)


class Head(nn.Module):
    """Last norm, modulation and projection to patches."""

    def __init__(self, g: WanConfig, ops: Ops) -> None:
        super().__init__()
        pt, ph, pw = g.patch_size
        self.eps, self.ops = g.eps, ops
        self.head = Linear(g.dim, pt * ph * pw * g.out_dim)
        self.modulation = _modulation(2, g.dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[B, L, E] with time embedding [B, F or 1, E] to patches [B, L, patch values]."""
        shift, scale = (self.modulation + time[:, :, None]).unbind(2)
        dtype = self.head.dtype
        out: Tensor = self.head(self.ops.modulate(x, shift, scale, eps=self.eps, dtype=dtype))
        return out


class Generator(nn.Module):
    """The model; see the module's docstring.

    Args:
        geometry: Its sizes.
        ops: What its layers compute with.

    Attributes:
        writer: One of the same sizes whose weights compute commit passes; None where these do.
        split: How tokens are shared out among processes; None where one has them all.
        patch_embedding_2x: The kernel of patches that are twice as wide along each axis, in time
            too; there if `geometry.larger_patches` has 2, and so on for others.
    """

    writer: Generator | None
    split: TokenSplit | None

    def __init__(self, geometry: WanConfig, ops: Ops = TORCH) -> None:
        super().__init__()
        g = self.geometry = geometry
        self.patch_embedding = nn.Conv3d(g.in_dim, g.dim, g.patch_size, g.patch_size)
        for times in g.larger_patches:
            self.add_module(embedding_name(times), larger_embedding(self.patch_embedding, times))
        self.text_embedding = nn.Sequential(
            Linear(g.text_dim, g.dim), nn.GELU("tanh"), Linear(g.dim, g.dim)
        )
        self.time_embedding = nn.Sequential(
            Linear(g.freq_dim, g.dim), nn.SiLU(), Linear(g.dim, g.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(g.dim, 6 * g.dim))
        self.blocks = nn.ModuleList(Block(g, layer, ops) for layer in range(g.num_layers))
        self.head = Head(g, ops)
        self.writer = self.split = None

    def share_tokens(self, split: TokenSplit | None) -> None:
        """Compute the tokens of this process alone from now on; with None, all of them."""
        self.split = split
        if self.writer is not None:
            self.writer.share_tokens(split)

    def compute_with(self, ops: Ops) -> None:
        """Compute with other ops from now on."""
        for module in self.modules():
            if isinstance(module, Block | CrossAttention | Head):
                module.ops = ops

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.patch_embedding.weight.device

    def condition(self, text: Tensor) -> Conditioning:
        """Read a prompt once for all passes: [B, text_len, text_dim], zero-padded.

        Padding is not masked, and all of it is one key: so a few are read, which count for all.
        """
        padded = text
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        used = text.ne(0).any(-1).any(0).nonzero()
        words = int(used[-1]) + 1 if len(used) else 0
        padding = text.shape[1] - words
        bias = None
        shares = logarithms(padding, blocks[0].cross_attn.q.dtype)
        if len(shares) < padding:
            text = text[:, : words + len(shares)]
            bias = shares.new_zeros(text.shape[:2])
            bias[:, words:] = shares
            bias = bias.to(text.device)
        embedded = self.text_embedding(text)
        read = tuple(block.cross_attn.read(embedded) for block in blocks)
        return Conditioning(
            read, bias, None if self.writer is None else self.writer.condition(padded)
        )

    def level(self, sigma: float | Tensor) -> Level:
        """Read a noise level once for all passes that have it: a number, or a tensor [B, F]."""
        level = torch.as_tensor(sigma, dtype=torch.float64, device=self.device)
        level = level.reshape(1, 1) if level.ndim == 0 else level
        time = self.time_embedding(sinusoid(level * 1000, self.geometry.freq_dim))
        modulation = self.time_projection(time).unflatten(-1, (6, self.geometry.dim))
        return Level(time, modulation, None if self.writer is None else self.writer.level(sigma))

    def forward(
        self, x_BFCHW: Tensor, level: Level | float | Tensor, text: Conditioning, view: View
    ) -> Tensor:
        """Flow of a chunk.

        Args:
            x_BFCHW: noisy chunk.
            level: what `level` gave for its noise, or takes.
            text: what `condition` gave.
            view: the chunk's view, in the pass that this is.

        Returns:
            noise - x0, [B, F, C, H, W] in the dtype of the chunk.
        """
        g = self.geometry
        batch, frames, _, height, width = x_BFCHW.shape
        rows, columns = g.grid(height, width)
        level = level if isinstance(level, Level) else self.level(level)
        x = self._own(embed_patches(x_BFCHW, self.patch_embedding), level)
        for block, keys_values in zip(self.blocks, text.keys_values, strict=True):
            x = block(x, level.modulation, keys_values, text.bias, view)
        patches = self.head(x, level.time)
        if self.split is not None:
            patches = self.split.all_tokens(patches, frames * rows * columns)
        _, ph, pw = g.patch_size
        patches = patches.view(batch, frames, rows, columns, ph, pw, g.out_dim)
        flow: Tensor = patches.permute(0, 1, 6, 2, 4, 3, 5).to(x_BFCHW.dtype)
        return flow.reshape(batch, frames, g.out_dim, height, width)

    def commit(
        self,
        x_BFCHW: Tensor,
        level: Level,
        text: Conditioning,
        view: View,
        *,
        patch: Patch = WHOLE,
    ) -> None:
        """The commit pass of a clean chunk: what `forward` leaves in memory, and no more.

        Where there is a `writer`, its weights compute it.

        Args:
            x_BFCHW: the chunk.
            level: what `level` gave for no noise.
            text: what `condition` gave.
            view: the chunk's view, in its commit pass.
            patch: latent frames, and rows and columns of usual tokens, that become one token.

        Raises:
            ValueError: level or text were read without the writer.
            AttributeError: the model has no kernel for such patches.
        """
        if self.writer is not None:
            if level.commit is None or text.commit is None:
                raise ValueError("a commit pass needs level and text as its own weights read them")
            self.writer.commit(x_BFCHW, level.commit, text.commit, view, patch=patch)
            return
        embedding = self.get_submodule(embedding_name(patch[1]))
        x = self._own(embed_patches(x_BFCHW, embedding, frames=patch[0]), level)
        *blocks, last = (block for block in self.blocks if isinstance(block, Block))
        for block, keys_values in zip(blocks, text.keys_values[:-1], strict=True):
            x = block(x, level.modulation, keys_values, text.bias, view)
        last.write(x, level.modulation, view)

    def _own(self, x: Tensor, level: Level) -> Tensor:
        """The tokens of this process.

        Raises:
            ValueError: Frames have levels of their own, and tokens are shared out across frames.
        """
        if self.split is None:
            return x
        if level.modulation.shape[1] != 1:
            raise ValueError("tokens cannot be shared out among processes: levels differ by frame")
        return self.split.own_tokens(x)
