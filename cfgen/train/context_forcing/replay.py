"""A rollout's passes again, all in one forward: chunks as they were committed, and noisy ones.

A rollout goes chunk by chunk without gradients. What each of its passes read is known afterwards,
so any of them can be made again side by side: linear layers run over all tokens at once, and only
attention goes pass by pass, with the keys that the pass read at the positions that they had then.
So gradients reach those who wrote memory, and a teacher or critic can score chunks after a past.
Source: self-gradient forcing, arXiv 2607.20368 (a mask there; positions may move here).

Axis letters: B batch, F latent frames, C channels, h w latent grid, P tokens per latent frame,
L = F * P, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cfgen.memory.protocols import Norms, Pass
from cfgen.model.generator import Conditioning, Generator
from cfgen.ops.reference import Rope, rotate, turns
from cfgen.ops.select import TORCH, Ops
from cfgen.ops.torch_backend import norm


class Read(NamedTuple):
    """A latent frame that a pass reads, at its temporal position."""

    frame: int
    position: int


Reads = Sequence[Sequence[Read]]
"""What a pass reads in each layer, its own frames last."""

Pages = list[dict[int, tuple[Tensor, Tensor]]]
"""For each layer, by latent frame, keys rotated in space and values: [B, P, N, D]."""


@dataclass(frozen=True, slots=True)
class Part:
    """One pass over consecutive latent frames.

    Attributes:
        start: the first of them.
        latents: [B, F, C, h, w].
        level: their noise levels, [B, F]; 0 for a commit pass.
        texts: the prompt of each chunk in it.
        reads: what the pass reads.
    """

    start: int
    latents: Tensor
    level: Tensor
    texts: Sequence[Conditioning]
    reads: Reads

    @property
    def frames(self) -> range:
        """Its latent frames."""
        return range(self.start, self.start + self.latents.shape[1])


def replay(
    generator: Generator,
    commits: Sequence[Part],
    noisy: Sequence[Part],
    *,
    learnt: Collection[int] | None = None,
) -> list[Tensor]:
    """The flow of every noisy part, after the chunks that were committed.

    Args:
        generator: the network.
        commits: commit passes; other parts read what these write.
        noisy: denoising passes; only they themselves read what they write.
        learnt: first latent frames of the commits through which gradients go; None: all of them.

    Returns:
        flows [B, F, C, h, w], one for each noisy part.
    """
    past: Pages = []
    if learnt is not None and any(part.start not in learnt for part in commits):
        with torch.no_grad():
            past = _run(generator, commits, [], [])[1]
        commits = [part for part in commits if part.start in learnt]
    return _run(generator, commits, noisy, past)[0]


def _run(
    generator: Generator, commits: Sequence[Part], noisy: Sequence[Part], past: Pages
) -> tuple[list[Tensor], Pages]:
    """All parts in one forward: flows of the noisy ones, and what the commits wrote."""
    parts = [*commits, *noisy]
    view = ReplayView(parts, len(commits), past, generator)
    latents = torch.cat([part.latents for part in parts], 1)
    level = torch.cat([part.level for part in parts], 1)
    text = joined([text for part in parts for text in part.texts])
    flow = generator(latents, level, text, view)
    flows = torch.split(flow, [len(part.frames) for part in parts], 1)
    return list(flows[len(commits) :]), view.pages


def joined(texts: Sequence[Conditioning]) -> Conditioning:
    """Prompts of consecutive chunks as one, each [B, ...]: [B * chunks, ...]."""
    first = texts[0]
    if all(text is first for text in texts):
        return first

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(tensors), 1).flatten(0, 1)

    layers = zip(*(text.keys_values for text in texts), strict=True)
    keys_values = tuple(
        (stacked([k for k, _ in layer]), stacked([v for _, v in layer])) for layer in layers
    )
    biases = [text.bias for text in texts if text.bias is not None]
    return Conditioning(keys_values, stacked(biases) if biases else None)


class _Plan(NamedTuple):
    """Where the keys of a layer come from.

    Frames are numbered in the order of all parts, those of `past` behind them.

    Attributes:
        past: latent frames that are read and that no part writes.
        frames: a frame and its position, each pair one time: [n] and n positions.
        positions: see there.
        keys: for each part, which of these pairs it reads.
        values: for each part, the frames that it reads.
    """

    past: list[int]
    frames: Tensor
    positions: list[int]
    keys: list[Tensor]
    values: list[Tensor]


class ReplayView:
    """See `protocols.View`: all tokens of all parts at once.

    Args:
        parts: the passes, commits first.
        commits: how many of them are.
        past: what other commits wrote.
        generator: whose passes they are.
        ops: attention.

    Attributes:
        pages: what the commits wrote, layer by layer.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        commits: int,
        past: Pages,
        generator: Generator,
        ops: Ops = TORCH,
    ) -> None:
        g = generator.geometry
        self._parts, self._commits, self._past, self._ops = parts, commits, past, ops
        self._rope, self._head_dim = Rope(g.head_dim), g.head_dim
        self._space = self._rope.spatial(g.grid(*parts[0].latents.shape[-2:]))
        self.pages: Pages = []

    def at(self, pass_: Pass) -> ReplayView:
        """Each part is in its own pass already."""
        return self

    def write(self, layer: int, k: Tensor, v: Tensor, norms: Norms) -> None:
        """Not needed: commits run in full, beside parts whose flow is wanted."""
        raise NotImplementedError("a replay attends in every layer")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, norms: Norms) -> Tensor:
        """Attention of every part to what it reads: all [B, L, N * D], tokens of all parts."""
        tokens = len(self._space)
        frames = q.shape[1] // tokens
        q, k = (
            rotate(normed, turns(self._space.repeat(frames, 1), normed.dtype, normed.device)).to(x)
            for x, normed in (
                (q, norm(q, norms.q, norms.eps, self._head_dim)),
                (k, norm(k, norms.k, norms.eps, self._head_dim)),
            )
        )
        k, v = (torch.unflatten(x, 1, (frames, tokens)) for x in (k, self._heads(v)))
        self._keep(layer, k, v)
        plan = self._plan(layer, k.device)
        if plan.past:
            k, v = (
                torch.cat([x, torch.stack([self._past[layer][f][i] for f in plan.past], 1)], 1)
                for i, x in enumerate((k, v))
            )
        keys = self._in_time(k.index_select(1, plan.frames), plan.positions)
        own = [read.position for part in self._parts for read in _own(part, layer)]
        queries = self._in_time(torch.unflatten(q, 1, (frames, tokens)), own)
        return torch.cat(
            [
                self._ops.attend(
                    query.flatten(1, 2),
                    keys.index_select(1, which).flatten(1, 2),
                    v.index_select(1, frames_read).flatten(1, 2),
                )
                for query, which, frames_read in zip(
                    torch.split(queries, [len(part.frames) for part in self._parts], 1),
                    plan.keys,
                    plan.values,
                    strict=True,
                )
            ],
            1,
        ).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (-1, self._head_dim))

    def _in_time(self, x: Tensor, positions: Sequence[int]) -> Tensor:
        """Frames [B, F, P, N, D], each rotated to its position."""
        angles = self._rope.temporal(positions).repeat_interleave(x.shape[2], 0)
        rotated = rotate(x.flatten(1, 2), turns(angles, x.dtype, x.device))
        return torch.unflatten(rotated, 1, (x.shape[1], -1))

    def _keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        if len(self.pages) > layer:
            return  # worked out again for gradients
        written = [frame for part in self._parts[: self._commits] for frame in part.frames]
        self.pages.append({frame: (k[:, i], v[:, i]) for i, frame in enumerate(written)})

    def _plan(self, layer: int, device: torch.device) -> _Plan:
        """How a layer gathers its keys."""
        written: dict[int, int] = {}
        own: list[range] = []
        for number, part in enumerate(self._parts):
            begin = own[-1].stop if own else 0
            own.append(range(begin, begin + len(part.frames)))
            if number < self._commits:
                written.update(zip(part.frames, own[-1], strict=True))
        known: dict[int, int] = dict(written)
        past: list[int] = []
        pairs: dict[tuple[int, int], int] = {}
        keys: list[list[int]] = []
        values: list[list[int]] = []
        for part, place in zip(self._parts, own, strict=True):
            sources = []
            for read in part.reads[layer][: -len(place)]:
                if read.frame not in known:
                    known[read.frame] = own[-1].stop + len(past)
                    past.append(read.frame)
                sources.append((known[read.frame], read.position))
            positions = [read.position for read in _own(part, layer)]
            sources += zip(place, positions, strict=True)
            keys.append([pairs.setdefault(pair, len(pairs)) for pair in sources])
            values.append([frame for frame, _ in sources])

        def indices(numbers: Sequence[int]) -> Tensor:
            return torch.tensor(numbers, device=device)

        return _Plan(
            past,
            indices([frame for frame, _ in pairs]),
            [position for _, position in pairs],
            [indices(each) for each in keys],
            [indices(each) for each in values],
        )


def _own(part: Part, layer: int) -> Sequence[Read]:
    """The reads of a part's own frames."""
    return part.reads[layer][-len(part.frames) :]
