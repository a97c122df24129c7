"""A small UMT5 encoder by Hugging Face's names."""

from __future__ import annotations

import torch
from torch import Tensor

ATTENTION = "encoder.block.0.layer.0.SelfAttention"

ENCODER = {
    "shared.weight": (64, 32),
    "encoder.final_layer_norm.weight": (32,),
    "encoder.block.0.layer.0.layer_norm.weight": (32,),
    f"{ATTENTION}.relative_attention_bias.weight": (8, 4),
    **{f"{ATTENTION}.{m}.weight": (32, 32) for m in "qkvo"},
    "encoder.block.0.layer.1.layer_norm.weight": (32,),
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (48, 32),
    "encoder.block.0.layer.1.DenseReluDense.wi_1.weight": (48, 32),
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": (32, 48),
}
"""Shapes of a UMT5 encoder."""

DENSE = {"wi_0": "ffn_gate", "wi_1": "ffn_up", "wo": "ffn_down"}

LLAMA_CPP = {
    "shared.weight": "token_embd.weight",
    "encoder.final_layer_norm.weight": "enc.output_norm.weight",
    "encoder.block.0.layer.0.layer_norm.weight": "enc.blk.0.attn_norm.weight",
    f"{ATTENTION}.relative_attention_bias.weight": "enc.blk.0.attn_rel_b.weight",
    **{f"{ATTENTION}.{m}.weight": f"enc.blk.0.attn_{m}.weight" for m in "qkvo"},
    "encoder.block.0.layer.1.layer_norm.weight": "enc.blk.0.ffn_norm.weight",
    **{
        f"encoder.block.0.layer.1.DenseReluDense.{ours}.weight": f"enc.blk.0.{theirs}.weight"
        for ours, theirs in DENSE.items()
    },
}
"""What llama.cpp calls them."""


def encoder() -> dict[str, Tensor]:
    """Random weights of such an encoder."""
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in ENCODER.items()}
