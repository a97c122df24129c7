"""A chunk as published code computes it, written anew, and the same in float64 as the truth.

Each layer and pass joins the stored keys with the chunk's own, and rotates all of them anew in
complex float64; values are joined likewise. Positions are read back from the device as often as
there. The store holds keys without any rotation and is moved along after a chunk.
Source: arXiv 2602.06028 and its code; the cost is described, the code is ours.

Axis letters: as in `dit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_parts import dit
from gpu_parts.dit import Scene, joined, linear, modulated, rms, split

READS = 5
"""Numbers that a layer reads back from the device in a pass."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values [B, N, L, D] to an output like the queries."""


class PlainChunk:
    """One chunk after another, with a memory that is full.

    Args:
        scene: The chunk and what was before it.
        dtype: What it is computed in.
        attend: Attention.
        reads: Whether positions are read back from the device.
    """

    def __init__(self, scene: Scene, dtype: torch.dtype, attend: Attend, *, reads: bool) -> None:
        self.scene, self.dtype, self.attend = scene, dtype, attend
        self.w = {name: x.to(dtype) for name, x in scene.weights.items()}
        self.k, self.v = (list(x.to(dtype, copy=True)) for x in (scene.context_k, scene.context_v))
        device = scene.noise.device
        time, space = dit.angles(scene)
        both = (time[:, None] + space[None]).flatten(0, 1)
        self.turns = torch.polar(torch.ones_like(both), both).to(device)
        heads, text = scene.sizes.heads, scene.text.to(dtype)
        layers = range(scene.sizes.layers)
        self.text = [dit.text_keys(self.w, layer, text, heads) for layer in layers]
        self.ends = torch.arange(READS, device=device) if reads else None

    def __call__(self) -> Tensor:
        """The clean chunk [B, F, C, H, W], which then is part of the memory."""
        x = x0 = self.denoised()
        made: list[tuple[Tensor, Tensor]] = []
        self.flow(x0, 0.0, made)
        for layer, (k, v) in enumerate(made):
            for store, new in ((self.k, k), (self.v, v)):
                length = new.shape[1]
                store[layer][:, :-length] = store[layer][:, length:].clone()
                store[layer][:, -length:] = new
        return x

    def denoised(self) -> Tensor:
        """The clean chunk, without the commit pass."""
        noise, sigmas = self.scene.noise, self.scene.sigmas
        if self.dtype == torch.float64:
            noise = noise.double()
        x = noise[0]
        for step, sigma in enumerate(sigmas):
            x0 = x - sigma * self.flow(x, sigma, [])
            if step + 1 < len(sigmas):
                x = (1 - sigmas[step + 1]) * x0 + sigmas[step + 1] * noise[step + 1]
        return x0

    def flow(self, latents: Tensor, sigma: float, made: list[tuple[Tensor, Tensor]]) -> Tensor:
        """What the network predicts; each layer adds its keys and values [B, L, E] to `made`."""
        s, w = self.scene.sizes, self.w
        x = dit.patches(w, latents)
        time, modulation = dit.embedded_time(s, w, sigma, self.dtype)
        for layer in range(s.layers):
            x = self.block(layer, x, modulation, made)
        shift, scale = (w["head.modulation"] + time).chunk(2, 1)
        return dit.unpatched(linear(w, "head.head", modulated(x, shift, scale)), latents)

    def block(
        self, layer: int, x: Tensor, modulation: Tensor, made: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """One layer: [B, L, E] to [B, L, E]."""
        w, heads, name = self.w, self.scene.sizes.heads, f"blocks.{layer}"
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            w[f"{name}.modulation"][:, None] + modulation
        ).unbind(2)
        y = modulated(x, shift1, scale1)
        q, k = (
            rms(linear(w, f"{name}.self_attn.{each}", y), w[f"{name}.self_attn.norm_{each}.weight"])
            for each in "qk"
        )
        v = linear(w, f"{name}.self_attn.v", y)
        made.append((k, v))
        x = x + linear(w, f"{name}.self_attn.o", self.remembered(layer, q, k, v)) * gate1
        y = F.layer_norm(
            *(dit.wide(x), x.shape[-1:]),
            *(dit.wide(w[f"{name}.norm3.{part}"]) for part in ("weight", "bias")),
            eps=dit.EPS,
        ).to(x.dtype)
        q = rms(linear(w, f"{name}.cross_attn.q", y), w[f"{name}.cross_attn.norm_q.weight"])
        y = joined(self.attend(split(q, heads), *self.text[layer]))
        x = x + linear(w, f"{name}.cross_attn.o", y)
        y = F.gelu(linear(w, f"{name}.ffn.0", modulated(x, shift2, scale2)), approximate="tanh")
        return x + linear(w, f"{name}.ffn.2", y) * gate2

    def remembered(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over all frames, every key rotated anew."""
        heads, length = self.scene.sizes.heads, q.shape[1]
        if self.ends is not None:
            for end in self.ends:
                end.item()
        keys = torch.cat([self.k[layer], k], 1)
        values = torch.cat([self.v[layer], v], 1)
        q, keys = self.rotated(q, self.turns[-length:]), self.rotated(keys, self.turns)
        return joined(self.attend(q, keys, split(values, heads)))

    def rotated(self, x: Tensor, turns: Tensor) -> Tensor:
        """[B, L, E] as rotated [B, N, L, D]."""
        parts = split(x, self.scene.sizes.heads).double().unflatten(-1, (-1, 2)).contiguous()
        return torch.view_as_real(torch.view_as_complex(parts) * turns).flatten(-2).to(x.dtype)


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in the dtype of its inputs, one head at a time."""
    found = [
        torch.softmax(q[:, head] @ k[:, head].transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        @ v[:, head]
        for head in range(q.shape[1])
    ]
    return torch.stack(found, 1)


def truth(scene: Scene) -> Tensor:
    """The clean chunk in float64."""
    return PlainChunk(scene, torch.float64, exact, reads=False).denoised()
