"""Muon: momentum whose matrix updates are orthogonalised, for every weight of two or more axes.

Source: Keller Jordan, https://kellerjordan.github.io/posts/muon/ (five Newton-Schulz steps); the
step is scaled to AdamW's typical root mean square as in arXiv 2502.16982, so that rates carry over.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cfgen.ops.native import has_bfloat16

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon over weights of two or more axes; a convolution counts as a matrix [out, the rest].

    Args:
        params: weights.
        lr: learning rate, on AdamW's scale.
        momentum: decay of the gradient average (Nesterov).
        weight_decay: decoupled decay.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                average = state["momentum"]
                average.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(average, group["momentum"]).flatten(1))
                scale = 0.2 * max(update.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the nearest matrix with singular values of one: [rows, columns], in float32.

    Worked out in bfloat16, as published, where the device has it.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrix.bfloat16() if has_bfloat16(matrix.device) else matrix.float()
    wide: Tensor = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).float()
