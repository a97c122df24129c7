"""The page pool: where keys and values lie, as they are or in 8 bits. It knows no policy.

Pages may be of several sizes: those of larger patches have fewer tokens. All lie in one buffer a
layer, those of one size together, and are numbered through.

Axis letters: B batch, F latent frames, P tokens per latent frame, L = F * P, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cfgen.kernels.pages import Pages
from cfgen.memory.page_sizes import SmallPages
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


class PlacedPages(NamedTuple):
    """Pages of one size in the pool.

    Attributes:
        patch: As of `SmallPages`.
        page: The number of the first of them.
        token: Tokens of all pages before that.
        pages: How many there are.
        tokens: Tokens of each.
        stored: Where they lie; every tensor begins with [layers, pages].
    """

    patch: int
    page: int
    token: int
    pages: int
    tokens: int
    stored: Pages


class KVCache:
    """A pool of fixed size, allocated once; pages are written in place and never moved.

    Args:
        layers: layers of the generator.
        pages: most pages in use at once in a layer.
        shape: (B, P, N, D) of one page.
        small: pages of other sizes beside them.
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
        small: Sequence[SmallPages] = (),
        place: torch.device | None = None,
        storage: Storage = "auto",
        write: Callable[..., None] = write_pages,
    ) -> None:
        self.layers, self.shape, self.dtype = layers, shape, dtype
        self._device, self._storage, self._write = device, storage, write
        self._is_offloaded: bool = place is not None and place != device
        self._is_pinned = self._is_offloaded and device.type == "cuda"
        sizes = [SmallPages(1, pages, shape[1]), *small]
        self._all = self._allocate(
            (layers, sum(size.pages for size in sizes)),
            sum(size.pages * size.tokens for size in sizes),
            place or device,
            pinned=self._is_pinned,
        )
        self._sizes = self._placed(sizes)
        self._used: list[dict[int, int]] = [{} for _ in range(layers)]
        self._taken = [0] * layers

    def _allocate(
        self, count: tuple[int, ...], tokens: int, place: torch.device, *, pinned: bool = False
    ) -> Pages:
        """Room for pages of so many tokens together: keys and values [..., rows, D]."""
        batch, _, heads, width = self.shape

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=place, pin_memory=pinned)

        rows = (*count[:-1], tokens * batch * heads, width)
        keys, values = page_dtypes(self._storage, self.dtype)
        small_keys, small_values = keys.itemsize == 1, values.itemsize == 1
        return Pages(
            k=zeros(keys, *rows),
            v=zeros(values, *rows),
            k_scale=zeros(torch.float32, *count, batch, heads) if small_keys else None,
            k_mean=zeros(torch.float32, *count, batch, heads, width) if small_keys else None,
            v_scale=zeros(torch.float32, *count, batch, heads, width) if small_values else None,
        )

    def _placed(self, sizes: Sequence[SmallPages]) -> dict[int, PlacedPages]:
        """Where pages of each size lie, by patch."""
        placed: dict[int, PlacedPages] = {}
        page = token = 0
        for patch, pages, tokens in sizes:
            stored = self._part(self._all, page, token, pages, tokens)
            placed[patch] = PlacedPages(patch, page, token, pages, tokens, stored)
            page, token = page + pages, token + pages * tokens
        return placed

    def _part(self, every: Pages, page: int, token: int, pages: int, tokens: int) -> Pages:
        """Views of pages of one size, keys and values [..., pages, B, N, tokens, D]."""
        batch, _, heads, width = self.shape
        lanes, shape = batch * heads, (pages, batch, heads, tokens, width)
        k, v = (
            x.narrow(-2, token * lanes, pages * tokens * lanes).view(*x.shape[:-2], *shape)
            for x in every[:2]
        )
        beside = (
            None if each is None else each.narrow(k.ndim - len(shape), page, pages)
            for each in every[2:]
        )
        return Pages(k, v, *beside)

    def _size_of(self, page: int) -> PlacedPages:
        return next(s for s in self._sizes.values() if page < s.page + s.pages)

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

    @property
    def is_mixed(self) -> bool:
        """Whether there are pages of several sizes."""
        return len(self._sizes) > 1

    def places(self) -> list[tuple[int, int]]:
        """Of each page the tokens of all that lie before it, and its own."""
        return [
            (size.token + i * size.tokens, size.tokens)
            for size in self._sizes.values()
            for i in range(size.pages)
        ]

    def size(self, page: int) -> tuple[int, int]:
        """Patch and tokens of a page."""
        found = self._size_of(page)
        return found.patch, found.tokens

    def number(self, layer: int, page: int) -> int:
        """The how-manieth page that the layer took this is: another whenever it is written anew."""
        return self._used[layer][page]

    def allocate(self, layer: int, patch: int = 1) -> int:
        """The lowest free page. IndexError if all are in use: the policy exceeds its capacity."""
        used, size = self._used[layer], self._sizes[patch]
        numbers = range(size.page, size.page + size.pages)
        page = next((i for i in numbers if i not in used), None)
        if page is None:
            raise IndexError(f"layer {layer}: all {size.pages} pages are in use")
        used[page] = self._taken[layer]
        self._taken[layer] += 1
        return page

    def retain(self, layer: int, pages: Iterable[int]) -> None:
        """Free every page of the layer but these."""
        kept = set(pages)
        self._used[layer] = {page: n for page, n in self._used[layer].items() if page in kept}

    def layer(self, layer: int) -> Pages:
        """All pages of a layer, on the device."""
        held = self._all if self.is_mixed else self._sizes[1].stored
        return _each(held, lambda pool: pool[layer].to(self._device, non_blocking=True))

    def read(self, layer: int, pages: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Copy pages of one size, as numbers to compute with, to k and v: [B, N, pages, P, D]."""
        if not (self.is_quantized or self._is_offloaded):
            size = self._size_of(pages[0])
            which = torch.tensor([page - size.page for page in pages])
            which = which.to(self._device, non_blocking=True)
            for pool, copy in ((size.stored.k, k), (size.stored.v, v)):
                torch.index_select(pool[layer], 0, which, out=copy.permute(2, 0, 1, 3, 4))
            return
        for i, page in enumerate(pages):
            page_k, page_v = expand(self._page(layer, page), self.dtype)
            k[:, :, i].copy_(page_k)
            v[:, :, i].copy_(page_v)

    def keys(self, layer: int, page: int) -> Tensor:
        """See `protocols.PagePool`."""
        return expand(self._page(layer, page), self.dtype)[0]

    def _stored(self, layer: int, page: int) -> Pages:
        """A page where it lies."""
        size = self._size_of(page)
        return _each(size.stored, lambda pool: pool[layer, page - size.page])

    def _page(self, layer: int, page: int) -> Pages:
        return _each(
            self._stored(layer, page),
            lambda pool: pool.to(self._device, non_blocking=self._is_pinned),
        )

    def write(
        self,
        layer: int,
        into: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        only_if: Tensor | None = None,
        patch: int = 1,
    ) -> None:
        """Store frames; see `protocols.PagePool`."""
        size, count = self._sizes[patch], len(into)
        if not self._is_offloaded:
            pages = _each(size.stored, lambda pool: pool[layer])
            self._write(k, v, pages, into - size.page if size.page else into, only_if=only_if)
            return
        # The host must not wait for the decision. So a page that may stay as it is comes to the
        # device, where the decision is known, and goes back in any case.
        room = self._allocate((count,), count * size.tokens, self._device)
        staged = self._part(room, 0, 0, count, size.tokens)
        held = [
            (place, frames[number])
            for number, page in enumerate(into.tolist())
            for place, frames in zip(self._stored(layer, page), staged, strict=True)
            if place is not None and frames is not None
        ]
        for place, frame in held if only_if is not None else ():
            frame.copy_(place, non_blocking=self._is_pinned)
        rows = torch.arange(count, device=self._device, dtype=torch.int32)
        self._write(k, v, staged, rows, only_if=only_if)
        for place, frame in held:
            place.copy_(frame, non_blocking=self._is_pinned)

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
            f"{layer}.{number}.{name}": stored
            for layer, used in enumerate(self._used)
            for page, number in used.items()
            for name, stored in self._stored(layer, page)._asdict().items()
            if stored is not None
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
                for name, place in self._stored(layer, page)._asdict().items():
                    if place is not None:
                        _fill(place, pages, f"{layer}.{number}.{name}")


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
