"""Context parallelism by heads: a process has some tokens of a chunk, and the pages of some heads.

Everything in a block but self-attention works on each token by itself, so tokens are split over
processes; attention needs all tokens but works on each head by itself, so there heads are. Between
the two, all give to all: each layer and pass sends queries, keys and values one way and the output
the other. A process keeps the pages of its heads alone: the KV cache, and what attention reads of
it, are divided by the number of processes.

Axis letters: B batch, F latent frames, P tokens per latent frame, L = F * P tokens of a chunk, l
those of one process, C = N * D channels of all heads, c those of the heads of one process.
Source: DeepSpeed-Ulysses, arXiv 2309.14509, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from cfgen.memory.protocols import MemoryState, Norms
from cfgen.ops.reference import norm_rate
from cfgen.parallel.group import Group
from cfgen.parallel.launch import require_divisible
from cfgen.parallel.messages import FetchPage, Restore, TakeState

RATES = 4
"""Numbers that go with a token: two rates of norms and two zeros, so that a row of bfloat16 stays a
multiple of 16 bytes, as loads of the kernels need it."""

HEADS = 1
"""The axis of heads in every tensor of a page."""


class HeadParallel:
    """See `memory.heads.HeadSplit` and `generator.TokenSplit`; one a render in each process.

    Args:
        group: The processes.
        heads: Attention heads of the generator.
        tokens: Tokens of a latent frame.

    Raises:
        UsageError: The heads cannot be shared out so.
    """

    def __init__(self, group: Group, *, heads: int, tokens: int) -> None:
        require_divisible(heads, group.size)
        self._group, self._tokens = group, tokens
        self.processes = group.size
        self._pages: Mapping[str, Tensor] = {}

    def shares(self, length: int) -> list[int]:
        """How many of so many tokens each process has: as many as others, or one more."""
        ends = [length * rank // self.processes for rank in range(self.processes + 1)]
        return [end - begin for begin, end in zip(ends[:-1], ends[1:], strict=True)]

    def own_tokens(self, x: Tensor) -> Tensor:
        """See `TokenSplit`."""
        return torch.split(x, self.shares(x.shape[1]), 1)[self._group.rank]

    def all_tokens(self, x: Tensor, length: int) -> Tensor:
        """See `TokenSplit`."""
        shares = self.shares(length)
        copies = x.transpose(0, 1).repeat(self.processes, 1, 1)
        sent = [x.shape[1]] * self.processes
        return self._group.exchange(copies, sent, shares).transpose(0, 1)

    def by_heads(
        self, q: Tensor, k: Tensor, v: Tensor, norms: Norms, *, frames: int
    ) -> tuple[Tensor, Tensor, Tensor, Norms]:
        """See `HeadSplit`.

        The norms are over all heads, which no process has after the exchange. So a token brings
        what its norms multiply by, and is normed as in one process, bit by bit.
        """
        rates = torch.stack([norm_rate(x, norms.eps) for x in (q, k)], -1)
        beside = F.pad(rates, (0, RATES - 2)).view(q.dtype).transpose(0, 1)
        parts = torch.unflatten(torch.stack([q, k, v], 2), -1, (self.processes, -1))
        by_process = parts.permute(3, 1, 0, 2, 4).flatten(3)  # [processes, l, B, 3 c]
        rows = torch.cat([by_process, beside.expand(self.processes, -1, -1, -1)], -1)
        sent, received = [q.shape[1]] * self.processes, self.shares(frames * self._tokens)
        got = self._group.exchange(rows.flatten(0, 1), sent, received).transpose(0, 1)
        width = q.shape[2] // self.processes
        widths = [width, width, width, got.shape[2] - 3 * width]
        *made, with_them = torch.split(got, widths, -1)
        q_rate, k_rate, *_ = with_them.contiguous().view(rates.dtype).unbind(-1)
        own = slice(self._group.rank * width, (self._group.rank + 1) * width)
        given = (q_rate.contiguous(), k_rate.contiguous())
        return made[0], made[1], made[2], Norms(norms.q[own], norms.k[own], norms.eps, given)

    def by_tokens(self, x: Tensor) -> Tensor:
        """See `HeadSplit`."""
        shares = self.shares(x.shape[1])
        own = shares[self._group.rank]
        rows = x.transpose(0, 1).contiguous()
        got = self._group.exchange(rows, shares, [own] * self.processes)
        return torch.unflatten(got, 0, (self.processes, own)).permute(2, 1, 0, 3).flatten(2)

    def all_heads(self, x: Tensor, axis: int) -> Tensor:
        """See `HeadSplit`."""
        ones = [1] * self.processes
        got = self._group.exchange(torch.stack([x] * self.processes), ones, ones)
        return torch.cat(got.unbind(), axis)

    def gathered(self, state: MemoryState) -> MemoryState:
        """See `HeadSplit`: on the lead, pages of all heads are meta tensors with a `fetch`."""
        self._pages = state.pages
        if not self._group.leads:
            return state
        self._group.tell(TakeState())
        whole = {name: self._whole(page) for name, page in state.pages.items()}
        return MemoryState(state.scalars, state.tensors, whole, self._fetch)

    def scattered(self, state: MemoryState) -> MemoryState:
        """See `HeadSplit`: pages come from the lead one by one, in the order they are asked for."""
        if self._group.leads:
            small = {name: tensor.cpu() for name, tensor in state.tensors.items()}
            names = {name: page.new_empty(page.shape, device="meta") for name, page in
                     state.pages.items()}  # fmt: skip
            self._group.tell(Restore(state.scalars, small, names))
        return MemoryState(state.scalars, state.tensors, _Scattered(self._group, state.pages))

    def send_page(self, name: str) -> None:
        """Give the lead one's own heads of a page of the state that was taken last."""
        self._group.gather(self._pages[name])

    def _whole(self, page: Tensor) -> Tensor:
        shape = list(page.shape)
        shape[HEADS] *= self.processes
        return torch.empty(shape, dtype=page.dtype, device="meta")

    def _fetch(self, name: str) -> Tensor:
        self._group.tell(FetchPage(name))
        parts = self._group.gather(self._pages[name])
        assert parts is not None
        return torch.cat(parts, HEADS)


class _Scattered(Mapping[str, Tensor]):
    """One's own heads of pages; every process must ask for the same ones in the same order."""

    def __init__(self, group: Group, pages: Mapping[str, Tensor]) -> None:
        self._group, self._pages = group, pages

    def __getitem__(self, name: str) -> Tensor:
        page, size = self._pages[name], self._group.size
        heads = page.shape[HEADS]
        if heads % size:
            raise ValueError(f"page {name} has {heads} heads, for {size} processes")
        like = page.narrow(HEADS, 0, heads // size)
        parts = page.chunk(size, HEADS) if self._group.leads else None
        return self._group.scatter(parts, like)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pages)

    def __len__(self) -> int:
        return len(self._pages)
