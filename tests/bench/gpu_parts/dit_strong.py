"""A strong chunk in stock PyTorch: what one would do without kernels of one's own.

Keys are rotated once a chunk into one contiguous store that attention reads as it is; projections
are joined, what lies between matrix products is compiled, attention is cuDNN's, modulation is known
beforehand, and the whole chunk, moving of the memory included, can be one CUDA graph.
Source of the recipe: NVIDIA FlashDreams' published design; the code is ours.

Axis letters: as in `dit`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_parts import dit
from gpu_parts.attention_data import turned
from gpu_parts.dit import Scene, joined, modulated, rms, split
from gpu_parts.kernels import compiled

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class StrongChunk:
    """One chunk after another, with a memory that is full.

    Args:
        scene: The chunk and what was before it.
        attend: Attention: queries, keys and values [B, N, L, D] to an output like the queries.
    """

    def __init__(self, scene: Scene, attend: Attend) -> None:
        self.scene, self.attend, s = scene, attend, scene.sizes
        self.dtype, self.device = scene.context_k.dtype, scene.noise.device
        self.w = dict(scene.weights)
        for layer in range(s.layers):
            name = f"blocks.{layer}.self_attn"
            for kind in ("weight", "bias"):
                parts = [self.w.pop(f"{name}.{part}.{kind}") for part in "qkv"]
                self.w[f"{name}.qkv.{kind}"] = torch.cat(parts)
        layers = range(s.layers)
        self.text = [
            tuple(x.contiguous() for x in dit.text_keys(self.w, layer, scene.text, s.heads))
            for layer in layers
        ]
        self.levels = [
            dit.embedded_time(s, self.w, sigma, self.dtype) for sigma in (*scene.sigmas, 0.0)
        ]
        self._remember()
        self.enter, self.cross, self.leave, self.turn = (
            compiled(each, self.device) for each in (enter, cross, leave, turn)
        )

    def _remember(self) -> None:
        """The memory as the chunk before has left it: its own frames are not yet moved in."""
        scene, s = self.scene, self.scene.sizes
        time, space = (
            torch.stack([x.cos(), x.sin()], -1).to(self.device, torch.float32)
            for x in dit.angles(scene)
        )
        self.time, self.space = time, space.repeat(scene.frames, 1, 1)
        own = time[scene.context :].repeat_interleave(s.frame.tokens, 0)
        self.both = turned(own.flatten(-2), self.space).unflatten(-1, (-1, 2))
        shape = (s.layers, 1, s.heads, scene.memory, s.frame.tokens, s.head_dim)
        self.arena_k, self.arena_v = (
            torch.empty(shape, device=self.device, dtype=self.dtype) for _ in range(2)
        )
        frames, context = scene.frames, scene.context
        stored = (scene.context, s.frame.tokens)
        k, v = (
            x.unflatten(-1, (s.heads, -1)).transpose(2, 3).unflatten(3, stored)
            for x in (scene.context_k, scene.context_v)
        )
        k = turned(k.float(), space).to(self.dtype)
        self.ring, self.fresh = torch.zeros_like(k), k[:, :, :, -frames:].clone()
        self.ring[:, :, :, frames:] = k[:, :, :, :-frames]
        self.arena_v[:, :, :, frames:context] = v[:, :, :, :-frames]
        self.arena_v[:, :, :, context:] = v[:, :, :, -frames:]
        self.arena_v[:, :, :, :frames] = 0
        self.rows = torch.arange(context, device=self.device)
        self.last = torch.arange(context - frames, context, device=self.device)

    def __call__(self) -> Tensor:
        """The clean chunk [B, F, C, H, W], which then is part of the memory."""
        self._advance()
        noise, sigmas = self.scene.noise, self.scene.sigmas
        x = noise[0]
        for step, sigma in enumerate(sigmas):
            x0 = x - sigma * self._flow(x, step, keep=False)
            if step + 1 < len(sigmas):
                x = (1 - sigmas[step + 1]) * x0 + sigmas[step + 1] * noise[step + 1]
        self._flow(x0, len(sigmas), keep=True)
        return x0

    def _advance(self) -> None:
        """Move the chunk before in where its oldest frames were, and rotate all keys, once."""
        frames, context = self.scene.frames, self.scene.context
        oldest = torch.argsort(self.rows)[:frames]
        self.ring.index_copy_(3, oldest, self.fresh)
        self.arena_v[:, :, :, :context].index_copy_(3, oldest, self.arena_v[:, :, :, context:])
        self.rows.sub_(frames).index_copy_(0, oldest, self.last)
        self.turn(self.ring, self.time, self.rows, self.arena_k[:, :, :, :context])

    def _flow(self, latents: Tensor, level: int, *, keep: bool) -> Tensor:
        s, w, context = self.scene.sizes, self.w, self.scene.context
        x = dit.patches(w, latents)
        time, modulation = self.levels[level]
        for layer in range(s.layers):
            k, v = self.arena_k[layer], self.arena_v[layer]
            new = (*(each[:, :, context:] for each in (k, v)), self.fresh[layer] if keep else None)
            own = {name: w[f"blocks.{layer}.{name}"] for name in LAYER}
            q = self.enter(x, modulation, own, self.both, self.space, s.heads, new)
            y = self.attend(q, k.flatten(2, 3), v.flatten(2, 3))
            x, q = self.cross(x, y, modulation, own, s.heads)
            y = self.attend(q, *self.text[layer])
            x = self.leave(x, y, modulation, own)
        shift, scale = (w["head.modulation"] + time).chunk(2, 1)
        return dit.unpatched(dit.linear(w, "head.head", modulated(x, shift, scale)), latents)


LAYER = (
    "modulation",
    *(f"{name}.{kind}" for name in ("norm3", "ffn.0", "ffn.2") for kind in ("weight", "bias")),
    *(f"self_attn.{name}.{kind}" for name in ("qkv", "o") for kind in ("weight", "bias")),
    *(f"cross_attn.{name}.{kind}" for name in ("q", "o") for kind in ("weight", "bias")),
    *(f"self_attn.norm_{name}.weight" for name in "qk"),
    "cross_attn.norm_q.weight",
)
"""What a layer takes to its compiled parts, which so are the same for all layers."""


def enter(
    x: Tensor,
    modulation: Tensor,
    w: dict[str, Tensor],
    both: Tensor,
    space: Tensor,
    heads: int,
    new: tuple[Tensor, Tensor, Tensor | None],
) -> Tensor:
    """Up to attention: queries [B, N, L, D]; keys and values go to `new`, [B, N, F, P, D] each."""
    shift, scale, *_ = (w["modulation"][:, None] + modulation).unbind(2)
    y = dit.linear(w, "self_attn.qkv", modulated(x, shift, scale))
    q, k, v = y.chunk(3, -1)
    q, k = (
        split(rms(each, w[f"self_attn.norm_{name}.weight"]), heads).float()
        for name, each in (("q", q), ("k", k))
    )
    frames = (new[0].shape[2], new[0].shape[3])
    new[0].copy_(turned(k, both).unflatten(2, frames))
    new[1].copy_(split(v, heads).unflatten(2, frames))
    if new[2] is not None:
        new[2].copy_(turned(k, space).unflatten(2, frames))
    return turned(q, both).to(x.dtype)


def cross(
    x: Tensor, y: Tensor, modulation: Tensor, w: dict[str, Tensor], heads: int
) -> tuple[Tensor, Tensor]:
    """From attention to that over the prompt: x [B, L, E] and queries [B, N, L, D]."""
    gate = (w["modulation"][:, None] + modulation)[:, :, 2]
    x = x + dit.linear(w, "self_attn.o", joined(y)) * gate
    y = F.layer_norm(x, x.shape[-1:], w["norm3.weight"], w["norm3.bias"], dit.EPS)
    return x, split(rms(dit.linear(w, "cross_attn.q", y), w["cross_attn.norm_q.weight"]), heads)


def leave(x: Tensor, y: Tensor, modulation: Tensor, w: dict[str, Tensor]) -> Tensor:
    """From attention over the prompt to the layer's end: [B, L, E]."""
    *_, shift, scale, gate = (w["modulation"][:, None] + modulation).unbind(2)
    x = x + dit.linear(w, "cross_attn.o", joined(y))
    y = F.gelu(dit.linear(w, "ffn.0", modulated(x, shift, scale)), approximate="tanh")
    return x + dit.linear(w, "ffn.2", y) * gate


def turn(ring: Tensor, time: Tensor, rows: Tensor, into: Tensor) -> None:
    """Rotate stored keys [layers, B, N, S, P, D] to where they now are in time."""
    into.copy_(turned(ring.float(), time[rows][:, None]))
