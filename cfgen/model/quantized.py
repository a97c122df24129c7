"""Layers whose weights stay as a file stores them, and are dequantized each time they are used.

Axis letters: N outputs, K inputs, r rank of an adapter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgen.ops.quant.int8_matmul import linear
from cfgen.ops.quant.weights import AnyQuantized, ScaledWeight, parts, with_parts


class _Stored(nn.Module):
    """A module that holds a quantized weight as buffers, so that it moves between devices."""

    def __init__(self, weight: AnyQuantized, dtype: torch.dtype) -> None:
        super().__init__()
        held = parts(weight)
        for name, part in held.items():
            self.register_buffer(f"weight_{name}", part)
        empty = torch.empty(0)
        self._kind = with_parts(weight, dict.fromkeys(held, empty))
        self._held = tuple(held)
        self.dtype = dtype

    @property
    def weight(self) -> AnyQuantized:
        """The weight where it lies now. No tensor: whoever asks for its dtype must look here."""
        return with_parts(self._kind, {n: self.get_buffer(f"weight_{n}") for n in self._held})

    def extra_repr(self) -> str:
        """Format and shape, for `print`."""
        return f"{self.weight.format} {list(self.weight.shape)} as {self.dtype}"


class QuantizedLinear(_Stored):
    """A linear layer over a quantized weight, with low-rank adapters that are not merged into it.

    Args:
        weight: the weight [N, K].
        bias: [N], or None.
        dtype: dtype of the product; inputs are taken to it.
        native: multiply by the small numbers themselves, which quantizes the inputs as well.
    """

    def __init__(
        self,
        weight: AnyQuantized,
        bias: Tensor | None,
        dtype: torch.dtype,
        *,
        native: bool = False,
    ) -> None:
        super().__init__(weight, dtype)
        self.native = native
        self.register_buffer("bias", bias)
        self.adapters = 0

    def add_adapter(self, down: Tensor, up: Tensor) -> None:
        """Add up @ down to the weight without touching it: [r, K] and [N, r], strength included."""
        device = next(self.buffers()).device
        self.register_buffer(f"down_{self.adapters}", down.to(device, self.dtype))
        self.register_buffer(f"up_{self.adapters}", up.to(device, self.dtype))
        self.adapters += 1

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        x = x.to(self.dtype)
        weight, bias = self.weight, self.get_buffer("bias")
        if self.native and isinstance(weight, ScaledWeight):
            out = linear(x, weight).to(self.dtype)
            out = out if bias is None else out + bias
        else:
            out = F.linear(x, weight.dequantize(self.dtype), bias)
        for i in range(self.adapters):
            out += F.linear(F.linear(x, self.get_buffer(f"down_{i}")), self.get_buffer(f"up_{i}"))
        return out


class QuantizedEmbedding(_Stored):
    """A table of which only the rows that are looked up are dequantized.

    Args:
        weight: the table [rows, width].
        dtype: dtype of what is looked up.
    """

    def __init__(self, weight: AnyQuantized, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, index: Tensor) -> Tensor:
        """Whole numbers of any shape to [..., width]."""
        found = self.weight.rows(index.flatten()).dequantize(self.dtype)
        return found.view(*index.shape, self.embedding_dim)
