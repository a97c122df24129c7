"""The newest clean latents, to be committed again under another prompt, or with larger patches.

Axis letters: B batch, F latent frames, C channels, H W rows and columns of a latent frame.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cfgen.errors import SnapshotError

NAME = "recent_latents"


class RecentLatents:
    """The latents of the newest frames, as they were made.

    Args:
        most: Frames that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks: list[Tensor] = []
        self._lost = False

    @property
    def frames(self) -> int:
        """Frames there are.

        Raises:
            SnapshotError: They were not kept.
        """
        if self._lost:
            raise SnapshotError(
                "the snapshot that was taken holds no latents, as an earlier cfgen wrote it, and "
                "this shot begins by committing the newest again",
                "begin the shot with another transition, or render again from the start",
            )
        return sum(chunk.shape[1] for chunk in self._chunks)

    def add(self, latents: Tensor, *, keep_all: bool = False) -> None:
        """Take in a chunk [B, F, C, H, W]; what is older than needed goes, unless all is kept."""
        self._chunks.append(latents)
        if not keep_all:
            self.trim()

    def trim(self) -> None:
        """Let go what is older than needed."""
        excess = sum(chunk.shape[1] for chunk in self._chunks) - self._most
        self._lost = self._lost and excess < 0
        while excess > 0:
            oldest = self._chunks.pop(0)
            if oldest.shape[1] > excess:
                self._chunks.insert(0, oldest[:, excess:])
            excess -= oldest.shape[1]

    def clear(self) -> None:
        """Hold nothing."""
        self._chunks, self._lost = [], False

    def cut(self, newest: int) -> None:
        """Hold so many of the newest frames at most."""
        if self._chunks:
            self._chunks = [torch.cat(self._chunks, 1)[:, -newest:]]

    def take(self, count: int) -> Tensor | None:
        """The newest frames [B, count, C, H, W], which are to be added again; None for none."""
        if count == 0:
            return None
        every = torch.cat(self._chunks, 1)
        kept = every.shape[1] - count
        self._chunks = [every[:, :kept]] if kept else []
        return every[:, kept:]

    def read(self, first: int, end: int, *, absent: int = 0) -> Tensor:
        """Frames from `first` before the newest's end up to `end` before it: [B, n, C, H, W].

        Args:
            first: How many of the newest frames there are from the first of them on.
            end: How many of the newest frames there are behind the last of them.
            absent: Frames of zeros before them.

        Raises:
            SnapshotError: They were not kept.
        """
        if first > self.frames:
            raise ValueError(f"frames from the newest {first} on were asked for, of {self.frames}")
        every = torch.cat(self._chunks, 1)
        found = every[:, every.shape[1] - first : every.shape[1] - end]
        if not absent:
            return found
        return torch.cat([found.new_zeros(found.shape[0], absent, *found.shape[2:]), found], 1)

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs, by name."""
        return {NAME: torch.cat(self._chunks, 1)} if self._chunks else {}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Hold what `state` gave."""
        held = tensors.get(NAME)
        self._lost = held is None and self._most > 0
        self._chunks = [] if held is None else [held.to(device, copy=True)]
