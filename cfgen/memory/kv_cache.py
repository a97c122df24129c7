"""Page pools: where keys and values lie. They know no policy.

Axis letters: B batch, P tokens per latent frame, F latent frames, N heads, D head dim, S slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cfgen.memory.base import Scalars


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
        device: where pages are written from and handed out to.
        storage: where the pool lies; by default there too.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        storage: torch.device | None = None,
    ) -> None:
        self.layers = layers
        self.device = device
        place = storage or device
        pinned = place.type == "cpu" and device.type == "cuda"
        self._k = torch.zeros(layers, pages, *shape, dtype=dtype, device=place, pin_memory=pinned)
        self._v = torch.zeros_like(self._k, pin_memory=pinned)
        self._used: list[dict[int, int]] = [{} for _ in range(layers)]
        self._taken = [0] * layers

    def take(self, layer: int) -> int:
        """The lowest free page. IndexError if all are in use: the policy exceeds its capacity."""
        used = self._used[layer]
        page = next(i for i in range(len(used) + 1) if i not in used)
        if page >= self._k.shape[1]:
            raise IndexError(f"layer {layer}: all {self._k.shape[1]} pages are in use")
        used[page] = self._taken[layer]
        self._taken[layer] += 1
        return page

    def keep(self, layer: int, pages: Iterable[int]) -> None:
        """Free every page of the layer but these."""
        kept = set(pages)
        self._used[layer] = {page: n for page, n in self._used[layer].items() if page in kept}

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
            pool[layer].index_select(0, index).to(self.device).transpose(0, 1).flatten(1, 2)
            for pool in (self._k, self._v)
        )
        return k, v

    @property
    def nbytes(self) -> int:
        """Bytes of the pool."""
        return self._k.nbytes + self._v.nbytes

    def state(self) -> tuple[Scalars, dict[str, Tensor]]:
        """Which pages are in use, and views of them by name.

        The n-th page that a layer ever took has that number in its name.
        """
        pages: dict[str, Tensor] = {}
        for layer, used in enumerate(self._used):
            for page, number in used.items():
                pages[f"{layer}.{number}.k"] = self._k[layer, page]
                pages[f"{layer}.{number}.v"] = self._v[layer, page]
        used_pairs = [[[page, number] for page, number in used.items()] for used in self._used]
        return {"taken": list(self._taken), "used": used_pairs}, pages

    def restore(self, scalars: Mapping[str, object], pages: Mapping[str, Tensor]) -> None:
        """Hold what `state` gave, in the same places.

        Raises:
            KeyError, TypeError, ValueError, IndexError: it is not the state of such a pool.
        """
        taken, used = scalars["taken"], scalars["used"]
        if not isinstance(taken, list) or not isinstance(used, list):
            raise TypeError("the pool's state must hold two lists")
        if not len(taken) == len(used) == self.layers:
            raise ValueError(f"the state has {len(used)} layers, the pool {self.layers}")
        self._taken = [int(number) for number in taken]
        self._used = [{int(page): int(number) for page, number in pairs} for pairs in used]
        for layer, numbers in enumerate(self._used):
            for page, number in numbers.items():
                for name, pool in (("k", self._k), ("v", self._v)):
                    stored, place = pages[f"{layer}.{number}.{name}"], pool[layer, page]
                    if (stored.shape, stored.dtype) != (place.shape, place.dtype):
                        raise ValueError(
                            f"page {layer}.{number}.{name} is {stored.dtype} {list(stored.shape)}, "
                            f"the pool holds {place.dtype} {list(place.shape)}"
                        )
                    place.copy_(stored)


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
