"""A memory whose attention tells what it read: from which latent frame, written when, where.

Values carry (frame, pass that wrote it); keys are the number 1, so their angle is the position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cfgen.kernels.pages import ADMITTED
from cfgen.memory.compressed_table import CompressedTable
from cfgen.memory.page_pool import KVCache
from cfgen.memory.page_sizes import PageClass, SmallPages
from cfgen.memory.paged import PagedView
from cfgen.memory.protocols import Norms, Pass, Table
from cfgen.ops.reference import Rope
from cfgen.ops.select import TORCH
from tests.strategies import LONGEST, memory_of, told_by

PASSES = 3
COMMIT = PASSES - 1


class Read(NamedTuple):
    frame: int
    written: int
    position: int


class Spied:
    """One layer of a policy, driven pass by pass.

    `below` is what the policy is told when it asks whether keys are surprising; `asked` counts.
    """

    def __init__(
        self,
        make: Callable[[], Table],
        pages: int | None = None,
        small: Sequence[PageClass] = (PageClass(2, LONGEST), PageClass(4, LONGEST)),
    ) -> None:
        self.table = make()
        shape = (1, 1, 1, 2)
        compresses = isinstance(self.table, CompressedTable)
        pool = KVCache(
            1,
            pages or self.table.capacity,
            shape,
            small=[SmallPages(*each, 1) for each in small] if compresses else (),
            dtype=torch.float64,
            device=torch.device("cpu"),
        )
        ops = replace(TORCH, attend=self._attend)
        admit = told_by(self._decide)
        self.memory = memory_of(
            [self.table],
            pool,
            ops=ops,
            rope=Rope(2),
            grid=(1, 1),
            admit=admit,
            recaches=self.table.capacity,
        )
        self.below = False
        self.asked = 0
        self.start = 0
        self._frames = 0
        self._read: list[Read] = []
        self.encoded: list[list[Read]] = []

    def stand_where(self, other: Spied) -> None:
        self.start, self._frames, self.asked = other.start, other._frames, other.asked

    def begin(self, frames: int) -> None:
        self.start, self._frames = self.start + self._frames, frames
        self._view = self.memory.begin(frames)

    def run(self, pass_: Pass) -> list[Read]:
        frames = torch.arange(self.start, self.start + self._frames, dtype=torch.float64)
        return self._pass(self._view, pass_, frames)

    def _pass(self, view: PagedView, pass_: Pass, frames: Tensor) -> list[Read]:
        k = torch.zeros(1, len(frames), 2, dtype=torch.float64)
        k[..., 0] = 1
        v = torch.stack([frames, torch.full_like(frames, pass_.index)], -1)[None]
        gain = torch.full((2,), 0.5**0.5, dtype=torch.float64)
        view.at(pass_).attend(0, k, k, v, Norms(gain, gain, 0.0))
        return self._read

    def commit(self) -> None:
        self.memory.commit(self._view)
        frames = torch.arange(self.start, self.start + self._frames, dtype=torch.float64)
        self.memory.remember(frames[None, :, None, None, None])
        self.encoded = [
            self._pass(view, Pass(COMMIT, commit=True), latents.flatten())
            for view, latents, _ in self.memory.reencode()
        ]

    def clear(self) -> None:
        self.memory.clear()
        self.start = self._frames = 0

    def recache(self) -> list[Read] | None:
        """Commit again what is to be; what that pass read, its own frames last."""
        latents = self.memory.rewind()
        if latents is None:
            return None
        frames = latents.flatten().tolist()
        self.start, self._frames = int(frames[0]), 0
        assert frames == list(range(self.start, self.start + len(frames)))
        self.begin(len(frames))
        read = self.run(Pass(COMMIT, commit=True))
        self.commit()
        return read

    def chunk(self, frames: int, below: list[bool]) -> list[list[Read]]:
        """Run a whole chunk; what each of its passes read."""
        self.begin(frames)
        reads = []
        for index, outcome in enumerate(below):
            self.below = outcome
            reads.append(self.run(Pass(index, commit=index == len(below) - 1)))
        self.commit()
        return reads

    @property
    def admitted(self) -> int:
        return int(self.memory.decisions[0, ADMITTED])

    @property
    def pages(self) -> set[int]:
        return {slot.page for slot in self.table.slots()}

    def _decide(self, reference: Tensor, keys: Tensor) -> bool:
        for each in (reference, keys):
            torch.testing.assert_close(
                each, torch.tensor([[1.0, 0.0]]), msg="keys are compared un-rotated"
            )
        self.asked += 1
        return self.below

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, _bias: Tensor | None = None) -> Tensor:
        angles = torch.view_as_complex(k[0, :, 0].contiguous()).angle()
        self._read = []
        for angle, (frame, written) in zip(angles.tolist(), v[0, :, 0].tolist(), strict=True):
            position = self._position(angle, near=int(frame))
            self._read.append(Read(int(frame), int(written), position))
        return v[:, -q.shape[1] :]

    @staticmethod
    def _position(angle: float, *, near: int) -> int:
        """The frame's own number, or else another, that an angle stands for."""
        turn = 2 * torch.pi
        for position in (near, *range(500)):
            if abs((angle - position + turn / 2) % turn - turn / 2) < 1e-6:
                return position
        raise AssertionError(f"a key of frame {near} is at no known position")
