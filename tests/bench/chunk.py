"""A chunk on a CPU: the torch backend beside the published way, by turns, on the same weights.

    python tests/bench/chunk.py               one thread and two, float32 and bfloat16
    python tests/bench/chunk.py --threads 1 --dtypes bfloat16 --set model.sizes=[320x192]

It is `cfgen bench` with one variant more. The memory is a window of 21 latent frames at relative
positions, of which 3 are sink, and it is full: every frame behind the sink moves with every chunk,
which is the worst case for a cache of rotated keys. The published way keeps keys without rotation,
joins them with the chunk's own in every layer and pass and rotates all of them. A ratio is told
only if both make the same chunk; embedding of time and of the prompt is the same in both.

Axis letters: B batch, L tokens of a chunk, N heads, D head dim, E model width.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cfgen.bench.measure import Bench
from cfgen.bench.variants import BenchSetup, Variant, prepare
from cfgen.cli.bench import facts_on, lines_on
from cfgen.config.loader import load
from cfgen.memory.protocols import Norms, Pass
from cfgen.model.generator import Generator
from cfgen.ops.reference import Rope
from cfgen.ops.select import TORCH, Ops
from cfgen.renderer.source import FrameSource

PUBLISHED = "published"
WINDOW, SINK = 21, 3
MEMORY = tuple(
    f"memory.{name}={value}"
    for name, value in {
        "policy": "window",
        "size": WINDOW,
        "sink": SINK,
        "positions": "relative",
    }.items()
)


class PublishedMemory:
    """Memory and view as published code has them: keys are kept without any rotation.

    Rotation is in complex float64; the angles are known beforehand, unlike there.
    Source: the method of arXiv 2602.06028 and its released code; what it does is described there,
    the code is ours.

    Args:
        generator: Whose layers attend.
        grid: Tokens of a latent frame as (rows, columns).
        window: Latent frames that are read, the chunk's own included.
        sink: Those kept from the start.
    """

    def __init__(
        self, generator: Generator, grid: tuple[int, int], *, window: int, sink: int
    ) -> None:
        sizes = generator.geometry
        rope = Rope(sizes.head_dim)
        angles = (rope.temporal(range(window))[:, None] + rope.spatial(grid)).flatten(0, 1)
        self._turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        self._heads, self._tokens, self._sink = sizes.num_heads, grid[0] * grid[1], sink
        dtype = generator.blocks[0].self_attn.q.dtype
        nothing = torch.zeros(1, 0, sizes.num_heads, sizes.head_dim, dtype=dtype)
        self._kept = [(nothing, nothing)] * sizes.num_layers
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        self.capacity, self._committed = window, 0
        self.tables = (self,)

    def slots(self) -> range:
        """A slot for each latent frame that is remembered, as the tables of cfgen tell them."""
        return range(min(self._committed, self.capacity))

    def figures(self) -> dict[str, float]:
        """How many those are."""
        return {"slots": len(self.slots())}

    def begin(self, frames: int) -> PublishedMemory:
        """The next chunk; the oldest frames behind the sink make room."""
        sink, most = self._sink * self._tokens, (self.capacity - frames) * self._tokens
        for layer, kept in enumerate(self._kept):
            start = sink + max(0, kept[0].shape[1] - most)
            k, v = (torch.cat([x[:, :sink], x[:, start:]], 1) for x in kept)
            self._kept[layer] = k, v
        return self

    def at(self, pass_: Pass) -> PublishedMemory:
        """The same chunk in another pass: the last one, which commits, is what will be kept."""
        return self

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, norms: Norms) -> Tensor:
        """Rotate everything, then attend to it: [B, L, E]."""
        self.write(layer, k, v, norms)
        q = plain_norm(q, norms.q, norms.eps).unflatten(-1, (self._heads, -1))
        keys, values = (
            torch.cat(pair, 1) for pair in zip(self._kept[layer], self._made[layer], strict=True)
        )
        end = keys.shape[1]
        q, keys = self._rotate(q, slice(end - q.shape[1], end)), self._rotate(keys, slice(0, end))
        heads = (x.transpose(1, 2) for x in (q, keys, values))
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

    def write(self, layer: int, k: Tensor, v: Tensor, norms: Norms) -> None:
        """What a pass leaves."""
        k = plain_norm(k, norms.k, norms.eps)
        heads = (x.unflatten(-1, (self._heads, -1)) for x in (k, v))
        self._made[layer] = next(heads), next(heads)

    def remember(self, latents: Tensor) -> None:
        """Nothing: its clips have one shot, and none is committed again."""

    def reencode(self) -> tuple[()]:
        """Nothing: all that it keeps is whole."""
        return ()

    def commit(self, view: PublishedMemory) -> None:
        """Keep the chunk's keys and values."""
        for layer, new in self._made.items():
            k, v = (torch.cat(pair, 1) for pair in zip(self._kept[layer], new, strict=True))
            self._kept[layer] = k, v
        self._committed += self._made[0][0].shape[1] // self._tokens

    def _rotate(self, x_BLND: Tensor, where: slice) -> Tensor:
        pairs = torch.view_as_complex(x_BLND.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self._turns[where]).flatten(-2).to(x_BLND.dtype)


def plain_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the full width."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return normed.type_as(x) * gain.type_as(x)


def plain_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, *, eps: float, dtype: torch.dtype
) -> Tensor:
    """Layer norm, then a shift and a scale, [B, 1 or frames, E]."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps).type_as(x)
    frames = normed.unflatten(1, (shift.shape[1], -1))
    return (frames * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2).to(dtype)


def plain_add_gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """The sum of x and y gate."""
    return x + (y.unflatten(1, (gate.shape[1], -1)) * gate[:, :, None]).flatten(1, 2)


PLAIN = dataclasses.replace(
    TORCH, name=PUBLISHED, modulate=plain_modulate, add_gated=plain_add_gated
)


class PublishedBeside(BenchSetup):
    """A setting of `cfgen bench` that also knows the backend `published`."""

    def ops(self, way: Variant) -> Ops:
        """As there."""
        return PLAIN if way.backend == PUBLISHED else super().ops(way)

    def rotated_nbytes(self, way: Variant, ops: Ops) -> int:
        """As there."""
        return 0 if way.backend == PUBLISHED else super().rotated_nbytes(way, ops)

    def source(self, way: Variant, ops: Ops) -> FrameSource:
        """As there."""
        source = super().source(way, ops)
        if way.backend != PUBLISHED:
            return source
        clip, memory = source.plan.geometry, self.config.memory
        grid = self.generator.geometry.grid(clip.latent_height, clip.latent_width)
        kept = PublishedMemory(self.generator, grid, window=self.slots, sink=memory.sink)
        return dataclasses.replace(source, memory=kept)


def bench_of(assignments: list[str], **flags: str) -> tuple[BenchSetup, Bench]:
    """Both ways with a full window: a setting, and what measures it."""
    config = load(flags, assignments=[*MEMORY, *assignments], environ=ALONE).config
    setting = PublishedBeside(**vars(prepare(config, may_stand_in=False)))
    return setting, Bench(setting, [Variant("torch", "auto"), Variant(PUBLISHED, "auto")])


ALONE = {"XDG_CONFIG_HOME": os.devnull}
"""No settings of the user's own."""


def main() -> None:
    """Measure every number of threads and type, print and keep what was found."""
    from kept import RESULTS, keep  # beside this file, when it is the script that runs

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=20, help="of each setting")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="values")
    parser.add_argument("--results", type=Path, default=RESULTS)
    told, runs = parser.parse_args(), []
    for threads in told.threads:
        for dtype in told.dtypes:
            setting, work = bench_of(
                [f"threads={threads}", *told.values], preset=told.preset, dtype=dtype
            )
            for line in (*work.prepare(), *work.run(told.seconds)):
                sys.stderr.write(f"{line}\n")
            report = work.report()
            sys.stderr.write("\n".join(lines_on(setting, report)) + "\n\n")
            runs.append(facts_on(setting, report))
    keep(told.results / "chunk-cpu.json", {"runs": runs})


if __name__ == "__main__":
    main()
