"""The fast path in stock PyTorch: fused attention of `scaled_dot_product_attention`."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    """Softmax attention without a mask: [B, L, N, D] in the dtype of the queries."""
    dtype = q_BLND.dtype
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q_BLND, k_BSND, v_BSND))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2)
