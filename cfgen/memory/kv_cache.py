"""Page pools: where keys and values lie. They know no policy.

Axis letters: B batch, P tokens per latent frame, F latent frames, N heads, D head dim, S slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class PagePool(Protocol):
    """Storage of pages, numbered per layer."""

    layers: int

    def take(self, layer: int) -> int:
        """A page that is not in use, now in use."""

    def keep(self, layer: int, pages: Iterable[int]) -> None:
        """Free every page of the layer but these."""

    def write(self, layer: int, pages: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Store a chunk: k, v [B, F * P, N, D], one page a latent frame."""

    def read(self, layer: int, pages: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of pages in the order asked for: [B, S * P, N, D] each."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


class KVCache:
    """A pool of fixed size, allocated once; pages are written in place and never moved.

    Args:
        layers: layers of the generator.
        pages: most pages in use at once in a layer.
        shape: (B, P, N, D) of one page.
        dtype: dtype of the stored keys and values.
        device: where the pool lives.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layers = layers
        self._k = torch.zeros(layers, pages, *shape, dtype=dtype, device=device)
        self._v = torch.zeros_like(self._k)
        self._used: list[set[int]] = [set() for _ in range(layers)]

    def take(self, layer: int) -> int:
        """The lowest free page. IndexError if all are in use: the policy exceeds its capacity."""
        used = self._used[layer]
        page = next(i for i in range(len(used) + 1) if i not in used)
        if page >= self._k.shape[1]:
            raise IndexError(f"layer {layer}: all {self._k.shape[1]} pages are in use")
        used.add(page)
        return page

    def keep(self, layer: int, pages: Iterable[int]) -> None:
        """Free every page of the layer but these."""
        self._used[layer] &= set(pages)

    def write(self, layer: int, pages: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Store a chunk, [B, F * P, N, D]."""
        for page, k_frame, v_frame in zip(
            pages, k.chunk(len(pages), 1), v.chunk(len(pages), 1), strict=True
        ):
            self._k[layer, page].copy_(k_frame)
            self._v[layer, page].copy_(v_frame)

    def read(self, layer: int, pages: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of pages, [B, S * P, N, D]."""
        index = torch.tensor(pages, dtype=torch.long, device=self._k.device)
        k, v = (
            pool[layer].index_select(0, index).transpose(0, 1).flatten(1, 2)
            for pool in (self._k, self._v)
        )
        return k, v

    @property
    def nbytes(self) -> int:
        """Bytes of the pool."""
        return self._k.nbytes + self._v.nbytes


class GraphCache:
    """A pool for training: pages are the tensors themselves, so gradients reach their writers."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._pages: list[dict[int, tuple[Tensor, Tensor] | None]] = [{} for _ in range(layers)]

    def take(self, layer: int) -> int:
        """The lowest free page."""
        used = self._pages[layer]
        page = next(i for i in range(len(used) + 1) if i not in used)
        used[page] = None
        return page

    def keep(self, layer: int, pages: Iterable[int]) -> None:
        """Free every page of the layer but these."""
        kept = set(pages)
        self._pages[layer] = {page: kv for page, kv in self._pages[layer].items() if page in kept}

    def write(self, layer: int, pages: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Keep the tensors of a chunk, [B, F * P, N, D]."""
        for page, k_frame, v_frame in zip(
            pages, k.chunk(len(pages), 1), v.chunk(len(pages), 1), strict=True
        ):
            self._pages[layer][page] = (k_frame, v_frame)

    def read(self, layer: int, pages: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of pages, [B, S * P, N, D]."""
        stored = [self._pages[layer][page] for page in pages]
        written = [kv for kv in stored if kv is not None]
        if len(written) < len(stored):
            raise IndexError(f"layer {layer}: a page was read before it was written")
        return torch.cat([k for k, _ in written], 1), torch.cat([v for _, v in written], 1)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(
            k.nbytes + v.nbytes
            for layer in self._pages
            for kv in layer.values()
            if kv
            for k, v in [kv]
        )
