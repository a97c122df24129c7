"""Optimizer states and averages that processes share out among them (ZeRO stage 1).

ZeRO is arXiv 1910.02054. Every process has all weights and gradients; each keeps the optimizer's
states and the average of some weights, moves those, and gives them to the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cfgen.train.processes import process


class Shares:
    """Who moves which weight.

    Attributes:
        shared: whether processes have different ones; else each has all.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], *, shared: bool) -> None:
        """Share weights out, the largest first, each to the process that has the least so far.

        Args:
            weights: all that learn, by name.
            shared: whether to; one process has all in any case.
        """
        self._me, count = process()
        self.shared = shared and count > 1
        self._owners: dict[int, int] = {}
        if not self.shared:
            return
        loads = [0] * count
        for _, weight in sorted(weights.items(), key=lambda item: (-item[1].numel(), item[0])):
            owner = loads.index(min(loads))
            loads[owner] += weight.numel()
            self._owners[id(weight)] = owner

    def mine(self, weight: nn.Parameter) -> bool:
        """Whether this process moves a weight."""
        return not self.shared or self._owners[id(weight)] == self._me

    def spread(self, weights: Iterable[nn.Parameter]) -> None:
        """Give weights that have been moved to all processes."""
        if not self.shared:
            return
        for weight in weights:
            if weight.requires_grad:  # others stand still, and are the same everywhere
                dist.broadcast(weight.data, self._owners[id(weight)])

    def collected(
        self, kept: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter]
    ) -> Mapping[str, Tensor]:
        """What all processes keep of weights, one tensor each.

        Args:
            kept: what this process keeps, by name.
            weights: all that something is kept of.

        Returns:
            For the first process all of it, in main memory where it is shared; for others anything.
        """
        if not self.shared:
            return kept
        whole = {}
        for name, weight in weights.items():
            tensor = kept[name] if self.mine(weight) else torch.empty_like(weight)
            dist.broadcast(tensor, self._owners[id(weight)])
            if self._me == 0:
                whole[name] = tensor.detach().cpu()
        return whole
