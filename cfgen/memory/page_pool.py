"""The page pool: where keys and values lie, as they are or in 8 bits. It knows no policy.

Axis letters: B batch, F latent frames, P tokens per latent frame, L = F * P, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cfgen.kernels.pages import Pages
from cfgen.memory.policy import Storage
from cfgen.memory.protocols import Scalars
from cfgen.ops.reference import expand
from cfgen.ops.torch_backend import write_pages


def page_dtypes(storage: Storage, dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """What pages keep keys and values in, where they are computed in `dtype`."""
    match storage:
        case "auto":
            return dtype, dtype
        case "bf16":
            return torch.bfloat16, torch.bfloat16
        case "int8":
            return torch.int8, dtype
        case "fp8":
            return torch.int8, torch.float8_e4m3fn


class PagePool(Protocol):
    """Storage of pages, numbered per layer."""

    layers: int

    @property
    def device(self) -> torch.device:
        """Where pages are written from."""

    @property
    def numbers_device(self) -> torch.device:
        """Where `write` takes numbers of pages from without waiting."""

    def allocate(self, layer: int) -> int:
        """A page that is not in use, now in use."""

    def retain(self, layer: int, pages: Iterable[int]) -> None:
        """Free every page of the layer but these."""

    def write(
        self, layer: int, into: Tensor, k: Tensor, v: Tensor, *, only_if: Tensor | None = None
    ) -> None:
        """Store frames, k and v [B, F * P, N, D], on pages `into` [F] int32.

        Args:
            layer: The layer.
            into: The page of each frame.
            k: Keys, rotated in space.
            v: Values.
            only_if: [1] int32; nothing is stored if it is 0.
        """

    def keys(self, layer: int, page: int) -> Tensor:
        """Keys of a page as numbers, rotated in space: [B, N, P, D]."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


class KVCache:
    """A pool of fixed size, allocated once; pages are written in place and never moved.

    Args:
        layers: layers of the generator.
        pages: most pages in use at once in a layer.
        shape: (B, P, N, D) of one page.
        dtype: dtype that keys and values are computed in.
        device: where pages are written from and handed out to.
        place: where the pool lies; by default there too.
        storage: how pages are stored.
        write: the op that stores frames.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        place: torch.device | None = None,
        storage: Storage = "auto",
        write: Callable[..., None] = write_pages,
    ) -> None:
        self.layers, self.shape, self.dtype = layers, shape, dtype
        self._device, self._storage, self._write = device, storage, write
        self._is_offloaded: bool = place is not None and place != device
        self._is_pinned = self._is_offloaded and device.type == "cuda"
        self._all = self._allocate((layers, pages), place or device, pinned=self._is_pinned)
        self._used: list[dict[int, int]] = [{} for _ in range(layers)]
        self._taken = [0] * layers

    def _allocate(
        self, count: tuple[int, ...], place: torch.device, *, pinned: bool = False
    ) -> Pages:
        """Room for pages; every tensor begins with `count`."""
        batch, tokens, heads, width = self.shape

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(*count, *shape, dtype=dtype, device=place, pin_memory=pinned)

        page = (batch, heads, tokens, width)
        keys, values = page_dtypes(self._storage, self.dtype)
        small_keys, small_values = keys.itemsize == 1, values.itemsize == 1
        return Pages(
            k=zeros(keys, *page),
            v=zeros(values, *page),
            k_scale=zeros(torch.float32, batch, heads) if small_keys else None,
            k_mean=zeros(torch.float32, batch, heads, width) if small_keys else None,
            v_scale=zeros(torch.float32, batch, heads, width) if small_values else None,
        )

    @property
    def device(self) -> torch.device:
        """Where pages are written from and handed out to."""
        return self._device

    @property
    def numbers_device(self) -> torch.device:
        """See `PagePool`: where the pool lies."""
        place: torch.device = self._all.k.device
        return place

    @property
    def is_offloaded(self) -> bool:
        """Whether the pool lies elsewhere than on that device."""
        return self._is_offloaded

    @property
    def is_quantized(self) -> bool:
        """Whether pages take less room than the numbers they stand for."""
        return {self._all.k.dtype, self._all.v.dtype} != {self.dtype}

    def allocate(self, layer: int) -> int:
        """The lowest free page. IndexError if all are in use: the policy exceeds its capacity."""
        used = self._used[layer]
        page = next(i for i in range(len(used) + 1) if i not in used)
        if page >= self._all.k.shape[1]:
            raise IndexError(f"layer {layer}: all {self._all.k.shape[1]} pages are in use")
        used[page] = self._taken[layer]
        self._taken[layer] += 1
        return page

    def retain(self, layer: int, pages: Iterable[int]) -> None:
        """Free every page of the layer but these."""
        kept = set(pages)
        self._used[layer] = {page: n for page, n in self._used[layer].items() if page in kept}

    def layer(self, layer: int) -> Pages:
        """All pages of a layer, on the device."""
        return _each(self._all, lambda pool: pool[layer].to(self._device, non_blocking=True))

    def read(self, layer: int, pages: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Copy pages, as numbers to compute with, to k and v: [B, N, pages, P, D]."""
        if not (self.is_quantized or self._is_offloaded):
            which = torch.tensor(pages).to(self._device, non_blocking=True)
            for pool, copy in ((self._all.k, k), (self._all.v, v)):
                torch.index_select(pool[layer], 0, which, out=copy.permute(2, 0, 1, 3, 4))
            return
        for i, page in enumerate(pages):
            page_k, page_v = expand(self._page(layer, page), self.dtype)
            k[:, :, i].copy_(page_k)
            v[:, :, i].copy_(page_v)

    def keys(self, layer: int, page: int) -> Tensor:
        """See `PagePool`."""
        return expand(self._page(layer, page), self.dtype)[0]

    def _page(self, layer: int, page: int) -> Pages:
        return _each(
            self._all,
            lambda pool: pool[layer, page].to(self._device, non_blocking=self._is_pinned),
        )

    def write(
        self, layer: int, into: Tensor, k: Tensor, v: Tensor, *, only_if: Tensor | None = None
    ) -> None:
        """Store frames; see `PagePool`."""
        if not self._is_offloaded:
            self._write(k, v, _each(self._all, lambda pool: pool[layer]), into, only_if=only_if)
            return
        # The host must not wait for the decision. So a page that may stay as it is comes to the
        # device, where the decision is known, and goes back in any case.
        staged = self._allocate((len(into),), self._device)
        held = [
            (pool[layer, page], frame)
            for pool, frames in zip(self._all, staged, strict=True)
            if pool is not None and frames is not None
            for page, frame in zip(into.tolist(), frames, strict=True)
        ]
        for page, frame in held if only_if is not None else ():
            frame.copy_(page, non_blocking=self._is_pinned)
        rows = torch.arange(len(into), device=self._device, dtype=torch.int32)
        self._write(k, v, staged, rows, only_if=only_if)
        for page, frame in held:
            page.copy_(frame, non_blocking=self._is_pinned)

    @property
    def nbytes(self) -> int:
        """Bytes of the pool."""
        return sum(pool.nbytes for pool in self._all if pool is not None)

    def state(self) -> tuple[Scalars, dict[str, Tensor]]:
        """Which pages are in use, and views of them by name.

        The n-th page that a layer ever took has that number in its name.
        """
        if self._is_pinned:
            torch.cuda.synchronize(self._device)  # what was written last may be on its way
        pages = {
            f"{layer}.{number}.{name}": pool[layer, page]
            for layer, used in enumerate(self._used)
            for page, number in used.items()
            for name, pool in self._all._asdict().items()
            if pool is not None
        }
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
                for name, pool in self._all._asdict().items():
                    if pool is not None:
                        _fill(pool[layer, page], pages, f"{layer}.{number}.{name}")


def _each(pages: Pages, change: Callable[[Tensor], Tensor]) -> Pages:
    return Pages(*(None if pool is None else change(pool) for pool in pages))


def _fill(place: Tensor, pages: Mapping[str, Tensor], name: str) -> None:
    """Copy a page that was stored to its place. ValueError if it is of another kind."""
    stored = pages[name]
    if (stored.shape, stored.dtype) != (place.shape, place.dtype):
        raise ValueError(
            f"page {name} is {stored.dtype} {list(stored.shape)}, "
            f"the pool holds {place.dtype} {list(place.shape)}"
        )
    place.copy_(stored)
