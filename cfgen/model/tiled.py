"""Decoding that goes on when memory runs out: in tiles, in smaller tiles, then on the CPU.

A decode that fails leaves its state as it was, so the same latents are decoded again in smaller
pieces and no frame is lost. In tiles, a clip's caches wait in main memory: each tile takes its part
of them along, and what the tiles leave behind is blended, as their frames are.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cfgen.errors import BudgetError
from cfgen.model.vae import Cache, Decoder, Mode, State
from cfgen.out_of_memory import is_out_of_memory

SMALLEST = 16
"""Latent cells on the side of the smallest tile: 128 or 256 pixels. Smaller ones show: in a tile,
frames lack what lies around it, and the layer that looks at the whole frame sees the tile alone."""

CPU = torch.device("cpu")


class TiledDecoder:
    """A decoder that goes on in smaller pieces when memory runs out.

    How a clip is decoded stands in its state's `mode`, where the caller sees a change; a clip stays
    in its mode to its end. In tiles, frames come out in main memory.

    Args:
        decoder: what decodes.
        tile: latent cells on the side of the tiles to begin with, None for whole frames. Frames
            differ a little from those of whole frames.

    Raises:
        ValueError: `tile` is smaller than `SMALLEST`.
    """

    def __init__(self, decoder: Decoder, *, tile: int | None = None) -> None:
        if tile is not None and tile < SMALLEST:
            raise ValueError(f"a tile must have at least {SMALLEST} cells a side, got {tile}")
        self.decoder = decoder
        self.tile = tile
        self._twin: Decoder | None = None

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return self.decoder.latent_channels

    @property
    def spatial_stride(self) -> int:
        """Pixels that a latent cell covers along each axis."""
        return self.decoder.spatial_stride

    @property
    def reach(self) -> int:
        """Latent frames before its own that a frame depends on, at most."""
        return self.decoder.reach

    def parameters(self) -> Iterator[nn.Parameter]:
        """The decoder's weights."""
        return self.decoder.parameters()

    def start(self) -> State:
        """The state before the first latent frame."""
        return replace(self.decoder.start(), mode=Mode(self.tile))

    def decode(self, latents_BFCHW: Tensor, state: State | None = None) -> Tensor:
        """Frames of the next latent frames of a clip; see `Decoder.decode`.

        Raises:
            BudgetError: memory runs out even for the smallest tiles on the CPU. The state is still
                that before these latents.
        """
        state = self.start() if state is None else state
        while True:
            try:
                return self._decode(latents_BFCHW, state)
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = self._smaller(state.mode, max(latents_BFCHW.shape[-2:]))
                if smaller is None:
                    raise BudgetError(
                        f"memory ran out while decoding {state.mode}: {error}",
                        "close other programs, or render a smaller size",
                    ) from error
            # Only here, when the error is gone and with it what the decode had reached, ...
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # ... can its memory be given back.
            state.mode = smaller

    def _decode(self, latents: Tensor, state: State) -> Tensor:
        """One attempt in the state's mode."""
        decoder = self._on_cpu() if state.mode.on_cpu else self.decoder
        device = next(decoder.parameters()).device
        tile = state.mode.tile
        if tile is None or tile >= max(latents.shape[-2:]):
            state.caches = _moved(state.caches, device)
            return decoder.decode(latents.to(device), state)
        state.caches = _moved(state.caches, CPU)
        video, state.caches = _decode_tiles(decoder, latents.to(device), state.caches, tile)
        return video

    def _smaller(self, mode: Mode, side: int) -> Mode | None:
        """The next mode to try, for frames of `side` cells; None after the last."""
        now = min(mode.tile or side, side)
        if now > SMALLEST:
            return replace(mode, tile=max(SMALLEST, -(-now // 2)))
        if mode.on_cpu or next(self.parameters()).device.type == "cpu":
            return None
        return Mode(on_cpu=True)

    def _on_cpu(self) -> Decoder:
        """A copy of the decoder on the CPU, made without another on the device."""
        if self._twin is None:
            moved = {
                id(weight): nn.Parameter(weight.detach().to(CPU, copy=True), requires_grad=False)
                for weight in self.parameters()
            }
            self._twin = copy.deepcopy(self.decoder, moved)
        return self._twin


@dataclass(frozen=True, slots=True)
class _Axis:
    """How tiles lie along one axis, in latent cells.

    Attributes:
        size: Cells of the whole.
        tile: Cells of each tile.
        starts: First cell of each tile; neighbours share at least a quarter of a tile.
    """

    size: int
    tile: int
    starts: tuple[int, ...]

    @classmethod
    def of(cls, size: int, tile: int) -> _Axis:
        """Tiles of at most `tile` cells over `size`."""
        if size <= tile:
            return cls(size, size, (0,))
        rest = size - tile
        steps = -(-rest // (tile - tile // 4))
        return cls(size, tile, tuple(round(i * rest / steps) for i in range(steps + 1)))

    def span(self, number: int, scale: int) -> slice:
        """Where a tile lies on a map that is `scale` times as fine as the latents."""
        start = self.starts[number]
        return slice(start * scale, (start + self.tile) * scale)

    def share(self, number: int, scale: int) -> Tensor:
        """How much a tile counts at each of its points; all together 1 everywhere."""
        total = torch.zeros(self.size * scale, dtype=torch.float64)
        for other in range(len(self.starts)):
            total[self.span(other, scale)] += self._weight(other, scale)
        return self._weight(number, scale) / total[self.span(number, scale)]

    def _weight(self, number: int, scale: int) -> Tensor:
        """1, and less towards a neighbour."""
        points = torch.arange(self.tile * scale, dtype=torch.float64) + 0.5
        rise = (points / (self.tile // 4 * scale)).clamp(max=1)
        weight = torch.ones_like(rise)
        if number > 0:
            weight *= rise
        if number + 1 < len(self.starts):
            weight *= rise.flip(0)
        return weight


@dataclass(frozen=True, slots=True)
class _Grid:
    """How tiles lie on a frame; every map of a tile is a part of the frame's."""

    rows: _Axis
    columns: _Axis

    @classmethod
    def of(cls, height: int, width: int, tile: int) -> _Grid:
        return cls(_Axis.of(height, tile), _Axis.of(width, tile))

    def tiles(self) -> list[tuple[int, int]]:
        """Row and column of every tile."""
        counts = range(len(self.rows.starts)), range(len(self.columns.starts))
        return list(itertools.product(*counts))

    def cut(self, whole: Tensor, row: int, column: int) -> Tensor:
        """A tile's part of a map [..., H, W]."""
        scale = whole.shape[-1] // self.columns.size
        return whole[..., self.rows.span(row, scale), self.columns.span(column, scale)]

    def blank(self, part: Tensor) -> Tensor:
        """Zeros in main memory for the map that a tile's map is a part of."""
        scale = part.shape[-1] // self.columns.tile
        size = (self.rows.size * scale, self.columns.size * scale)
        return part.new_zeros((*part.shape[:-2], *size), device=CPU)

    def lay(self, part: Tensor, whole: Tensor, row: int, column: int) -> None:
        """Add a tile's map, by its share, to what lies there of its neighbours."""
        scale = part.shape[-1] // self.columns.tile
        shares = self.rows.share(row, scale)[:, None] * self.columns.share(column, scale)
        self.cut(whole, row, column).add_((part * shares.to(part)).to(CPU))


def _decode_tiles(
    decoder: Decoder, latents: Tensor, caches: list[Cache], tile: int
) -> tuple[Tensor, list[Cache]]:
    """Frames of the next latents and the caches after them, both put together in main memory.

    Args:
        decoder: what decodes a tile.
        latents: [B, F, C, h, w], where the decoder is.
        caches: those of the whole frame; not changed.
        tile: cells on the side of a tile.
    """
    height, width = latents.shape[-2:]
    grid = _Grid.of(height, width, tile)
    wholes: list[Cache] = []
    for row, column in grid.tiles():
        cut = [grid.cut(c, row, column) if isinstance(c, Tensor) else c for c in caches]
        state = State(_moved(cut, latents.device))
        frames = decoder.decode(grid.cut(latents, row, column), state)
        parts: list[Cache] = [frames, *state.caches]
        wholes = wholes or [grid.blank(p) if isinstance(p, Tensor) else p for p in parts]
        for part, whole in zip(parts, wholes, strict=True):
            if isinstance(part, Tensor) and isinstance(whole, Tensor):
                grid.lay(part, whole, row, column)
    video, *after = wholes
    assert isinstance(video, Tensor)
    return video, after


def _moved(caches: list[Cache], device: torch.device) -> list[Cache]:
    return [cache.to(device) if isinstance(cache, Tensor) else cache for cache in caches]
