"""A generator's flow of a chunk in one dense forward over past and chunk, without any cache.

The past is laid out by hand here, from far.md and framepack.md, not by the tables of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cfgen.memory.protocols import Norms
from cfgen.model.generator import Block, Conditioning, Generator
from cfgen.model.patches import embed_patches, embedding_name
from cfgen.ops.reference import Rope

Patch = tuple[int, int, int]


@dataclass(frozen=True)
class Unit:
    """Frames that attend to one another, and to all units before them.

    Attributes:
        frames: Latent frames, one token frame after another; those below 0 are zeros.
        patch: What a token stands for.
        positions: The temporal position of each token frame.
        pooled: Whether rotations are the mean over a patch.
        shown: Token frames that other units see, its first ones; None for all.
    """

    frames: list[int]
    patch: Patch
    positions: list[int]
    pooled: bool = False
    shown: int | None = None


def first_of(count: int, chunk: int) -> list[Unit]:
    """A sink: it was committed with all of the first chunk, and keeps what it knows of that."""
    frames = list(range(chunk))
    return [Unit(frames, (1, 1, 1), frames, shown=count)] if count else []


def far(total: int, chunk: int, window: int, *, sink: int = 0) -> list[Unit]:
    """FAR: window frames as they are, older ones by themselves with patch 4; all at their times."""
    units = first_of(sink, chunk)
    for start in range(0, total, chunk):
        frames = [f for f in range(start, start + chunk) if f >= sink]
        past = [f for f in frames if f < total - window]
        if past:
            units.append(Unit(past, (1, 4, 4), past))
    for start in range(0, total, chunk):
        newest = [f for f in range(max(start, sink), start + chunk) if f >= total - window]
        if newest:
            units.append(Unit(newest, (1, 1, 1), newest))
    return units


def framepack(total: int, chunk: int) -> list[Unit]:
    """FramePack F1: start [0], 16 frames with patch 4 [1..16], 2 with 2 [17, 18], 1 [19]."""
    units = first_of(min(1, total), chunk)
    history = range(1, total)

    def packed(first: int, last: int, size: int, at: int) -> None:
        frames = [f if f in history else -1 for f in range(total - first, total - last)]
        groups = [frames[i : i + size] for i in range(0, len(frames), size)]
        kept = [(i, group) for i, group in enumerate(groups) if max(group) > 0]
        if kept:
            positions = [at + size * i for i, _ in kept]
            flat = [f for _, group in kept for f in group]
            units.append(Unit(flat, (size,) * 3, positions, pooled=size > 1))

    packed(19, 3, 4, 1)
    packed(3, 1, 2, 17)
    packed(1, 0, 1, 19)
    return units


def inverted(length: int, begin: int, chunk: int, at: int) -> list[Unit]:
    """FramePack: start [0], and from a chunk's end on, `at` + chunk: 1 frame, 2, 16 with patch 4.

    Args:
        length: Latent frames of the film, in the order in which they play.
        begin: First one of the chunk.
        chunk: Latent frames of the chunk.
        at: Its temporal position.
    """
    units = first_of(1, 1)
    ends, behind = begin + chunk, at + chunk

    def packed(first: int, last: int, size: int) -> None:
        frames = [f if f < length else -1 for f in range(ends + first, ends + last)]
        groups = [frames[i : i + size] for i in range(0, len(frames), size)]
        kept = [(i, group) for i, group in enumerate(groups) if max(group) > 0]
        if kept:
            positions = [behind + first + size * i for i, _ in kept]
            flat = [f for _, group in kept for f in group]
            units.append(Unit(flat, (size,) * 3, positions, pooled=size > 1))

    packed(3, 19, 4)
    packed(1, 3, 2)
    packed(0, 1, 1)
    return units


@dataclass
class DenseView:
    """Attention of all tokens at once, each to the units up to its own."""

    rotations: Tensor
    seen: Tensor
    heads: int

    def attend(self, _layer: int, q: Tensor, k: Tensor, v: Tensor, norms: Norms) -> Tensor:
        def made(x: Tensor, gain: Tensor) -> Tensor:
            x = torch.nn.functional.rms_norm(x, gain.shape, gain, norms.eps)
            x = x.unflatten(-1, (self.heads, -1)).unflatten(-1, (-1, 2))
            return torch.view_as_real(
                torch.view_as_complex(x.contiguous()) * self.rotations[None, :, None]
            ).flatten(-2)

        q, k, v = made(q, norms.q), made(k, norms.k), v.unflatten(-1, (self.heads, -1))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~self.seen, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def rotations(rope: Rope, grid: tuple[int, int], unit: Unit) -> Tensor:
    """Complex numbers of a unit's tokens, worked out cell by cell."""
    span, height, width = unit.patch if unit.pooled else (1, 1, 1)
    (rows, columns), space = grid, rope.spatial(grid).unflatten(0, grid)
    found = []
    for position in unit.positions:
        for row in range(0, rows, unit.patch[1]):
            for column in range(0, columns, unit.patch[2]):
                cells = [
                    rope.temporal([position + t])[0]
                    + space[min(row + y, rows - 1), min(column + x, columns - 1)]
                    for t in range(span)
                    for y in range(height)
                    for x in range(width)
                ]
                turned = [torch.polar(torch.ones_like(angles), angles) for angles in cells]
                found.append(torch.stack(turned).mean(0))
    return torch.stack(found)


def uncached_flow(
    generator: Generator,
    past: list[Unit],
    latents: Tensor,
    noisy: Tensor,
    sigma: float,
    text: Conditioning,
    at: list[int],
) -> Tensor:
    """The flow of a chunk [B, F, C, H, W] behind latents [B, T, C, H, W], its frames `at` times."""
    g = generator.geometry
    grid = g.grid(*noisy.shape[-2:])
    rope = Rope(g.head_dim)
    zeros = torch.zeros_like(noisy[:, :1])
    tokens, turns, order, public = [], [], [], []
    for number, unit in enumerate([*past, Unit([], (1, 1, 1), at)]):
        x = noisy
        if unit.frames:
            x = torch.cat([latents[:, f : f + 1] if f >= 0 else zeros for f in unit.frames], 1)
        embedding = generator.get_submodule(embedding_name(unit.patch[1]))
        tokens.append(embed_patches(x, embedding, frames=unit.patch[0]))
        turns.append(rotations(rope, grid, unit))
        many = tokens[-1].shape[1]
        order += [number] * many
        shown = len(unit.positions) if unit.shown is None else unit.shown
        public += [i < many * shown // len(unit.positions) for i in range(many)]
    x, own = torch.cat(tokens, 1), tokens[-1].shape[1]
    clean, level = generator.level(0.0), generator.level(sigma)
    shares = [(clean, x.shape[1] - own), (level, own)]
    modulation = torch.cat([each.modulation.expand(-1, n, -1, -1) for each, n in shares], 1)
    units, open_ = torch.tensor(order), torch.tensor(public)
    seen = (units[:, None] > units) & open_ | (units[:, None] == units)
    view = DenseView(torch.cat(turns), seen, g.num_heads)
    for block, keys_values in zip(generator.blocks, text.keys_values, strict=True):
        assert isinstance(block, Block)
        x = block(x, modulation, keys_values, text.bias, view)
    patches = generator.head(x[:, -own:], level.time)
    rows, columns = grid
    _, ph, pw = g.patch_size
    patches = patches.view(len(noisy), noisy.shape[1], rows, columns, ph, pw, g.out_dim)
    return patches.permute(0, 1, 6, 2, 4, 3, 5).reshape(noisy.shape)
