"""The one memory of all policies: a page pool, a table per layer, attention that reads pages.

Keys are stored with the spatial rotation applied and the temporal one left off, so a page can move
to another temporal position without being touched.

Axis letters: B batch, F latent frames, P tokens per latent frame, L = F * P, N heads, D head dim,
C = N * D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cfgen.kernels.pages import ADMITTED, ADMITTED_NOW, CAN_ADMIT, UPDATE_REFERENCE
from cfgen.memory.attention import Chunk, KVAttention, Prepared
from cfgen.memory.choosing import choose
from cfgen.memory.heads import HeadSplit, OneProcess
from cfgen.memory.page_pool import KVCache
from cfgen.memory.page_sizes import Patch
from cfgen.memory.protocols import (
    ChoosingTable,
    CompressingTable,
    Encoding,
    MemoryState,
    Norms,
    PagePool,
    Pass,
    Scalars,
    Table,
    whole,
)
from cfgen.memory.recent import RecentLatents

Admit = Callable[..., None]
"""The op that decides; see `ops.reference.admit`."""


class PagedMemory:
    """See `protocols.Memory`.

    Args:
        tables: one table per layer.
        pool: where pages lie.
        attention: attends to them.
        admit: decides on key frames.
        spatial: rotation of a frame's tokens in space, angles [P, E]; only tables that choose need
            it.
        tau: its threshold.
        admission_layers: layers that decide together for all, in rising order; with none, each
            layer decides for itself. Only for tables whose decisions count from the next chunk on.
        recaches: most latent frames that are committed or encoded again: so many of the newest
            clean latents are kept.
        heads: how attention heads are shared out; pool and attention hold those of this process.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        pool: PagePool,
        attention: KVAttention,
        *,
        admit: Admit,
        spatial: Tensor | None = None,
        tau: float = 0.95,
        admission_layers: Sequence[int] = (),
        recaches: int = 0,
        heads: HeadSplit | None = None,
    ) -> None:
        if admission_layers and any(table.spare_pages for table in tables):
            raise ValueError("a table that reads its decision at once cannot wait for other layers")
        self.tables, self.pool, self.attention = list(tables), pool, attention
        self.admit, self.tau = admit, tau
        self.heads: HeadSplit = heads or OneProcess()
        self._choosing = [table for table in tables if isinstance(table, ChoosingTable)]
        self._compressing = [table for table in tables if isinstance(table, CompressingTable)]
        self._is_inverted = any(table.is_inverted for table in self._compressing)
        if self._choosing and spatial is None:
            raise ValueError("tables that choose by keys need to know how keys are rotated")
        self._spatial = torch.zeros(0) if spatial is None else spatial
        self._admission_layers = sorted(set(admission_layers))
        self._key_sums: list[Tensor] = []
        self.decisions = torch.zeros(len(self.tables), 4, dtype=torch.int32, device=pool.device)
        self.reference: Tensor | None = None
        self._fixed: dict[tuple[str, torch.Size], Tensor] = {}
        self._next_frame = 0
        self._admitted = 0
        self._empty = [table.state() for table in self.tables]
        self._recent = RecentLatents(recaches)
        self._jump = 0

    def begin(self, frames: int) -> PagedView:
        """Open the next chunk: evict, give it pages, and have the device know."""
        pages, spare, asked = [], [], []
        for layer, table in enumerate(self.tables):
            table.evict(frames)
            self.pool.retain(layer, (slot.page for slot in table.slots()))
            pages.append([self.pool.allocate(layer) for _ in range(frames)])
            spare.append([self.pool.allocate(layer) for _ in range(table.spare_pages)])
            table.append_chunk(self._next_frame, pages[-1], spare[-1])
            asked.append([int(answer) for answer in table.admission])
        choose(self._choosing, self.pool, self._spatial, self.heads)
        self.decisions.zero_()
        self.decisions[:, CAN_ADMIT : UPDATE_REFERENCE + 1] = self._on_device("asked", asked)
        chunk = Chunk(frames, self.tables, self.decisions, jump=self._jump)
        self._jump = 0
        self.attention.begin(chunk)
        place = self.pool.numbers_device
        targets, spares = (
            self._on_device(name, numbers, place)
            for name, numbers in (("target", pages), ("spare", spare))
        )
        return PagedView(self, chunk, targets, spares)

    def _on_device(
        self, name: str, numbers: list[list[int]], place: torch.device | None = None
    ) -> Tensor:
        """Whole numbers where they were last time, so that what was captured finds them."""
        fresh = torch.tensor(numbers, dtype=torch.int32)
        key = name, fresh.shape
        if key not in self._fixed:
            self._fixed[key] = torch.empty_like(fresh, device=place or self.pool.device)
        return self._fixed[key].copy_(fresh, non_blocking=True)

    def commit(self, view: PagedView) -> None:
        """Close the chunk; here the host learns what was decided in it."""
        watching = any(table.inspects_keys(Pass(0, commit=True)) for table in self.tables)
        flags = self.decisions[:, ADMITTED].tolist() if watching else [0] * len(self.tables)
        for layer, (table, admitted) in enumerate(zip(self.tables, flags, strict=True)):
            table.commit(bool(admitted))
            self.pool.retain(layer, (slot.page for slot in table.slots()))
        self._next_frame += view.frames
        self._admitted = sum(flags)

    def remember(self, latents: Tensor) -> None:
        """Keep the clean latents [B, F, C, H, W] of the chunk that was committed."""
        self._recent.add(self._turned(latents), keep_all=bool(self._compressing))

    def reencode(self) -> Iterator[tuple[PagedView, Tensor, Patch]]:
        """Have latents encoded again with larger patches; see `protocols.Memory`."""
        if not self._compressing:
            return
        planned = [table.settle() for table in self._compressing]
        self._release()
        for encoding in planned[0]:
            yield self._open(encoding), self._latents_of(encoding), encoding.patch
            for table in self._compressing:
                table.end_encoding()
        self._recent.trim()

    def _open(self, encoding: Encoding) -> PagedView:
        """Give what is to be encoded its pages, and have the device know."""
        count, patch = len(encoding.frames), encoding.patch
        pages = []
        for layer, table in enumerate(self._compressing):
            pages.append([self.pool.allocate(layer, patch[1]) for _ in range(count)])
            table.begin_encoding(encoding, pages[-1])
        self.decisions.zero_()
        chunk = Chunk(count, self.tables, self.decisions, patch=patch)
        self.attention.begin(chunk)
        targets = self._on_device("encoded", pages, self.pool.numbers_device)
        return PagedView(self, chunk, targets, targets[:, :0])

    def _latents_of(self, encoding: Encoding) -> Tensor:
        """The latents of pages, [B, pages * frames of each, C, H, W]."""
        first, last = encoding.frames[0], encoding.frames[-1] + encoding.patch[0]
        ago = self._next_frame - (first + encoding.absent)
        found = self._recent.read(ago, self._next_frame - last, absent=encoding.absent)
        return self._turned(found)

    def _turned(self, latents: Tensor) -> Tensor:
        """From the order in which frames [B, F, C, H, W] play to that of commits, or back."""
        return latents.flip(1) if self._is_inverted else latents

    def _release(self) -> None:
        """Free the pages that no slot has."""
        for layer, table in enumerate(self.tables):
            self.pool.retain(layer, (slot.page for slot in table.slots()))

    def clear(self) -> None:
        """Be as empty as at the start; frames are counted from 0 again."""
        for table, state in zip(self.tables, self._empty, strict=True):
            table.restore(state)
        self._next_frame = 0
        self._recent.clear()
        self._settle()

    def forget(self, newest: int) -> None:
        """Keep the sink and so many of the newest latent frames."""
        held = [table.slots() for table in self.tables]
        for table in self.tables:
            table.forget(newest)
        if held != [table.slots() for table in self.tables]:
            self._recent.cut(newest)
        self._settle()

    def jump(self, frames: int) -> None:
        """Have the next chunk, and it alone, stand so many latent frames later in time."""
        self._jump = frames

    def rewind(self) -> Tensor | None:
        """Drop what is to be committed again; the clean latents of that, [B, n, C, H, W]."""
        reach = self._recent.frames
        counts = {table.rewind(reach, self._next_frame) for table in self.tables}
        count = counts.pop()
        self._next_frame -= count
        self._settle()
        latents = self._recent.take(count)
        return None if latents is None else self._turned(latents)

    def _settle(self) -> None:
        """After slots were dropped: their pages are free, and may hold other frames soon."""
        self._release()
        self.attention.forget()

    @property
    def admission_layers(self) -> Sequence[int]:
        """Layers that decide together for all; none if each decides for itself."""
        return self._admission_layers

    def decide_together(self, layer: int, key_sums: Tensor, *, tokens: int) -> None:
        """Collect the key sums [B, n, C] of an admission layer; the last such layer decides.

        The op averages cosines over the batch, so the layers are laid side by side as one batch.
        """
        if self.reference is None:
            raise ValueError("there is no reference to compare with yet")
        together = self._admission_layers
        self._key_sums = [*self._key_sums, key_sums] if layer != together[0] else [key_sums]
        if layer != together[-1]:
            return
        # Views and copies alone: a list as an index would be sent from the host within a chunk.
        references = [self.reference[each] for each in together]
        compared, decision = torch.cat(references), self.decisions[layer]
        self.admit(torch.cat(self._key_sums), compared, decision, tokens=tokens, tau=self.tau)
        for reference, renewed in zip(references, compared.chunk(len(together)), strict=True):
            reference.copy_(renewed)
        self.decisions[:, ADMITTED] = decision[ADMITTED]
        self._key_sums = []

    @property
    def replayable(self) -> bool:
        """Whether commit passes alone settle what is kept, so that a replay needs no other."""
        return not any(table.inspects_keys(Pass(0)) for table in self.tables)

    def state(self) -> MemoryState:
        """What is held between two chunks. The tensors are views: store them before going on.

        Raises:
            TypeError: the pool is one for training.
        """
        if not isinstance(self.pool, KVCache):
            raise TypeError("only a KVCache can be saved")
        pool, pages = self.pool.state()
        scalars: Scalars = {"pool": pool, "tables": [table.state() for table in self.tables]}
        tensors = {} if self.reference is None else {"reference": self.reference}
        tensors |= self._recent.state()
        own = MemoryState(scalars | {"next_frame": self._next_frame}, tensors, pages)
        return self.heads.gathered(own)

    def restore(self, state: MemoryState) -> None:
        """Hold what `state` gave.

        Raises:
            KeyError, TypeError, ValueError, IndexError: it is the state of another memory.
        """
        if not isinstance(self.pool, KVCache):
            raise TypeError("only a KVCache can be restored")
        state = self.heads.scattered(state)
        tables, pool = state.scalars["tables"], state.scalars["pool"]
        if not isinstance(tables, list) or not isinstance(pool, dict):
            raise TypeError("the state must hold a list of tables and a pool")
        self.pool.restore(pool, state.pages)
        for table, held in zip(self.tables, tables, strict=True):
            table.restore(held)
        reference = state.tensors.get("reference")
        self.reference = None if reference is None else reference.to(self.pool.device, copy=True)
        self._next_frame = whole(state.scalars["next_frame"])
        self._recent.restore(state.tensors, self.pool.device)
        self.attention.forget()

    def frames(self, layer: int) -> list[int]:
        """Source frames of a layer's slots, in table order."""
        return [slot.frame for slot in self.tables[layer].slots()]

    @property
    def nbytes(self) -> int:
        """Bytes of the page pool, over all processes."""
        return self.pool.nbytes * self.heads.processes

    def figures(self) -> dict[str, float]:
        """Slots a layer, key frames that the last chunk admitted over all layers, bytes held."""
        slots = sum(len(table.slots()) for table in self.tables) / len(self.tables)
        return {"slots": slots, "admitted": self._admitted, "nbytes": self.nbytes}


@dataclass(frozen=True)
class PagedView:
    """See `protocols.View`."""

    memory: PagedMemory
    chunk: Chunk
    target_pages: Tensor
    spare_pages: Tensor
    pass_: Pass = field(default_factory=lambda: Pass(0))

    @property
    def frames(self) -> int:
        """Latent frames of the chunk."""
        return self.chunk.frames

    def at(self, pass_: Pass) -> PagedView:
        """The same chunk in another pass."""
        return replace(self, pass_=pass_)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, norms: Norms) -> Tensor:
        """Let the policy see the keys, then attend to what it shows: all [B, L, C]."""
        heads, attention = self.memory.heads, self.memory.attention
        q, k, v, norms = heads.by_heads(q, k, v, norms, frames=self.frames)
        made, values = self._look(layer, q, k, v, norms)
        return heads.by_tokens(attention.attend(layer, self.pass_, made, values).flatten(2))

    def write(self, layer: int, k: Tensor, v: Tensor, norms: Norms) -> None:
        """Let the policy see the keys of a commit pass and keep them: [B, L, C]."""
        _, k, v, norms = self.memory.heads.by_heads(k, k, v, norms, frames=self.frames)
        self._look(layer, k, k, v, norms)

    def _look(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, norms: Norms
    ) -> tuple[Prepared, Tensor]:
        """All but attention: norms and rotations, the decision, and what is stored."""
        memory, pass_ = self.memory, self.pass_
        watched = memory.tables[layer].inspects_keys(pass_)
        made = memory.attention.prepare(layer, pass_, q, k, norms, watched=watched)
        values = torch.unflatten(v, -1, made.k.shape[2:])
        if made.key_sums is not None:
            self._decide(layer, memory.heads.all_heads(made.key_sums, 2), tokens=k.shape[1])
        if made.stored is not None and watched and memory.tables[layer].spare_pages:
            first = slice(0, k.shape[1] // self.frames)
            fired = memory.decisions[layer, ADMITTED_NOW : ADMITTED_NOW + 1]
            memory.pool.write(
                layer,
                self.spare_pages[layer],
                made.stored[:, first],
                values[:, first],
                only_if=fired,
            )
        if made.stored is not None and pass_.commit:
            target, patch = self.target_pages[layer], self.chunk.patch[1]
            memory.pool.write(layer, target, made.stored, values, patch=patch)
        return made, values

    def _decide(self, layer: int, key_sums: Tensor, *, tokens: int) -> None:
        memory = self.memory
        key_sums = key_sums.detach()
        if memory.reference is None:
            shape = (len(memory.tables), key_sums.shape[0], key_sums.shape[2])
            memory.reference = torch.zeros(shape, device=key_sums.device)
        together = memory.admission_layers
        if not together:
            decision, reference = memory.decisions[layer], memory.reference[layer]
            memory.admit(key_sums, reference, decision, tokens=tokens, tau=memory.tau)
        elif layer in together:
            memory.decide_together(layer, key_sums, tokens=tokens)
